"""Sweeps on virtual time: real ledger, real driver, trials whose losses are made up from design and seed."""

import hashlib
import random
from collections.abc import Callable
from math import inf
from pathlib import Path

from optuna.storages import BaseStorage

from sweeps.config import SweepConfig, load
from sweeps.driver import Driver, Snapshot
from sweeps.executor import Failed, Fault, Job, VirtualExecutor
from sweeps.ledger import Assignment, Ledger
from trainer.trial import Heldout, RungResult, TrialSpec

MINI = Path(__file__).parent / "mini.yaml"


def config(*overrides: str) -> SweepConfig:
    return load(str(MINI), overrides)


def loss_of(spec: TrialSpec, rung: int) -> float:
    digest = hashlib.sha256(f"{spec.design.name} {spec.seed}".encode()).digest()
    return 1 + digest[0] / 256 + 1 / rung


def result_of(job: Job) -> RungResult:
    recipe = job.spec.recipe
    step = recipe.rung_steps()[job.rung - 1]
    tokens = step * recipe.piece * recipe.pieces
    loss = loss_of(job.spec, job.rung)
    losses = {"parallel": loss, "reconstruct": loss, "continue": 4 - loss}  # the last ranks the other way
    heldout = Heldout(
        losses,
        dict.fromkeys(losses, 0.5),
        {task: [value] for task, value in losses.items()},
        {task: [(0, value)] for task, value in losses.items()},
    )
    return RungResult(job.rung, step, tokens, 1.0, loss, heldout, [(tokens, loss, 1.0)], [])


def job_for(config: SweepConfig, trial: Assignment) -> Job:
    spec = TrialSpec(trial.design, config.model_size(), config.recipe_at(trial.rate), trial.seed, "nowhere")
    return Job(trial.number, trial.rung, spec, Path("nowhere"))


class Chance:
    """Trains with chances of everything that can go wrong, each by its own draw."""

    def __init__(
        self, seed: int, dies: float = 0.0, diverges: float = 0.0, hangs: float = 0.0, too_large: float = 0.0
    ) -> None:
        self._random = random.Random(seed)
        self._faults: list[tuple[float, str, Fault]] = [
            (dies, "the worker process died", "machine"),
            (diverges, "Diverged: training loss is nan", "trial"),
            (too_large, "OutOfMemory: out of memory after step 0", "memory"),
        ]
        self._hangs = hangs

    def __call__(self, job: Job) -> tuple[float, RungResult | Failed]:
        duration, draw = self._random.uniform(1, 100), self._random.random()
        for share, reason, fault in self._faults:
            if draw < share:
                return duration, Failed(job, reason, fault)
            draw -= share
        return inf if draw < self._hangs else duration, result_of(job)


class Witness(Ledger):
    """A ledger that sees to it that no rung is recorded twice or out of turn, also over several lives."""

    seen: dict[int, int]

    def record(self, number: int, result: RungResult) -> None:
        assert result.rung == self.seen.get(number, 0) + 1, f"trial {number} came to rung {result.rung}"
        self.seen[number] = result.rung
        super().record(number, result)


def run(
    config: SweepConfig,
    storage: str | BaseStorage,
    train: Callable[[Job], tuple[float, RungResult | Failed]],
    slots: int = 2,
    stop_after: int | None = None,
    seen: dict[int, int] | None = None,
) -> Ledger:
    """One driver's life: until the sweep ends, or until it is stopped after so many events.

    seen: the rungs that earlier lives have recorded.
    """
    ledger = Ledger(config, storage) if seen is None else Witness(config, storage)
    if isinstance(ledger, Witness):
        ledger.seen = seen if seen is not None else {}
    driver = Driver(ledger, VirtualExecutor(slots, train), lambda trial: job_for(config, trial))
    events = 0

    def watch(snapshot: Snapshot) -> None:
        nonlocal events
        events += 1
        assert len(ledger.study) <= config.trials
        assert len(snapshot.running) <= slots
        assert sum(snapshot.states.values()) == len(ledger.study)
        if stop_after is not None and events >= stop_after:
            driver.stop()

    driver.watch = watch
    driver.run()
    return ledger
