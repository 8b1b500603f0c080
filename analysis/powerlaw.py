"""Saturating power laws L(x) = E + A x^-alpha of a loss L against compute, tokens or parameters x.

Notable choices:
- `fit` minimises a Huber loss on the log loss from several starts, as approach 3 of Hoffmann et al. (2022, arXiv
  2203.15556) does; Besiroglu et al. (2024, arXiv 2404.10102) repeated that with the bootstrap for its errors. Their
  delta of 0.001 suits hundreds of single runs. Here points are few and means over seeds with a known error, so delta is
  1.345 standard errors (Huber 1964: 95% efficiency for normal noise); without errors it is 0.001.
- three parameters need four distinct x (`FEWEST`). With fewer, `fit` sets E = 0: a line in logs.
- what a fit cannot tell, an extrapolation must not hide. `ensemble` draws laws in two steps: the floor E by how well
  the best law with that E fits the points (profile likelihood of Student's t, since the noise is estimated; half of the
  prior on E = 0, the pure power law, and half flat up to `HIGHEST` of the smallest loss); then A and alpha by weighted
  least squares of log(L - E) on log x through a bootstrap draw of the points. Three points hardly narrow E and two not
  at all. An interval (`middle`) covers that of the pure power law and that of the laws with a floor, each of the two
  that at least `KEPT` of the draws follow. It held a run in 93 to 100% of cases (E of 0, 1, 2; two to five points over
  one to three tenfolds; 0.5 to 4 tenfolds ahead; 200 ladders per case); with E drawn from one distribution alone that
  was 68 to 95% for pure power laws (flat prior), or 89 to 100% for laws with a floor (half of the prior on E = 0).
- points that no law meets within their errors have them widened by the square root of chi^2 per degree of freedom (the
  scale factor of the Particle Data Group).

Shapes: P points, S draws, F floors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from search_space.errors import UsageError

__all__ = [
    *("DRAWS", "FEWEST", "HIGHEST", "KEPT", "RESAMPLED", "Ensemble", "Law"),
    *("bootstrap", "ensemble", "fit", "lines", "middle", "widening"),
]

FEWEST = 4  # distinct x, of a law with a floor
RESAMPLED = 8  # seeds at every point, from which on they are resampled; fewer would look quieter than they are
HIGHEST = 0.95
KEPT = 0.05
DRAWS = 2000

_DELTA = 1.345
_UNKNOWN = 1e-3 / _DELTA  # error where none is given, so that delta is Hoffmann's
_FLOORS = 39
_STARTS = (0.02, 0.3, 0.6, 0.9)  # floors, as shares of the smallest loss
_STEEPEST = 10.0


@dataclass(frozen=True)
class Law:
    """E, in the unit of the loss; A, what is above it at x = 1; alpha, at least 0 (a law does not rise).

    identified: whether E was fitted; otherwise it was set to 0 because there are fewer than `FEWEST` distinct x.
    """

    E: float
    A: float
    alpha: float
    points: int
    identified: bool

    def at(self, x: float | np.ndarray) -> np.ndarray:
        return self.E + self.A * np.asarray(x, dtype=float) ** -self.alpha


@dataclass(frozen=True)
class Ensemble:
    """Laws that the points allow, one per draw: E, log A and alpha, each (S,)."""

    E_S: np.ndarray
    log_A_S: np.ndarray
    alpha_S: np.ndarray

    @property
    def pure_S(self) -> np.ndarray:
        return self.E_S == 0

    def at(self, x: float) -> np.ndarray:
        """(S,) losses of these laws, without the noise of a run."""
        return self.E_S + np.exp(self.log_A_S - self.alpha_S * np.log(x))


def fit(x: Sequence[float], loss: Sequence[float], errors: Sequence[float] | None = None) -> Law:
    """The law of points (module docstring for the method).

    errors: standard errors of the log losses. Raises `UsageError` for fewer than two distinct x, and for numbers that
    are not positive and finite.
    """
    x_P, loss_P = _positive("x", x), _positive("loss", loss)
    errors_P = np.full(len(x_P), _UNKNOWN) if errors is None else _positive("errors", errors)
    distinct = len(np.unique(x_P))
    if distinct < 2:
        raise UsageError(f"x: a law takes at least 2 distinct points, found {distinct}")
    free = distinct >= FEWEST
    lowest, center = loss_P.min(), np.log(x_P).mean()  # around the center A and alpha hardly depend on each other
    log_P = np.log(x_P) - center

    def residuals(theta: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            above = np.exp(np.clip(theta[0] - theta[1] * log_P, -700, 700))
        floor = theta[2] * lowest if free else 0.0
        return (np.log(floor + above) - np.log(loss_P)) / errors_P

    bounds = ([-np.inf, 0.0, 0.0], [np.inf, _STEEPEST, 1.0]) if free else ([-np.inf, 0.0], [np.inf, _STEEPEST])
    found = []
    for share in _STARTS if free else (0.0,):
        height, slope = lines(log_P, np.log(loss_P - share * lowest)[None], (1 - share * lowest / loss_P) / errors_P)
        start = [height[0], np.clip(-slope[0], 1e-3, _STEEPEST / 2), share][: len(bounds[0])]
        found.append(
            optimize.least_squares(
                residuals, start, bounds=bounds, loss="huber", f_scale=_DELTA, x_scale="jac", xtol=1e-9, ftol=1e-10,
                gtol=1e-10,
            )
        )  # fmt: skip
    theta = min(found, key=lambda each: each.cost).x
    alpha = float(theta[1])
    floor = float(theta[2] * lowest) if free else 0.0
    return Law(floor, float(np.exp(theta[0] + alpha * center)), alpha, len(x_P), free)


def bootstrap(
    seeds: Sequence[np.ndarray], sigma_P: np.ndarray, df_P: np.ndarray, random: np.random.Generator, draws: int = DRAWS
) -> np.ndarray:
    """(S, P) draws of the mean log loss of every point.

    seeds: P arrays of log losses. With `RESAMPLED` seeds at every point they are resampled (Efron 1979); otherwise the
    noise is normal with the standard deviation sigma_P between seeds, which is known on df_P degrees of freedom and
    therefore drawn as well, so that a mean has Student's t.
    """
    means_P, count_P = np.array([own.mean() for own in seeds]), np.array([len(own) for own in seeds])
    if count_P.min() >= RESAMPLED:
        return np.stack([own[random.integers(len(own), size=(draws, len(own)))].mean(axis=1) for own in seeds], axis=1)
    scale_SP = np.sqrt(df_P / random.chisquare(df_P, (draws, len(seeds))))
    return means_P + sigma_P / np.sqrt(count_P) * scale_SP * random.standard_normal((draws, len(seeds)))


def ensemble(
    x: Sequence[float], logs_SP: np.ndarray, log_P: np.ndarray, errors_P: np.ndarray, df: float,
    random: np.random.Generator,
) -> Ensemble:  # fmt: skip
    """Laws through `bootstrap` draws of points with mean log losses log_P and standard errors errors_P.

    df: degrees of freedom of the errors. Raises `UsageError` as `fit` does.
    """
    x_P, loss_P = _positive("x", x), np.exp(log_P)
    if len(np.unique(x_P)) < 2:
        raise UsageError("x: a law takes at least 2 distinct points, found 1")
    center = np.log(x_P).mean()
    at_P = np.log(x_P) - center
    floors_F = np.linspace(0, HIGHEST, _FLOORS) * loss_P.min()
    left_FP = loss_P - floors_F[:, None]
    weights_FP = (left_FP / loss_P / errors_P) ** 2
    middle_F, slope_F = lines(at_P, np.log(left_FP), np.sqrt(weights_FP), 0.0)
    apart_FP = np.log(left_FP) - middle_F[:, None] - slope_F[:, None] * at_P
    chi2_F = (weights_FP * apart_FP**2).sum(axis=1)
    wider = widening(chi2_F.min(), len(x_P) - 3)
    share_F = (1 + chi2_F / wider**2 / df) ** (-(df + 1) / 2)
    share_F[0] *= _FLOORS - 1
    chosen_S = random.choice(_FLOORS, size=len(logs_SP), p=share_F / share_F.sum())
    floor_S = floors_F[chosen_S]
    losses_SP = np.exp(log_P + wider * (logs_SP - log_P))
    left_SP = np.maximum(losses_SP - floor_S[:, None], 1e-3 * losses_SP)  # a draw may be below its floor
    middle_S, slope_S = lines(at_P, np.log(left_SP), np.sqrt(weights_FP)[chosen_S], 0.0)
    return Ensemble(floor_S, middle_S - slope_S * center, -slope_S)


def lines(
    at_P: np.ndarray, values_SP: np.ndarray, precision: np.ndarray, steepest: float = np.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted least squares of every row on at_P: values where at_P is 0, and slopes, (S,) and (S,).

    precision: one over standard errors, (P,) or (S, P). steepest: the largest slope that a line may have.
    """
    weights_SP = np.broadcast_to(precision**2, values_SP.shape)
    total_S = weights_SP.sum(axis=1)
    x_S = weights_SP @ at_P / total_S
    y_S = (weights_SP * values_SP).sum(axis=1) / total_S
    off_SP = at_P - x_S[:, None]
    slope_S = (weights_SP * off_SP * values_SP).sum(axis=1) / (weights_SP * off_SP**2).sum(axis=1)
    slope_S = np.minimum(slope_S, steepest)
    return y_S - slope_S * x_S, slope_S


def widening(chi2: float, df: int) -> float:
    """Factor on the errors of points that lie farther from their curve than the errors explain; at least 1."""
    return float(np.sqrt(max(1.0, chi2 / df))) if df > 0 else 1.0


def middle(draws_S: np.ndarray, pure_S: np.ndarray | None = None) -> tuple[float, float, float]:
    """Median of draws, and the ends of their 95% interval; pure_S: which of them are of a pure power law."""
    kinds = [draws_S] if pure_S is None else [draws_S[pure_S], draws_S[~pure_S]]
    ends = [np.quantile(kind, [0.025, 0.975]) for kind in kinds if len(kind) >= KEPT * len(draws_S)]
    return float(np.median(draws_S)), float(min(low for low, _ in ends)), float(max(high for _, high in ends))


def _positive(name: str, values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.size == 0 or not (np.isfinite(array) & (array > 0)).all():
        raise UsageError(f"{name}: a law takes positive finite numbers, found {values}")
    return array
