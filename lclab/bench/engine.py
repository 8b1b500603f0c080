"""What a sweep costs beside the training: the driver's own time on virtual time, and wall time on Ray.

- `driven`: CPU time of ledger, driver and storage for trials that take no time, and for an event (a trial at a rung,
  what follows from it, the next trial) when so many trials are in the study already.
- `real`: trials on Ray, the study in SQLite, without MLflow. First the warm hand-over: jobs whose rung has been
  reached before, which a worker reads back at once, so that what is left of a trial is ledger, driver and Ray. Then
  trials that train: wall time of all workers over the trials' own training time, which leaves out building the model,
  laying out the held-out set and evaluating on it; the workers are warm by then.
"""

import random
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Literal

from optuna.storages import InMemoryStorage

from search_space.design import Design
from search_space.space import Space
from sweeps.config import SweepConfig
from sweeps.driver import Driver
from sweeps.executor import Executor, Job, VirtualExecutor
from sweeps.ledger import Assignment, Ledger
from trainer.corpus import Corpus
from trainer.trial import Heldout, RungResult, TrialSpec

__all__ = ["Driven", "Real", "driven", "real"]

Kept = Literal["memory", "sqlite"]

SPACE = Space(
    pooling=["mean", "concat", "eos", "attention", "conv"],
    ratio=[4, 8, 16, 32],
    window=[32, 64, 128, 256],
    overlap=[0, 8, 16],
    mask=["causal", "bidirectional"],
    adapter=["mlp", "attn_mlp", "mlp_attn"],
)
"""1,260 designs, so that samplers and ledger have what they have in a large sweep."""

_DOCUMENTS = 48  # of a held-out set
_HANDED_OVER = 40  # trials whose hand-over is measured


@dataclass(frozen=True)
class Driven:
    """trials: in all, and events of them. seconds: CPU time of the first 1,000 trials, or of all. at: CPU seconds of an
    event, by how many trials the study had."""

    sampler: str
    storage: str
    trials: int
    events: int
    seconds: float
    at: dict[int, float]


@dataclass(frozen=True)
class Real:
    """handover: seconds of a worker from one trial to the next. training: of all trials; wall: of all workers; ratio:
    wall over training."""

    workers: int
    trials: int
    handover: float
    training: float
    wall: float
    ratio: float


def driven(sampler: Literal["tpe", "random"], storage: Kept, trials: int) -> Driven:
    """A sweep of trials that take no time, with the default rungs and pruner."""
    config = SweepConfig(space=SPACE, seeds=1, controls=[], ablations=False, trials=trials, sampler=sampler)
    dice, clock = random.Random(0), time.process_time
    ends: list[tuple[int, float]] = []  # trials in the study, CPU time

    def train(job: Job) -> tuple[float, RungResult]:
        return 1.0, _result(job, dice.random())

    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(config, InMemoryStorage() if storage == "memory" else f"sqlite:///{folder}/optuna.db")
        start = clock()  # the schema of a database is not a trial's
        executor = VirtualExecutor(config.workers, train)
        driver = Driver(ledger, executor, lambda trial: _job(config, trial, "", Path()))
        driver.watch = lambda snapshot: ends.append((len(ledger.study), clock()))
        driver.run()
        seconds = max(at for trials, at in ends if trials <= 1_000) - start
    return Driven(sampler, storage, trials, len(ends), seconds, _per_event(ends))


def _per_event(ends: list[tuple[int, float]]) -> dict[int, float]:
    """CPU seconds of an event over the last half of the trials up to each power of ten."""
    found = {}
    for size in (100, 1_000, 10_000):
        window = [at for trials, at in ends if size // 2 < trials <= size]
        if ends[-1][0] >= size:
            found[size] = (window[-1] - window[0]) / (len(window) - 1)
    return found


def real(config: SweepConfig, corpus: Corpus, folder: Path, trials: int) -> Real:
    """As many trials of `config` on Ray, rounded up to what gives every worker as many. `folder` keeps them."""
    from sweeps.ray_executor import RayExecutor

    workers = config.workers
    recipe, source = replace(config.recipe, rungs=[1.0]), str(corpus.folder.resolve())
    plain = {"seeds": 1, "controls": [], "ablations": False, "sampler": "random", "pruner": "none", "recipe": recipe}
    trials = workers * ceil(trials / workers)
    known = replace(config, **plain, name="handover", trials=workers + _HANDED_OVER)
    trained = replace(config, **plain | {"seeds": trials}, name="trained", trials=trials)  # equals: no worker waits
    with closing(RayExecutor(workers, config.threads, config.address)) as executor:
        for number in range(known.trials):
            spec = TrialSpec(Design.parse(config.baseline), config.model_size(), recipe, 0, source)
            _result(Job(number, 1, spec, Path()), 1.0).save(_made(folder / known.name / str(number)))
        ends = _run(known, executor, source, folder)[workers - 1 :]  # the first ones wait for the imports
        handover = workers * (ends[-1] - ends[0]) / (len(ends) - 1)
        start = time.monotonic()
        wall = sum(end - start for end in _run(trained, executor, source, folder)[-workers:])
    results = [RungResult.load(path) for path in sorted((folder / trained.name).glob("*/rung-1.json"))]
    training = sum(result.seconds for result in results)
    return Real(workers, trials, handover, training, wall, wall / training)


def _run(config: SweepConfig, executor: Executor, corpus: str, folder: Path) -> list[float]:
    """When each trial ended."""
    ledger = Ledger(config, f"sqlite:///{_made(folder)}/{config.name}.db")
    ends: list[float] = []
    driver = Driver(
        ledger, executor, lambda trial: _job(config, trial, corpus, folder / config.name / str(trial.number))
    )

    def watch(snapshot: object) -> None:
        done = len(ledger.study) - ledger.states["running"]
        ends.extend([time.monotonic()] * (done - len(ends)))

    driver.watch = watch
    driver.run()
    return ends


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _job(config: SweepConfig, trial: Assignment, corpus: str, folder: Path) -> Job:
    spec = TrialSpec(trial.design, config.model_size(), config.recipe, trial.seed, corpus)
    return Job(trial.number, trial.rung, spec, folder.resolve())


def _result(job: Job, loss: float) -> RungResult:
    """Of a trial that was not trained."""
    recipe = job.spec.recipe
    step = recipe.rung_steps()[job.rung - 1]
    tokens = step * recipe.pieces * recipe.piece
    heldout = Heldout({"parallel": loss}, {"parallel": 0.0}, {"parallel": [loss] * _DOCUMENTS}, {"parallel": []})
    return RungResult(job.rung, step, tokens, 0.0, loss, heldout, [(tokens, loss, 1.0)], [])
