"""How sensitive designs are to the learning rate: what one rate for all of them costs each.

Reads the trials of role `rate`, which were trained at `rate` times the learning rates of the sweep, next to the
design's own trials at 1. One rate for all is fair only where the rate that is best for each is nearly the same
(Sivaprasad et al. 2020). The lowest of several noisy losses is lucky, so `cost` is at most about what is said.
"""

from dataclasses import dataclass
from math import exp, log

import numpy as np
import pandas as pd

from analysis.table import comparable

__all__ = ["Sensitivity", "sensitivities"]


@dataclass(frozen=True)
class Sensitivity:
    """A design at `factors` of the learning rate, ascending, 1 among them, at the largest rung that all have reached.

    losses: geometric means over seeds, nats per token. best: the factor of the lowest. cost: log ratio of the loss at
    1 over the lowest. steepest: the largest log ratio over the loss at 1.
    """

    design: str
    role: str
    rung: int
    factors: tuple[float, ...]
    losses: tuple[float, ...]
    best: float
    cost: float | None
    steepest: float | None


def sensitivities(frame: pd.DataFrame, metric: str) -> tuple[Sensitivity, ...]:
    """Of every design with trials at another rate, in order of the name; frame: the whole table.

    Where every rate has a seed in common, only such seeds count, so that rates are compared on the same data. A rate
    that reached no rung is left out; without a loss at 1 and at another rate nothing is said.
    """
    tried = frame[frame["design"].isin(frame.loc[frame["role"] == "rate", "design"])]
    found = (_sensitivity(str(design), trials, metric) for design, trials in tried.groupby("design", sort=True))
    return tuple(sensitivity for sensitivity in found if sensitivity)


def _sensitivity(design: str, trials: pd.DataFrame, metric: str) -> Sensitivity | None:
    by_rate = {float(str(rate)): comparable(rows, metric) for rate, rows in trials.groupby("rate", sort=True)}
    by_rate = {rate: rows for rate, rows in by_rate.items() if len(rows)}
    shared = set[int]().union(*(rows["rung"] for rows in by_rate.values()))
    shared = shared.intersection(*(rows["rung"] for rows in by_rate.values()))
    if 1.0 not in by_rate or len(by_rate) < 2 or not shared:
        return None
    rung = int(max(shared))
    at_rung = {rate: rows[rows["rung"] == rung] for rate, rows in by_rate.items()}
    seeds = set(at_rung[1.0]["seed"]).intersection(*(rows["seed"] for rows in at_rung.values()))
    if seeds:
        at_rung = {rate: rows[rows["seed"].isin(list(seeds))] for rate, rows in at_rung.items()}
    losses = {rate: exp(float(np.log(rows[metric]).mean())) for rate, rows in at_rung.items()}
    best = min(losses, key=lambda rate: (losses[rate], abs(log(rate))))
    roles = [role for role in trials["role"] if role != "rate"]
    return Sensitivity(
        design=design,
        role=str(roles[0]) if roles else "arm",
        rung=rung,
        factors=tuple(losses),
        losses=tuple(losses.values()),
        best=best,
        cost=log(losses[1.0] / losses[best]),
        steepest=max(log(loss / losses[1.0]) for loss in losses.values()),
    )
