"""The distribution of a sum of errors whose sizes are estimated, each with its own degrees of freedom.

An estimate whose error is made of independent parts with standard errors s_i, known on v_i degrees of freedom, is
judged by sum_i s_i T_i with T_i Student's on v_i: the fiducial distribution of Behrens (1929) and Fisher (1935). Its
intervals are slightly too wide rather than too narrow (Robinson 1976), where Welch and Satterthwaite's are too narrow
for few degrees of freedom. The sum is a normal variable with a random variance sum_i s_i^2 v_i / chi2_i, so that
tail(x) = E 2 Phi(-x / sd): an integral over log chi2_i of an analytic function that falls off quickly on both sides,
which the trapezoidal rule gives to about eight digits (Trefethen and Weideman 2014).
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import optimize, special

__all__ = ["half_width", "two_sided"]

SMALLEST = 1e-12
"""No p-value below it is told: chi2 is cut off where about as little is left."""

_NEGLIGIBLE = 1e-5  # of the largest standard error
_BIN = 0.01


def two_sided(value: float, errors: Sequence[float], dfs: Sequence[float]) -> float:
    """P(|sum_i errors_i T_i| > |value|), at least `SMALLEST`. Without any error 1 for the value 0, else `SMALLEST`."""
    kept = _kept(errors, dfs)
    if not kept:
        return 1.0 if value == 0 else SMALLEST
    if len(kept) == 1:
        ((error, df),) = kept
        return max(float(2 * special.stdtr(df, -abs(value) / error)), SMALLEST)
    return min(max(_tail(abs(value), *_mixture(kept)), SMALLEST), 1.0)


def half_width(errors: Sequence[float], dfs: Sequence[float], alpha: float = 0.05) -> float:
    """Half the width of the interval of 1 - alpha: the value at which `two_sided` is alpha."""
    kept = _kept(errors, dfs)
    if not kept:
        return 0.0
    quantiles = [-float(special.stdtrit(df, alpha / 2)) for _, df in kept]
    if len(kept) == 1:
        return kept[0][0] * quantiles[0]
    sds, weights = _mixture(kept)
    highest = sum(error * quantile for (error, _), quantile in zip(kept, quantiles, strict=True))
    lowest = max(error * quantile for (error, _), quantile in zip(kept, quantiles, strict=True))
    return float(optimize.brentq(lambda x: _tail(x, sds, weights) - alpha, 0.9 * lowest, 1.1 * highest, rtol=1e-8))


def _kept(errors: Sequence[float], dfs: Sequence[float]) -> list[tuple[float, float]]:
    largest = max(errors, default=0.0)
    return [(float(e), float(df)) for e, df in zip(errors, dfs, strict=True) if e > _NEGLIGIBLE * largest]


def _tail(value: float, sds: np.ndarray, weights: np.ndarray) -> float:
    return float(2 * weights @ special.ndtr(-value / sds))


def _mixture(parts: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviations of the normal variable and their weights, flat."""
    variances, weights = np.zeros(1), np.ones(1)
    for error, df in parts:
        factors, shares = _inverse_chi2(df)
        variances = np.add.outer(variances, error**2 * factors).ravel()
        weights = np.multiply.outer(weights, shares).ravel()
        variances, weights = _binned(variances, weights)
    return np.sqrt(variances), weights / weights.sum()


def _binned(variances: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points closer than `_BIN` of their size joined at their mean: a third error would make 100,000 of them."""
    cells = np.floor(np.log(np.maximum(variances, np.finfo(float).tiny)) / _BIN).astype(int)
    cells -= cells.min()
    shares, sums = np.bincount(cells, weights), np.bincount(cells, weights * variances)
    used = shares > 0
    return sums[used] / shares[used], shares[used]


@lru_cache(maxsize=256)
def _inverse_chi2(df: float) -> tuple[np.ndarray, np.ndarray]:
    """df / chi2 and its weights, at equal steps of log chi2."""
    if not np.isfinite(df):
        return np.ones(1), np.ones(1)
    step = min(0.5, 0.55 * np.sqrt(2 / df))
    low, high = np.log(special.chdtri(df, [1 - 1e-13, 1e-13]))
    low = min(low, 2 / df * (np.log(1e-14) + special.gammaln(df / 2 + 1)) + np.log(2))  # chdtri is coarse so near 1
    y = np.arange(low, high + step, step)
    log_density = df / 2 * y - np.exp(y) / 2
    weights = np.exp(log_density - log_density.max())
    return df * np.exp(-y), weights / weights.sum()
