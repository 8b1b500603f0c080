"""Loss against what a design costs: which designs no other beats in both, and how sure that is.

Shapes: D designs, K held-out documents, S draws.

- All designs are compared at one rung, `shared_rung`. Controls are shown beside the front and are never on it.
- chance: the share of `DRAWS` draws of the losses in which the design is on the front. A draw adds to each mean log
  loss sigma sqrt(df / chi2_df) z / sqrt(n_d) for seeds (sigma shared, as it is) and a resampling of the documents, the
  same for all designs, by its normal limit. The means are not shrunk towards each other: the lowest of many designs
  is lucky, and its chance is that of the losses seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, sqrt

import numpy as np
import pandas as pd
from scipy import stats

from analysis.contrasts import Means, means, shared_rung
from analysis.effects import ALPHA, Noise, pooled_noise
from analysis.summary import Row
from analysis.table import comparable

__all__ = ["COSTS", "Front", "Point", "fronts", "on_front"]

COSTS = ("prefill_flops_per_token", "train_flops", "memory")
DRAWS = 2000
_SEED = 1


@dataclass(frozen=True)
class Point:
    """A design: geometric mean loss over seeds, in nats per token, against its cost.

    low, high: 95% interval of the loss on these documents, for seeds alone. front: no other design has a loss and a
    cost as low, one of them lower. chance: of being on the front, None where the noise is unknown and for controls.
    """

    design: str
    role: str
    rung: int
    loss: float
    cost: float
    low: float | None
    high: float | None
    front: bool
    chance: float | None


@dataclass(frozen=True)
class Front:
    """points: by cost. cost: FLOPs to prefill one token, FLOPs of the training up to the rung, or bytes at its peak."""

    cost: str
    points: tuple[Point, ...]


def fronts(frame: pd.DataFrame, metric: str, rows: Sequence[Row]) -> tuple[Front, ...]:
    """One for each of `COSTS` that two designs or more have; rows: the designs to show."""
    usable = comparable(frame[frame["role"] != "rate"], metric)
    usable = usable[usable["design"].isin([row.design for row in rows])]
    rung = shared_rung(usable)
    at_rung = usable[usable["rung"] == rung]
    if rung is None or at_rung.empty:
        return ()
    at_rung = at_rung.assign(train_flops=at_rung["train_flops_per_token"] * at_rung["tokens"])
    mean = means(at_rung, metric)
    noise = pooled_noise(at_rung, metric).get(rung, Noise(rung, None, 0, 0))
    roles = at_rung.drop_duplicates("design").set_index("design")["role"]
    roles_D = np.array([roles[name] for name in mean.designs])
    costs = at_rung.groupby("design")[list(COSTS)].mean().loc[list(mean.designs)]
    drawn_SD = _draws(mean, noise)
    found = []
    for cost in COSTS:
        known_D = np.isfinite(costs[cost].to_numpy()) & (costs[cost].to_numpy() > 0)
        if (known_D & (roles_D != "control")).sum() >= 2:
            found.append(Front(cost, _points(mean, noise, roles_D, costs[cost].to_numpy(), known_D, drawn_SD)))
    return tuple(found)


def on_front(cost_D: np.ndarray, loss_SD: np.ndarray) -> np.ndarray:
    """Which designs no other beats, (S, D): none as low in cost and loss and lower in one of them."""
    order = np.argsort(cost_D, kind="stable")
    _, first = np.unique(cost_D[order], return_index=True)
    lowest = np.minimum.reduceat(loss_SD[:, order], first, axis=1)  # of each cost
    before = np.minimum.accumulate(np.pad(lowest, ((0, 0), (1, 0)), constant_values=np.inf), axis=1)[:, :-1]
    place = np.searchsorted(cost_D[order][first], cost_D)
    return (loss_SD == lowest[:, place]) & (loss_SD < before[:, place])


def _points(
    mean: Means, noise: Noise, roles_D: np.ndarray, cost_D: np.ndarray, known_D: np.ndarray, drawn_SD: np.ndarray | None
) -> tuple[Point, ...]:
    own = np.flatnonzero(known_D & (roles_D != "control"))
    front = np.zeros(len(cost_D), dtype=bool)
    front[own] = on_front(cost_D[own], mean.log_loss_D[None, own])[0]
    chance = dict(zip(own, on_front(cost_D[own], drawn_SD[:, own]).mean(axis=0), strict=True)) if (
        drawn_SD is not None
    ) else {}  # fmt: skip
    points = []
    for d in np.flatnonzero(known_D)[np.argsort(cost_D[known_D], kind="stable")]:
        loss = exp(mean.log_loss_D[d])
        half = None
        if noise.sigma is not None and roles_D[d] != "control":
            half = float(stats.t.isf(ALPHA / 2, noise.df)) * noise.sigma / sqrt(mean.seeds_D[d])
        points.append(
            Point(
                design=mean.designs[d],
                role=str(roles_D[d]),
                rung=noise.rung,
                loss=loss,
                cost=float(cost_D[d]),
                low=None if half is None else loss * exp(-half),
                high=None if half is None else loss * exp(min(half, 50.0)),
                front=bool(front[d]),
                chance=float(chance[d]) if d in chance else None,
            )
        )
    return tuple(points)


def _draws(mean: Means, noise: Noise) -> np.ndarray | None:
    """Log losses, (S, D)."""
    if noise.sigma is None:
        return None
    random = np.random.default_rng(_SEED)
    sigma_S1 = noise.sigma * np.sqrt(noise.df / random.chisquare(noise.df, (DRAWS, 1)))
    drawn = mean.log_loss_D + sigma_S1 * random.standard_normal((DRAWS, len(mean.designs))) / np.sqrt(mean.seeds_D)
    if mean.ratios_DK is None:
        return drawn
    count = mean.ratios_DK.shape[1]
    return drawn + random.standard_normal((DRAWS, count)) @ (mean.ratios_DK - 1).T / sqrt(count * (count - 1))
