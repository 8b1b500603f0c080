"""What trains trials: the one interface between the driver and Ray, and the same on virtual time.

A job is one trial up to one rung. Jobs are independent and repeatable: all that connects them is the trial's folder,
so that a job whose worker died is simply handed out again.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Literal, Protocol

from trainer.parallel import Parallel
from trainer.trial import OutOfMemory, RungResult, Stalled, TrialSpec

__all__ = ["Event", "Executor", "Failed", "Fault", "Finished", "Job", "Stopped", "VirtualExecutor", "fault_of"]

Fault = Literal["trial", "memory", "machine", "disk"]
"""Whose a fault is: the trial's own; the trial does not fit the memory; the machine's, and trying again may help; the
disk is full, and trying anything is useless."""


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
    job: Job
    reason: str
    fault: Fault


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

    def now(self) -> float:
        """Seconds, of the clock that the jobs run by."""

    def kill(self, number: int, reason: str) -> None:
        """End the job of a trial that does not answer; it fails with `reason` by the machine's fault."""

    def stop(self) -> None:
        """Ask every running job to stop soon; they end as `Stopped` or `Finished`. Nothing is submitted after it."""

    def close(self) -> None:
        """Give everything back. Running jobs are lost up to their last checkpoint."""


def fault_of(error: BaseException) -> Fault:
    """Whose fault it is that a job ended with `error`."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or os.strerror(errno.ENOSPC) in str(error):  # as libraries say it that are not Python's
        return "disk"
    if isinstance(error, OutOfMemory):
        return "memory"
    return "machine" if isinstance(error, Stalled) else "trial"


class VirtualExecutor:
    """Jobs that take virtual time: `train` returns a job's duration and how it ends, or is said to end; one of infinite
    duration hangs. Nothing waits."""

    def __init__(self, slots: int, train: Callable[[Job], tuple[float, RungResult | Failed]]) -> None:
        self.slots, self._now, self._train = slots, 0.0, train
        self._running: dict[int, tuple[float, int, Event]] = {}  # trial -> end, order of submission, event
        self._submitted = 0

    def submit(self, job: Job) -> None:
        assert len(self._running) < self.slots, "no free slot"
        assert job.number not in self._running, "a trial runs once at a time"
        duration, outcome = self._train(job)
        event = outcome if isinstance(outcome, Failed) else Finished(job, outcome)
        self._running[job.number] = (self._now + duration, self._submitted, event)
        self._submitted += 1

    def poll(self, timeout: float) -> list[Event]:
        """On to the next end, however far it is; past `timeout` only where none will come."""
        if not self._running:
            return []
        end, _, event = min(self._running.values(), key=lambda running: running[:2])
        if end == inf:
            self._now += timeout
            return []
        self._now = end
        del self._running[event.job.number]
        return [event]

    def progress(self) -> dict[int, tuple[int, int]]:
        return {number: (0 if end == inf else 1, 0) for number, (end, _, _) in self._running.items()}

    def now(self) -> float:
        return self._now

    def kill(self, number: int, reason: str) -> None:
        _, order, event = self._running[number]
        self._running[number] = (self._now, order, Failed(event.job, reason, "machine"))

    def stop(self) -> None:
        self._running = {n: (self._now, order, Stopped(e.job)) for n, (_, order, e) in self._running.items()}

    def close(self) -> None:
        self._running.clear()
