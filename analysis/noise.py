"""Signal to noise of each loss: how far designs lie apart, in standard deviations between seeds of one design.

A loss with a larger ratio decides with fewer seeds (Heineman et al. 2025, signal and noise of evaluations). The spread
of true log losses is the variance of the designs' means less what seeds and held-out documents add to it (method of
moments, at least 0).
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
import pandas as pd

from analysis.contrasts import Means, means, shared_rung
from analysis.effects import Noise, pooled_noise
from analysis.table import METRICS, comparable

__all__ = ["Signal", "signals", "spread"]


@dataclass(frozen=True)
class Signal:
    """One loss at `rung`, over `designs` designs that are no controls.

    sigma: standard deviation of the log loss between seeds, on `df` degrees of freedom. spread: of true log losses
    between designs, None with fewer than three. ratio: spread / sigma.
    """

    metric: str
    rung: int
    sigma: float | None
    df: int
    spread: float | None
    ratio: float | None
    designs: int


def signals(frame: pd.DataFrame) -> tuple[Signal, ...]:
    """One for each loss that a trial has, at its `shared_rung`."""
    trials = frame[~frame["role"].isin(["control", "rate"])]
    found = []
    for metric in METRICS:
        rows = comparable(trials, metric)
        rung = shared_rung(rows)
        if rung is None:
            continue
        mean = means(rows[rows["rung"] == rung], metric)
        noise = pooled_noise(rows, metric)[rung]
        apart = spread(mean, noise)
        ratio = None if apart is None or noise.sigma is None else apart / noise.sigma
        found.append(Signal(metric, rung, noise.sigma, noise.df, apart, ratio, len(mean.designs)))
    return tuple(found)


def spread(mean: Means, noise: Noise) -> float | None:
    """Standard deviation of the true log losses of designs; None with fewer than three, or unknown noise."""
    count = len(mean.designs)
    if count < 3 or noise.sigma is None:
        return None
    added = noise.sigma**2 * float((1 / mean.seeds_D).mean())
    if mean.ratios_DK is not None:
        documents = mean.ratios_DK.shape[1]
        apart_DK = mean.ratios_DK - mean.ratios_DK.mean(axis=0)
        added += float((apart_DK**2).sum()) / ((count - 1) * documents * (documents - 1))
    return sqrt(max(float(np.var(mean.log_loss_D, ddof=1)) - added, 0.0))
