"""What trains trials: the one interface between the driver and Ray, and the same on virtual time.

A job is one trial up to one rung. Jobs are independent and repeatable: all that connects them is the trial's folder,
so that a job whose worker died is simply handed out again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from trainer.parallel import Parallel
from trainer.trial import RungResult, TrialSpec

__all__ = ["Event", "Executor", "Failed", "Finished", "Job", "Stopped", "VirtualExecutor"]


@dataclass(frozen=True)
class Job:
    """Train trial `number` to the end of `rung`, in `folder`, spread as `parallel` says."""

    number: int
    rung: int
    spec: TrialSpec
    folder: Path
    parallel: Parallel = field(default_factory=Parallel)


@dataclass(frozen=True)
class Finished:
    job: Job
    result: RungResult


@dataclass(frozen=True)
class Failed:
    """machine: the fault is the machine's (a worker died), not the trial's, and trying again may help."""

    job: Job
    reason: str
    machine: bool


@dataclass(frozen=True)
class Stopped:
    """Ended on request with a checkpoint."""

    job: Job


Event = Finished | Failed | Stopped


class Executor(Protocol):
    """A fixed number of slots. Every submitted job ends in exactly one event."""

    slots: int

    def submit(self, job: Job) -> None:
        """Start a job. There must be a free slot."""

    def poll(self, timeout: float) -> list[Event]:
        """Wait up to `timeout` seconds for something to end; what ended."""

    def progress(self) -> dict[int, tuple[int, int]]:
        """(step, raw tokens) of running trials, as last heard."""

    def stop(self) -> None:
        """Ask every running job to stop soon; they end as `Stopped` or `Finished`. Nothing is submitted after it."""

    def close(self) -> None:
        """Give everything back. Running jobs are lost up to their last checkpoint."""


class VirtualExecutor:
    """Jobs that take virtual time: `train` returns a job's duration and how it ends. Nothing waits."""

    def __init__(self, slots: int, train: Callable[[Job], tuple[float, RungResult | Failed]]) -> None:
        self.slots, self.now, self._train = slots, 0.0, train
        self._running: list[tuple[float, int, Event]] = []  # end, order of submission, event
        self._submitted = 0

    def submit(self, job: Job) -> None:
        assert len(self._running) < self.slots, "no free slot"
        duration, outcome = self._train(job)
        event = outcome if isinstance(outcome, Failed) else Finished(job, outcome)
        self._running.append((self.now + duration, self._submitted, event))
        self._submitted += 1

    def poll(self, timeout: float) -> list[Event]:
        if not self._running:
            return []
        first = min(self._running, key=lambda r: r[:2])
        self._running.remove(first)
        self.now = first[0]
        return [first[2]]

    def progress(self) -> dict[int, tuple[int, int]]:
        return {event.job.number: (0, 0) for _, _, event in self._running}

    def stop(self) -> None:
        self._running = [(self.now, order, Stopped(event.job)) for _, order, event in self._running]

    def close(self) -> None:
        self._running.clear()
