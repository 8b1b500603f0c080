"""Sweeps on virtual time: real ledger, real driver, trials whose losses are made up from design and seed."""

import hashlib
import random
from pathlib import Path

from optuna.storages import BaseStorage

from sweeps.config import SweepConfig, load
from sweeps.driver import Driver
from sweeps.executor import Failed, Job, VirtualExecutor
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
    spec = TrialSpec(trial.design, config.model_size(), config.recipe, trial.seed, "nowhere")
    return Job(trial.number, trial.rung, spec, Path("nowhere"))


class Chance:
    """Trains with chances of the worker dying and of the trial diverging, and remembers what ran."""

    def __init__(self, seed: int, dies: float = 0.0, diverges: float = 0.0) -> None:
        self._random, self._dies, self._diverges = random.Random(seed), dies, diverges
        self.finished: list[tuple[int, int]] = []  # (trial, rung)

    def __call__(self, job: Job) -> tuple[float, RungResult | Failed]:
        duration, draw = self._random.uniform(1, 100), self._random.random()
        if draw < self._dies:
            return duration, Failed(job, "the worker process died", machine=True)
        if draw < self._dies + self._diverges:
            return duration, Failed(job, "Diverged: training loss is nan", machine=False)
        self.finished.append((job.number, job.rung))
        return duration, result_of(job)


def run(
    config: SweepConfig, storage: str | BaseStorage, train: Chance, slots: int = 2, stop_after: int | None = None
) -> Ledger:
    """One driver's life: until the sweep ends, or until it is stopped after so many events."""
    ledger = Ledger(config, storage)
    ledger.plan()
    driver = Driver(ledger, VirtualExecutor(slots, train), lambda trial: job_for(config, trial))
    events = 0

    def watch(snapshot: object) -> None:
        nonlocal events
        events += 1
        if stop_after is not None and events >= stop_after:
            driver.stop()

    driver.watch = watch
    driver.run()
    return ledger
