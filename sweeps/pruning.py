"""Which trials stop at a rung and which go on: pure decisions on what has reached the rung so far.

Notable choices:
- a rung's values are annealed ends and finite; lower is better; equal values are ranked by the trial's number, so that
  no decision hangs on chance;
- a trial is judged by its value at the rung. Optuna's median looks at its best value so far, which is the same as
  long as losses fall from rung to rung;
- only `cutoff` waits. It answers for certain, so no later event would have changed an answer.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from scipy.stats import wilcoxon

from sweeps.config import SweepConfig

__all__ = [
    *("Cutoff", "Halving", "Median", "Unpruned", "Wilcoxon", "make_pruner"),
    *("Decision", "Pruner", "Reached", "Standings"),
]

Decision = Literal["continue", "prune", "wait"]


@dataclass(frozen=True)
class Reached:
    """A trial at a rung. value: the sweep's metric, nats. documents: held-out loss of each document, in a fixed order
    (empty where not stored). complete: whether it has been trained to the end since."""

    number: int
    value: float
    documents: list[float]
    complete: bool = True


class Standings:
    """All compressor trials that have reached a rung so far, those pruned there included, kept in order, so that what
    they are asked for does not take longer the more of them there are."""

    def __init__(self, reached: Iterable[Reached] = ()) -> None:
        self._by_number: dict[int, Reached] = {}
        self._ranked: list[tuple[float, int]] = []
        self._complete: list[float] = []
        for one in reached:
            self.add(one)

    def __len__(self) -> int:
        return len(self._ranked)

    def __getitem__(self, number: int) -> Reached:
        return self._by_number[number]

    def __contains__(self, number: int) -> bool:
        return number in self._by_number

    def add(self, reached: Reached) -> None:
        self._by_number[reached.number] = reached
        insort(self._ranked, (reached.value, reached.number))
        if reached.complete:
            insort(self._complete, reached.value)

    def completed(self, number: int) -> None:
        """A trial has been trained to the end."""
        own = self._by_number[number] = replace(self._by_number[number], complete=True)
        insort(self._complete, own.value)

    def best(self) -> Reached:
        return self._by_number[self._ranked[0][1]]

    def lower(self, value: float) -> int:
        """How many have a value below."""
        return bisect_left(self._ranked, (value, -1))

    def better(self, number: int) -> int:
        """How many rank before trial `number`: by value and, where that is equal, by number."""
        return bisect_left(self._ranked, (self._by_number[number].value, number))

    def complete(self) -> Sequence[float]:
        """Values of the trials that have been trained to the end since, ascending."""
        return self._complete


class Pruner(Protocol):
    def decide(self, number: int, rung: int, reached: Standings, to_come: int) -> Decision:
        """What becomes of the running trial `number`, which is among those that have `reached` the `rung` (counted from
        1, never the last). to_come: trials that may still reach it. `wait`: asked again after every later event; never
        the answer where nothing is to come."""
        ...


class Unpruned:
    """Every trial is trained to the end."""

    def decide(self, number: int, rung: int, reached: Standings, to_come: int) -> Decision:
        return "continue"


@dataclass(frozen=True)
class Median:
    """Prunes what is worse than the median of the complete trials, once there are `startup` of them; as Optuna's
    `MedianPruner` (Golovin et al. 2017, section 3.2.2)."""

    startup: int

    def decide(self, number: int, rung: int, reached: Standings, to_come: int) -> Decision:
        complete = reached.complete()
        if len(complete) < max(1, self.startup):
            return "continue"
        middle = complete[(len(complete) - 1) // 2], complete[len(complete) // 2]
        return "prune" if reached[number].value > np.mean(middle) else "continue"


@dataclass(frozen=True)
class Halving:
    """Lets the best `factor`-th of what has arrived go on, or the best one while fewer than `factor` have: asynchronous
    successive halving (Li et al. 2020, algorithm 2) as in Optuna's `SuccessiveHalvingPruner`, on the sweep's rungs."""

    factor: int

    def decide(self, number: int, rung: int, reached: Standings, to_come: int) -> Decision:
        places = max(1, len(reached) // self.factor)
        return "continue" if reached.lower(reached[number].value) < places else "prune"


@dataclass(frozen=True)
class Wilcoxon:
    """Prunes what the signed-rank test over documents calls worse than the best trial at the rung, as Optuna's
    `WilcoxonPruner` over steps. A trial without documents, or with others than the best one's, goes on."""

    threshold: float = 0.1

    def decide(self, number: int, rung: int, reached: Standings, to_come: int) -> Decision:
        own, best = reached[number], reached.best()
        differences = np.subtract(own.documents, best.documents) if len(own.documents) == len(best.documents) else []
        if own == best or len(differences) < 2 or not np.all(np.isfinite(differences)):
            return "continue"
        if np.mean(best.documents) >= np.mean(own.documents):  # the test's ranks may contradict the means
            return "continue"
        # zsplit: defined also where all differences are zero.
        p = wilcoxon(differences, alternative="greater", zero_method="zsplit").pvalue
        return "prune" if p < self.threshold else "continue"


@dataclass(frozen=True)
class Cutoff:
    """All stop at the first rung, then the best `keep` of them go on to the end: what other pruners must beat.

    Where baselines are among the best `keep`, so many fewer arms go on.
    """

    keep: int

    def decide(self, number: int, rung: int, reached: Standings, to_come: int) -> Decision:
        if rung > 1:
            return "continue"
        better = reached.better(number)
        if better >= self.keep:
            return "prune"
        return "continue" if better + to_come < self.keep else "wait"


def make_pruner(config: SweepConfig) -> Pruner:
    match config.pruner:
        case "none":
            return Unpruned()
        case "median":
            return Median(config.startup)
        case "halving":
            return Halving(config.factor)
        case "wilcoxon":
            return Wilcoxon()
        case "cutoff":
            return Cutoff(config.keep)
