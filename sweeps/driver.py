"""The driver of a sweep: asks the ledger, hands jobs to the executor, takes note of what comes back.

It keeps nothing of its own that matters: killed at any moment, the next driver finds everything in the study and in
the trials' folders and goes on.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from sweeps.config import SweepConfig
from sweeps.executor import Event, Executor, Failed, Finished, Job
from sweeps.ledger import Assignment, Ledger

__all__ = ["Driver", "Snapshot", "View"]

STOP_SECONDS = 30.0  # that running jobs get to write a checkpoint when asked to stop
SETTLED = 0.05  # of a trial, to be seen before a guess of the time left means anything
WINDOW_SECONDS = 30.0  # over which speed is measured
HUNG_RETRIES = 1  # a trial that hangs twice is at fault itself


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

    def update(self, numbers: set[int]) -> None: ...


class Driver:
    """Runs the ledger's sweep on `executor`. `job` makes the job that brings a trial to its next rung.

    trouble: why it stopped by itself, where it did.
    """

    def __init__(
        self,
        ledger: Ledger,
        executor: Executor,
        job: Callable[[Assignment], Job],
        view: View | None = None,
        watch: Callable[[Snapshot], None] = lambda snapshot: None,
    ) -> None:
        self.ledger, self.executor, self.job, self.view, self.watch = ledger, executor, job, view, watch
        self.stopping, self.trouble = False, ""
        self._active: dict[int, Assignment] = {}
        self._alive: dict[int, tuple[int, float]] = {}  # trial -> last step heard of, and when it was first heard
        self._pace = Pace(ledger)

    def run(self) -> None:
        """Until every trial has ended, or until `stop`."""
        self.ledger.take_up()
        asked_to_stop: float | None = None
        self._fill()
        while self._active:
            if self.stopping and asked_to_stop is None:
                asked_to_stop = self.executor.now()
                self.executor.stop()
            if asked_to_stop is not None and self.executor.now() - asked_to_stop > STOP_SECONDS:
                break
            for event in self.executor.poll(0.5):
                self._take(event)
            self._fill()
            self._look()
            self.watch(self.snapshot())
        self._show()

    def stop(self) -> None:
        """Ask the loop to end: running trials write a checkpoint, and stay unfinished in the study."""
        self.stopping = True

    def _fill(self) -> None:
        """Start trials while there are free slots."""
        while not self.stopping and len(self._active) < self.executor.slots:
            assignment = self.ledger.next()
            if assignment is None:
                break
            self._active[assignment.number] = assignment
            self.executor.submit(self.job(assignment))
        self._show()

    def _take(self, event: Event) -> None:
        """Take note of how a job ended."""
        number = event.job.number
        del self._active[number]
        self._alive.pop(number, None)
        if isinstance(event, Finished):
            self._pace.hear(number, event.result.tokens)
            self.ledger.record(number, event.result)
        elif isinstance(event, Failed):
            self._fail(number, event)
        if self.ledger.trial(number).state.is_finished():
            self._pace.end(number)

    def _fail(self, number: int, event: Failed) -> None:
        match event.fault:
            case "disk":  # the trial is as good as before; whoever makes room can go on with it
                self.ledger.note_fault(number, event.reason)
                self.trouble = event.reason
                self.stop()
            case "memory":
                self.ledger.infeasible(number, event.reason)
            case "trial":
                self.ledger.fail(number, event.reason)
            case "machine":
                self.ledger.retry(number, event.reason, HUNG_RETRIES if event.reason == self._hung else None)

    @property
    def _hung(self) -> str:
        return f"no step for {self.ledger.config.timeout:g} s"

    def _look(self) -> None:
        """How far the running trials are; one that hangs is killed. One never heard of waits for a place to run."""
        progress, now = self.executor.progress(), self.executor.now()
        for number, (step, tokens) in progress.items():
            self._pace.hear(number, tokens)
            if number in self._active and self._alive.get(number, (-1, now))[0] != step:
                self._alive[number] = step, now
        self._pace.tick(now)
        for number in [n for n, (_, since) in self._alive.items() if now - since > self.ledger.config.timeout]:
            del self._alive[number]
            self.executor.kill(number, self._hung)

    def _show(self) -> None:
        if self.view and self.ledger.changed:
            self.view.update(set(self.ledger.changed))
        self.ledger.changed.clear()

    def snapshot(self) -> Snapshot:
        return Snapshot(
            trials=self.ledger.config.trials,
            running={n: (a.design.name, self._pace.share(n)) for n, a in self._active.items()},
            states=dict(+self.ledger.states),
            best=self.ledger.best(),
            speed=self._pace.speed(),
            left=self._pace.left(len(self.ledger.study)),
        )


class Pace:
    """Speed over the last half minute, and what is left at that speed."""

    def __init__(self, ledger: Ledger) -> None:
        config: SweepConfig = ledger.config
        self._trials, recipe = config.trials, config.recipe
        self._per_trial = recipe.steps * recipe.pieces * recipe.piece
        self._seen: dict[int, int] = {}  # trial -> raw tokens, of those that have not ended
        self._ended, self._shares = 0, 0.0  # trials, and the sum of the shares of their steps that they were trained
        for trial in ledger.trials():
            self._seen[trial.number] = max(trial.intermediate_values, default=0)
            if trial.state.is_finished():
                self.end(trial.number)
        self._new = 0  # raw tokens since this driver started
        self._history: deque[tuple[float, int]] = deque()

    def hear(self, number: int, tokens: int) -> None:
        known = self._seen.get(number)
        if known is not None:
            self._new += max(0, tokens - known)
        self._seen[number] = max(tokens, known or 0)

    def end(self, number: int) -> None:
        self._ended += 1
        self._shares += min(1.0, self._seen.pop(number, 0) / self._per_trial)

    def tick(self, now: float) -> None:
        if not self._new:
            self._history.clear()  # the first step comes long after the start, and is no measure of speed
        self._history.append((now, self._new))
        while now - self._history[0][0] > WINDOW_SECONDS:
            self._history.popleft()

    def share(self, number: int) -> float:
        return min(1.0, self._seen.get(number, 0) / self._per_trial)

    def speed(self) -> float:
        if len(self._history) < 2:
            return 0.0
        (t0, n0), (t1, n1) = self._history[0], self._history[-1]
        return (n1 - n0) / (t1 - t0) if t1 > t0 else 0.0

    def left(self, begun: int) -> float | None:
        """Seconds, assuming that trials to come are pruned as often as those that have ended."""
        speed = self.speed()
        if not speed or self._new < SETTLED * self._per_trial:
            return None
        typical = self._shares / self._ended if self._ended else 1.0
        to_come = max(0, self._trials - begun) * typical
        return (to_come + sum(1 - self.share(n) for n in self._seen)) * self._per_trial / speed
