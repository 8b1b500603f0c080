"""The driver of a sweep: asks the ledger, hands jobs to the executor, takes note of what comes back.

It keeps nothing of its own that matters: killed at any moment, the next driver finds everything in the study and in
the trials' folders and goes on.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from optuna.trial import FrozenTrial, TrialState

from sweeps.config import SweepConfig
from sweeps.executor import Event, Executor, Failed, Finished, Job
from sweeps.ledger import Assignment, Ledger

__all__ = ["Driver", "Snapshot", "View"]

STOP_SECONDS = 30.0  # that running jobs get to write a checkpoint when asked to stop
SETTLED = 0.05  # of a trial, to be seen before a guess of the time left means anything
WINDOW_SECONDS = 30.0  # over which speed is measured


@dataclass
class Snapshot:
    """What a person who watches wants to know. speed: raw tokens per second over all workers. left: seconds."""

    trials: int
    running: dict[int, tuple[str, float]] = field(default_factory=dict)  # trial -> design, share of its steps done
    states: dict[str, int] = field(default_factory=dict)
    best: tuple[str, float] | None = None
    speed: float = 0.0
    left: float | None = None


class View(Protocol):
    """Shows the sweep elsewhere. It is told which trials changed and reads the rest itself; it never fails a sweep."""

    def update(self, numbers: list[int]) -> None: ...


class Driver:
    """Runs the ledger's sweep on `executor`. `job` makes the job that brings a trial to its next rung."""

    def __init__(
        self,
        ledger: Ledger,
        executor: Executor,
        job: Callable[[Assignment], Job],
        view: View | None = None,
        watch: Callable[[Snapshot], None] = lambda snapshot: None,
    ) -> None:
        self.ledger, self.executor, self.job, self.view, self.watch = ledger, executor, job, view, watch
        self.stopping = False
        self._active: dict[int, Assignment] = {}
        self._unfinished: list[Assignment] = []
        self._pace = Pace(ledger.config)

    def run(self) -> None:
        """Until every trial has ended, or until `stop`."""
        self._unfinished = self.ledger.unfinished()
        started = self._fill()
        self._show([t.number for t in self.ledger.trials()])
        asked_to_stop: float | None = None
        while self._active:
            self._show(started)
            if self.stopping and asked_to_stop is None:
                asked_to_stop = time.monotonic()
                self.executor.stop()
            if asked_to_stop and time.monotonic() - asked_to_stop > STOP_SECONDS:
                break
            ended = [self._take(event) for event in self.executor.poll(0.5)]
            started = self._fill()
            self._show(ended)
            self._pace.hear(self.executor.progress())
            self.watch(self.snapshot())

    def stop(self) -> None:
        """Ask the loop to end: running trials write a checkpoint, and stay unfinished in the study."""
        self.stopping = True

    def _fill(self) -> list[int]:
        """Start trials while there are free slots; which."""
        started = []
        while not self.stopping and len(self._active) < self.executor.slots:
            assignment = self._unfinished.pop(0) if self._unfinished else self.ledger.ask()
            if assignment is None:
                break
            self._active[assignment.number] = assignment
            self.executor.submit(self.job(assignment))
            started.append(assignment.number)
        return started

    def _take(self, event: Event) -> int:
        """Take note of how a job ended; which trial it was."""
        number = event.job.number
        assignment = self._active.pop(number)
        if isinstance(event, Finished):
            self._pace.done(number, event.result.tokens)
            if self.ledger.record(number, event.result) == "continue":
                self._go_on(replace(assignment, rung=assignment.rung + 1))
        elif isinstance(event, Failed):
            if event.machine and self.ledger.retry(number, event.reason):
                self._go_on(assignment)
            else:
                self.ledger.fail(number, event.reason)
        return number

    def _go_on(self, assignment: Assignment) -> None:
        """With the next rung, or the same again, on the slot that has just become free."""
        if not self.stopping:
            self._active[assignment.number] = assignment
            self.executor.submit(self.job(assignment))

    def _show(self, numbers: list[int]) -> None:
        if self.view and numbers:
            self.view.update(numbers)

    def snapshot(self) -> Snapshot:
        trials = self.ledger.trials()
        best = self.ledger.best()
        return Snapshot(
            trials=self.ledger.config.trials,
            running={n: (a.design.name, self._pace.share(n)) for n, a in self._active.items()},
            states=dict(Counter(t.state.name.lower() for t in trials)),
            best=best,
            speed=self._pace.speed(),
            left=self._pace.left(trials),
        )


class Pace:
    """Speed over the last half minute, and what is left at that speed."""

    def __init__(self, config: SweepConfig) -> None:
        self._trials, recipe = config.trials, config.recipe
        self._per_trial = recipe.steps * recipe.pieces * recipe.piece
        self._seen: dict[int, int] = {}  # trial -> raw tokens
        self._new = 0  # raw tokens since this driver started
        self._history: deque[tuple[float, int]] = deque()

    def hear(self, progress: dict[int, tuple[int, int]]) -> None:
        for number, (_, tokens) in progress.items():
            self.done(number, tokens)
        now = time.monotonic()
        if not self._new:
            self._history.clear()  # the first step comes long after the start, and is no measure of speed
        self._history.append((now, self._new))
        while now - self._history[0][0] > WINDOW_SECONDS:
            self._history.popleft()

    def done(self, number: int, tokens: int) -> None:
        known = self._seen.get(number)
        if known is not None:
            self._new += max(0, tokens - known)
        self._seen[number] = max(tokens, known or 0)

    def share(self, number: int) -> float:
        return min(1.0, self._seen.get(number, 0) / self._per_trial)

    def speed(self) -> float:
        if len(self._history) < 2:
            return 0.0
        (t0, n0), (t1, n1) = self._history[0], self._history[-1]
        return (n1 - n0) / (t1 - t0) if t1 > t0 else 0.0

    def left(self, trials: list[FrozenTrial]) -> float | None:
        """Seconds, assuming that trials to come are pruned as often as those that have ended."""
        speed = self.speed()
        if not speed or self._new < SETTLED * self._per_trial:
            return None
        ended = [t for t in trials if t.state.is_finished()]
        shares = [max(t.intermediate_values, default=self._per_trial) / self._per_trial for t in ended]
        typical = sum(shares) / len(shares) if shares else 1.0
        running = [t.number for t in trials if t.state == TrialState.RUNNING]
        to_come = max(0, self._trials - len(ended) - len(running)) * typical
        return (to_come + sum(1 - self.share(n) for n in running)) * self._per_trial / speed
