"""A weighted sum of designs' mean log losses, with its interval: what every comparison of designs comes down to.

Shapes: D designs, K held-out documents that all of them have.

Sources of error, as in `effects`: seeds, sigma^2 sum_d w_d^2 / n_d with the pooled standard deviation sigma of the
log loss; documents, the spread over documents of sum_d w_d loss_dk / mean_d (the delta method for the log of a mean,
paired by document); and, where the caller's model of the designs leaves a residual, lack of fit, tau^2 sum_d w_d^2.
Each has its degrees of freedom; `quantiles` joins them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

import numpy as np
import pandas as pd

from analysis.effects import ALPHA, Noise
from analysis.quantiles import half_width, two_sided, with_lack
from search_space.errors import UsageError

__all__ = ["Contrast", "Means", "Residual", "contrast", "contrast_of", "means", "shared_rung"]


@dataclass(frozen=True)
class Contrast:
    """value: log ratio, sum over designs of w_d times the mean over seeds of the log loss.

    low, high: its 95% interval; p: two-sided, of this contrast alone. seed_error, document_error: standard errors.
    """

    value: float
    low: float
    high: float
    p: float
    seed_error: float
    document_error: float


@dataclass(frozen=True)
class Means:
    """Designs at one rung: names, seeds (D,), mean log losses (D,), and their losses per document over their mean.

    ratios_DK: None where fewer than two documents are shared, or rows differ in their number of documents.
    """

    designs: tuple[str, ...]
    seeds_D: np.ndarray
    log_loss_D: np.ndarray
    ratios_DK: np.ndarray | None


@dataclass(frozen=True)
class Residual:
    """Of a model of designs: its mean square on `df` degrees of freedom, and what is expected in it besides the lack
    of fit tau^2: of_sigma2 times the variance between seeds, and of_documents."""

    mean_square: float
    df: int
    of_sigma2: float
    of_documents: float


def means(rows: pd.DataFrame, metric: str) -> Means:
    """Comparable rows of one rung, by design in order of the name. Documents count only where every row has them.

    Raises `UsageError` for rows of more than one rung.
    """
    if rows["rung"].nunique() > 1:
        raise UsageError(f"rung: a contrast is of one rung, found {sorted(rows['rung'].unique().tolist())}")
    codes, names = pd.factorize(rows["design"], sort=True)
    seeds_D = np.bincount(codes, minlength=len(names))
    log_loss_D = np.bincount(codes, np.log(rows[metric].to_numpy()), len(names)) / np.maximum(seeds_D, 1)
    return Means(tuple(map(str, names)), seeds_D, log_loss_D, _ratios(rows[f"{metric}_documents"], codes, seeds_D))


def shared_rung(rows: pd.DataFrame) -> int | None:
    """The largest rung that at least half of the designs in comparable `rows` have reached; controls do not count.

    None without any row.
    """
    reached = rows[rows["role"] != "control"].groupby("design")["rung"].max()
    return None if reached.empty else int(reached.quantile(0.5, interpolation="higher"))


def contrast(
    rows: pd.DataFrame,
    weights: Mapping[str, float],
    noise: Noise,
    metric: str,
    residual: Residual | None = None,
) -> Contrast | None:
    """The contrast of `weights` (design to weight, sum 0) over comparable `rows` of one rung.

    residual: of the model of which this is an estimate; None for a statement of these designs alone.
    None where the designs share fewer than two documents, or the noise is unknown. Raises `UsageError` for weights
    that do not sum to 0, a design that has no row, and rows of more than one rung.
    """
    if abs(sum(weights.values())) > 1e-9 * max(1.0, *map(abs, weights.values())):
        raise UsageError(f"weights: a contrast sums to 0, found {sum(weights.values()):.3g}")
    used = rows[rows["design"].isin([design for design, weight in weights.items() if weight])]
    known = means(used, metric)
    if missing := sorted(design for design, weight in weights.items() if weight and design not in known.designs):
        raise UsageError(f"weights: no rows of {', '.join(missing)}")
    return contrast_of(known, np.array([weights[design] for design in known.designs]), noise, residual)


def contrast_of(known: Means, weights_D: np.ndarray, noise: Noise, residual: Residual | None = None) -> Contrast | None:
    """`contrast` of what `means` has gathered, weights in the order of its designs."""
    if noise.sigma is None or known.ratios_DK is None or not len(weights_D):
        return None
    value = float(weights_D @ known.log_loss_D)
    per_seed = float((weights_D**2 / known.seeds_D).sum())
    seed_error = noise.sigma * sqrt(per_seed)
    count = known.ratios_DK.shape[1]
    document_error = float(np.std(weights_D @ known.ratios_DK, ddof=1)) / sqrt(count)
    errors, dfs, lack = [document_error], [count - 1], None
    if residual is None:
        errors, dfs = [seed_error, *errors], [noise.df, *dfs]
    else:
        lack = with_lack(
            (noise.sigma**2, noise.df),
            (residual.mean_square, residual.df),
            (residual.of_sigma2, residual.of_documents),
            (per_seed, float(weights_D @ weights_D)),
        )
    half = half_width(errors, dfs, ALPHA, lack)
    return Contrast(value, value - half, value + half, two_sided(value, errors, dfs, lack), seed_error, document_error)


def _ratios(documents: pd.Series, codes: np.ndarray, seeds_D: np.ndarray) -> np.ndarray | None:
    if len({len(values) for values in documents}) != 1:
        return None
    losses_RK = np.array(documents.to_list(), dtype=float)
    losses_RK = losses_RK[:, np.isfinite(losses_RK).all(axis=0)]
    if losses_RK.shape[1] < 2:
        return None
    sums_DK = np.zeros((len(seeds_D), losses_RK.shape[1]))
    np.add.at(sums_DK, codes, losses_RK)
    return sums_DK / sums_DK.mean(axis=1, keepdims=True)
