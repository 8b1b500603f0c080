"""What a search costs: sweeps on a table of real trainings, replayed on virtual time by real ledger and driver.

- Measured is the compute spent until a sweep holds an answer as good as that of the full grid: training time of all
  trials, finished, pruned and running, when its choice first comes within noise of the best design. As a share of what
  the grid costs, which is all designs to the end with one seed each.
- The choice is the best complete design with the first seed, which every design gets before it gets another: what the
  sweep itself knows, and paired. How good it is says the mean over all recorded seeds. Within noise: no worse than the
  best by more than one standard deviation of the difference of two paired trials, which is what a grid with one seed
  can resolve.
- A replay draws which recorded seed each seed of the sweep is, for all designs alike, since designs are compared on the
  same text; the order of the choices, in which a grid goes; the baseline, which every sweep trains first; and the
  sampler's seed. Seeds beyond those that were recorded begin again.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from lclab.bench.recorded import CONFIG, Recorded
from search_space.errors import UsageError
from sweeps.config import SweepConfig
from sweeps.driver import Driver
from sweeps.executor import Job, VirtualExecutor
from sweeps.ledger import Ledger
from trainer.trial import Heldout, RungResult, TrialSpec

__all__ = ["PRUNERS", "SAMPLERS", "Replay", "Search", "Summary", "replay", "searches", "summary", "table_of"]

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("none", "median", "halving", "wilcoxon", "cutoff")
SMALL = 16  # trials of a cut-off that is tuned to spend little


@dataclass(frozen=True)
class Search:
    """How a sweep searches. rungs: shares of a trial, out of those recorded. settings: other fields of the
    configuration; trials: 0 is as many as there are designs."""

    sampler: str
    pruner: str
    rungs: tuple[float, ...] = (0.5, 1.0)
    trials: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        words = [self.sampler, self.pruner, *(f"{name}={value}" for name, value in self.settings.items())]
        return " ".join([*words, f"trials={self.trials}"] if self.trials else words)

    def config(self, table: Recorded) -> SweepConfig:
        """Of a sweep on the table: nothing is planned beside one baseline, and the grid."""
        recipe = replace(CONFIG.recipe, rungs=list(self.rungs))
        trials = self.trials or len(table.designs)
        fields: dict[str, Any] = {"sampler": self.sampler, "pruner": self.pruner, "trials": trials, "recipe": recipe}
        return replace(CONFIG, **{"seeds": 1, "ablations": False, **fields, **self.settings})


@dataclass(frozen=True)
class Replay:
    """reached: compute until the choice came within noise of the best, infinite where it never did; spent: in all; both
    as shares of the grid's. regret: of the last choice over the best design, nats. right: it is within noise."""

    reached: float
    spent: float
    regret: float
    right: bool


@dataclass(frozen=True)
class Summary:
    """Over replays. reached: median, mean and nine tenths; the mean counts those that never reach as one grid. never:
    share of those that did not within the cost of the grid. right: share whose last choice is within noise."""

    search: str
    replays: int
    median: float
    mean: float
    most: float
    never: float
    spent: float
    right: float


def searches(trials: int = 0) -> list[Search]:
    """Every sampler with every pruner, what a sweep does by default, and a cut-off that spends little."""
    found = [Search(sampler, pruner, trials=trials) for sampler in SAMPLERS for pruner in PRUNERS]
    default = Search("tpe", "halving", trials=trials, settings={"ablations": True})
    return [*found, default, Search("random", "cutoff", trials=SMALL)]


class _Trainings:
    """What the executor trains: looks up how long it took and what came out. started: of each job (start, seconds)."""

    def __init__(self, table: Recorded, rungs: list[float], dice: random.Random) -> None:
        self.table, self.started = table, list[tuple[float, float]]()
        self.now: Callable[[], float] = lambda: 0.0
        recorded = CONFIG.recipe.rungs
        if not set(rungs) <= set(recorded):
            raise UsageError(f"rungs: {rungs} are not all among the recorded ones, {recorded}")
        self._end = [recorded.index(share) for share in rungs]
        self._design = {name: number for number, name in enumerate(table.designs)}
        self._seeds = dice.sample(range(table.seeds), table.seeds)

    def cell(self, design: str, seed: int) -> tuple[int, int]:
        """Place in the table of a design and of the sweep's seed."""
        return self._design[design], self._seeds[seed % self.table.seeds]

    def grid(self) -> float:
        """Seconds of all designs to the end, with the first seed of each."""
        return sum(float(self.table.seconds_DSR[self.cell(name, 0)].sum()) for name in self.table.designs)

    def spent(self) -> float:
        """Seconds of training until now, by all workers."""
        return sum(min(seconds, self.now() - start) for start, seconds in self.started)

    def __call__(self, job: Job) -> tuple[float, RungResult]:
        cell = self.cell(job.spec.design.name, job.spec.seed)
        ends = [-1, *self._end]
        first, last = ends[job.rung - 1] + 1, ends[job.rung]
        seconds = list(accumulate(self.table.seconds_DSR[cell].tolist()))
        duration = seconds[last] - (seconds[first - 1] if first else 0.0)
        self.started.append((self.now(), duration))
        loss, tokens = float(self.table.loss_DSR[cell][last]), int(self.table.tokens_DSR[cell][last])
        metric, documents = CONFIG.metric, self.table.documents_DSRH[cell][last].tolist()
        heldout = Heldout({metric: loss}, {metric: 0.0}, {metric: documents}, {metric: []})
        step = job.spec.recipe.rung_steps()[job.rung - 1]
        return duration, RungResult(job.rung, step, tokens, seconds[last], loss, heldout, [], [])


def replay(search: Search, table: Recorded, seed: int, workers: int = 2) -> Replay:
    """One sweep. The same seed gives the same sweep."""
    dice = random.Random(seed)
    config = _dealt(search.config(table), table, seed, dice)
    trainings = _Trainings(table, config.recipe.rungs, dice)
    ledger = Ledger(config, InMemoryStorage())
    executor = VirtualExecutor(workers, trainings)
    trainings.now = executor.now
    grid, truth = trainings.grid(), dict(zip(table.designs, table.truth_D.tolist(), strict=True))
    best, reached, chosen = min(truth.values()), inf, inf

    def watch(snapshot: object) -> None:
        nonlocal reached, chosen
        choice = _choice(ledger)
        chosen = truth[choice] - best if choice else inf
        if chosen <= table.noise:
            reached = min(reached, trainings.spent() / grid)

    def job(trial: Any) -> Job:
        spec = TrialSpec(trial.design, config.size, config.recipe, trial.seed, "")
        return Job(trial.number, trial.rung, spec, Path())

    Driver(ledger, executor, job, watch=watch).run()
    return Replay(reached, trainings.spent() / grid, chosen, chosen <= table.noise)


def _dealt(config: SweepConfig, table: Recorded, seed: int, dice: random.Random) -> SweepConfig:
    """With the choices of the space in another order, another baseline, and the name that the sampler is seeded by."""
    choices = {axis: dice.sample(values, len(values)) for axis, values in config.space.axes().items()}
    baseline = dice.choice(table.designs)
    return replace(config, name=f"replay-{seed}", space=replace(config.space, **choices), baseline=baseline)


def _choice(ledger: Ledger) -> str | None:
    """The best complete design with the first seed."""
    complete = [t for t in ledger.trials() if t.state == TrialState.COMPLETE and t.user_attrs["seed"] == 0]
    values = {trial.user_attrs["design"]: trial.value or 0.0 for trial in complete}
    return min(values, key=values.__getitem__, default=None)


def summary(search: Search, replays: list[Replay]) -> Summary:
    reached = np.array([r.reached if r.reached < 1 + 1e-9 else inf for r in replays])
    middle, most = np.quantile(reached, [0.5, 0.9], method="higher")
    return Summary(
        search.name,
        len(replays),
        float(middle),
        float(np.minimum(reached, 1).mean()),
        float(most),
        float(np.isinf(reached).mean()),
        float(np.mean([r.spent for r in replays])),
        float(np.mean([r.right for r in replays])),
    )


def table_of(
    searches: Iterable[Search], table: Recorded, seeds: int, processes: int = 2, tick: Callable[[str], None] = print
) -> Iterator[Summary]:
    """Each search, replayed with `seeds` seeds that are the same for all."""
    with ProcessPoolExecutor(processes) as pool:
        for search in searches:
            tick(f"{search.name}, {seeds} replays")
            yield summary(search, list(pool.map(partial(replay, search, table), range(seeds), chunksize=5)))
