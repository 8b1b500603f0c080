"""Which trials stop at a rung and which go on: pure decisions on what has reached the rung so far.

Notable choices:
- a rung's values are annealed ends and finite; lower is better; equal values are ranked by the trial's number, so that
  no decision hangs on chance;
- a trial is judged by its value at the rung. Optuna's median looks at its best value so far, which is the same as
  long as losses fall from rung to rung;
- only `cutoff` waits. It answers for certain, so no later event would have changed an answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from scipy.stats import wilcoxon

from sweeps.config import SweepConfig

__all__ = ["Cutoff", "Decision", "Halving", "Median", "Pruner", "Reached", "Unpruned", "Wilcoxon", "make_pruner"]

Decision = Literal["continue", "prune", "wait"]


@dataclass(frozen=True)
class Reached:
    """A trial at a rung. value: the sweep's metric, nats. documents: held-out loss of each document, in a fixed order
    (empty where not stored). complete: whether it has been trained to the end since."""

    number: int
    value: float
    documents: list[float]
    complete: bool = True


class Pruner(Protocol):
    def decide(self, number: int, rung: int, reached: Sequence[Reached], to_come: int) -> Decision:
        """What becomes of trial `number`, which is among `reached`: all compressor trials that have reached `rung`
        (counted from 1, never the last) so far, in order of arrival, those pruned there included. to_come: trials that
        may still reach it. `wait`: asked again after every later event; never the answer where nothing is to come."""
        ...


class Unpruned:
    """Every trial is trained to the end."""

    def decide(self, number: int, rung: int, reached: Sequence[Reached], to_come: int) -> Decision:
        return "continue"


@dataclass(frozen=True)
class Median:
    """Prunes what is worse than the median of the complete trials, once there are `startup` of them; as Optuna's
    `MedianPruner` (Golovin et al. 2017, section 3.2.2)."""

    startup: int

    def decide(self, number: int, rung: int, reached: Sequence[Reached], to_come: int) -> Decision:
        complete = [r.value for r in reached if r.complete and r.number != number]
        if len(complete) < max(1, self.startup):
            return "continue"
        return "prune" if _find(number, reached).value > np.percentile(complete, 50) else "continue"


@dataclass(frozen=True)
class Halving:
    """Lets the best `factor`-th of what has arrived go on, or the best one while fewer than `factor` have: asynchronous
    successive halving (Li et al. 2020, algorithm 2) as in Optuna's `SuccessiveHalvingPruner`, on the sweep's rungs."""

    factor: int

    def decide(self, number: int, rung: int, reached: Sequence[Reached], to_come: int) -> Decision:
        own = _find(number, reached)
        arrived = [r.value for r in reached[: reached.index(own) + 1]]  # later ones take nothing back
        last = sorted(arrived)[max(1, len(arrived) // self.factor) - 1]
        return "continue" if own.value <= last else "prune"


@dataclass(frozen=True)
class Wilcoxon:
    """Prunes what the signed-rank test over documents calls worse than the best trial at the rung, as Optuna's
    `WilcoxonPruner` over steps. A trial without documents, or with others than the best one's, goes on."""

    threshold: float = 0.1

    def decide(self, number: int, rung: int, reached: Sequence[Reached], to_come: int) -> Decision:
        own, best = _find(number, reached), min(reached, key=_rank)
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

    def decide(self, number: int, rung: int, reached: Sequence[Reached], to_come: int) -> Decision:
        if rung > 1:
            return "continue"
        own = _find(number, reached)
        better = sum(_rank(r) < _rank(own) for r in reached)
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


def _find(number: int, reached: Sequence[Reached]) -> Reached:
    return next(r for r in reached if r.number == number)


def _rank(reached: Reached) -> tuple[float, int]:
    return reached.value, reached.number
