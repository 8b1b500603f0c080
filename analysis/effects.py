"""Every design against the baseline: difference, interval, p-value, verdict, and the seeds that would decide.

Notable choices, with figures of a simulation (400 to 600 sweeps per case, three baseline seeds, twelve arms of one
seed, seed noise constant, proportional to the loss, or in between):
- seeds are pooled as the standard deviation `sigma` of the log loss, over the baseline and all arms with two or more
  seeds at the rung, and the test is one of the log ratio. It covers as the plain scale does and, where losses are
  spread wide, finds 37% of the differences instead of 26% (Welch-Satterthwaite for both): with two degrees of
  freedom and noise of a fifth of the loss, no improvement however large is significant on the plain scale.
- all seeds of both sides are used, and seeds in common are not singled out: with one seed per arm the difference
  to the same seed alone has variance 2 sigma^2 instead of 4/3 sigma^2, better only if more than half of the seed
  variance is shared between designs (about a fifth was, in a prototype). Shared noise makes the interval wider
  than needed (98 to 99% coverage at a share of 0.7).
- two sources of error, seeds (with the pooled degrees of freedom) and documents (paired differences), are joined as
  Ghosh and Kim do (`quantiles`). A Welch-Satterthwaite interval takes a sigma that is small by chance for a
  precise one: it covered 91 to 93% with a family-wise error of 6 to 12%. docs/calibration.md has the figures.
- the interval of the difference joins the log-scale limits of the two losses (MOVER, Zou and Donner 2008), so it is
  not symmetric. At the very border of significance it and the p-value may disagree in the third digit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import exp, log, sqrt

import numpy as np
import pandas as pd
from scipy import stats

from analysis.quantiles import half_width, two_sided
from analysis.table import METRIC, comparable, documents
from search_space.errors import UsageError

__all__ = [
    *("ALPHA", "Comparison", "Effect", "Noise"),
    *("compare", "holm", "inferred", "judged", "pooled_noise", "seeds_needed"),
]

ALPHA = 0.05
POWER = 0.8
MOST_SEEDS = 1000  # more is no plan


@dataclass(frozen=True)
class Noise:
    """The noise between seeds at one rung.

    sigma: standard deviation of the log loss between seeds of one design, so about a fraction of the loss; None
        where no design has two seeds (or all repeats are identical).
    df: its degrees of freedom, the sum of (seeds - 1) over `designs` designs with two or more seeds.
    """

    rung: int
    sigma: float | None
    df: int
    designs: int


@dataclass(frozen=True)
class Effect:
    """One design against the baseline at `rung`, the largest that both have reached.

    loss, baseline_loss: geometric means over seeds; difference is the first minus the second, in nats per token,
        and `low` to `high` its own 95% interval, not widened for the number of designs.
    p: two-sided, of this comparison alone; p_adjusted: Holm over the arms (for a control, p itself).
    seeds_needed: see the function; None if sigma is unknown or no plan of `MOST_SEEDS` would do.
    seed_error, document_error: standard errors of the log ratio.
    reason: why there is no interval, else None.
    """

    design: str
    role: str
    rung: int = 0
    seeds: int = 0
    loss: float | None = None
    baseline_loss: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    verdict: str = "undecided"
    seeds_needed: int | None = None
    seed_error: float | None = None
    document_error: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Comparison:
    """All designs against the baseline; `rung`, `seeds`, `loss`, `sigma` and `df` are the baseline's at its largest."""

    metric: str
    baseline: str | None
    rung: int
    seeds: int
    loss: float | None
    sigma: float | None
    df: int
    noise: tuple[Noise, ...]
    effects: tuple[Effect, ...]

    def of(self, design: str) -> Effect | None:
        return next((effect for effect in self.effects if effect.design == design), None)


def compare(frame: pd.DataFrame, metric: str = METRIC) -> Comparison:
    """Compare every arm and control of a sweep with its baseline (module docstring for the method).

    Raises `UsageError` if trials of more than one design are marked as the baseline.
    """
    rows = comparable(frame, metric)[["design", "role", "rung", metric, f"{metric}_documents"]]
    names = frame.loc[frame["role"] == "baseline", "design"].unique()
    if len(names) > 1:
        raise UsageError(f"baseline: a sweep has one, found {', '.join(sorted(names))}")
    baseline = str(names[0]) if len(names) else None
    base = rows[rows["design"] == baseline]
    noise = pooled_noise(rows, metric)
    others = frame[frame["design"] != baseline].sort_values("trial").drop_duplicates("design")
    reached: dict[str, dict[int, pd.DataFrame]] = {}
    for (name, rung), at_rung in rows.groupby(["design", "rung"]):
        reached.setdefault(str(name), {})[int(str(rung))] = at_rung
    own = reached.get(baseline or "", {})
    effects = [
        _effect(Effect(name, role), reached.get(name, {}), own, noise, metric, baseline)
        for name, role in zip(others["design"], others["role"], strict=True)
    ]
    rung = int(base["rung"].max()) if len(base) else 0
    at_rung = base[base["rung"] == rung]
    known = noise.get(rung, Noise(rung, None, 0, 0))
    return Comparison(
        metric=metric,
        baseline=baseline,
        rung=rung,
        seeds=len(at_rung),
        loss=exp(np.log(at_rung[metric]).mean()) if len(at_rung) else None,
        sigma=known.sigma,
        df=known.df,
        noise=tuple(noise.values()),
        effects=judged(effects),
    )


def seeds_needed(sigma: float, difference: float) -> int | None:
    """Seeds per design for a one-sided two-sample t-test at alpha 0.05 with power 0.8 (noncentral t).

    `sigma` and `difference` in one unit. None if more than `MOST_SEEDS` are needed. Counts noise between seeds
    only: more seeds do not remove what comes from having few documents.
    """
    effect = abs(difference) / sigma
    normal = 2 * ((stats.norm.isf(ALPHA) + stats.norm.ppf(POWER)) / effect) ** 2 if effect else np.inf
    if normal > MOST_SEEDS:
        return None
    seeds = np.arange(max(2, int(normal)), int(normal) + 8)  # the t-test needs a few more than the normal one
    df = 2 * (seeds - 1)
    shift = np.minimum(effect * np.sqrt(seeds / 2), 30)  # power 1; scipy's noncentral t fails far beyond
    enough = seeds[stats.nct.sf(stats.t.isf(ALPHA, df), df, shift) >= POWER]
    return int(enough[0]) if enough.size and enough[0] <= MOST_SEEDS else None


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down adjustment (1979) of a family of p-values."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def pooled_noise(rows: pd.DataFrame, metric: str) -> dict[int, Noise]:
    """Rung to pooled noise of comparable rows. Controls stay out: with nothing to compress they are far quieter."""
    rows = rows[rows["role"] != "control"]
    logs = np.log(rows[metric]).groupby([rows["rung"], rows["design"]]).agg(["count", "var"])
    known: dict[int, Noise] = {}
    for rung, group in logs.groupby(level="rung"):
        repeated = group[group["count"] > 1]
        df = int((repeated["count"] - 1).sum())
        variance = float(((repeated["count"] - 1) * repeated["var"]).sum()) / df if df else 0.0
        known[int(str(rung))] = Noise(int(str(rung)), sqrt(variance) if variance > 0 else None, df, len(repeated))
    return known


def _effect(
    blank: Effect,
    arm_reached: Mapping[int, pd.DataFrame],
    base_reached: Mapping[int, pd.DataFrame],
    noise: Mapping[int, Noise],
    metric: str,
    baseline: str | None,
) -> Effect:
    """arm_reached, base_reached: comparable rows by rung."""
    common = arm_reached.keys() & base_reached.keys()
    if not common:
        reason = (
            "the sweep has no baseline"
            if baseline is None
            else "no trial of it has reached a rung"
            if not arm_reached
            else "the baseline has reached no rung that it has reached"
        )
        if not arm_reached:
            return replace(blank, reason=reason)
        rung = max(arm_reached)
        loss = exp(np.log(arm_reached[rung][metric]).mean())
        return replace(blank, rung=rung, seeds=len(arm_reached[rung]), loss=loss, reason=reason)
    rung = max(common)
    arm, base = arm_reached[rung], base_reached[rung]
    loss, other = (exp(np.log(rows[metric]).mean()) for rows in (arm, base))
    effect = replace(blank, rung=rung, seeds=len(arm), loss=loss, baseline_loss=other, difference=loss - other)
    known = noise.get(rung)
    if known is None or known.sigma is None:
        why = "repeats are identical" if known and known.df else f"no design has two seeds at rung {rung}"
        return replace(effect, reason=f"{why}, so the noise is unknown")
    pair = documents(arm, base, metric)
    if pair is None:
        return replace(effect, reason="it shares fewer than two held-out documents with the baseline")
    return inferred(effect, len(base), known.sigma, known.df, *pair)


def inferred(effect: Effect, base_seeds: int, sigma: float, df: int, a: np.ndarray, b: np.ndarray) -> Effect:
    """`effect` with interval, p-value and seeds needed; `a` and `b` are the two losses per document, (D,)."""
    assert effect.loss is not None and effect.baseline_loss is not None and effect.difference is not None
    loss, other, count = effect.loss, effect.baseline_loss, len(a)
    seeds = sigma * np.sqrt([1 / effect.seeds, 1 / base_seeds])  # standard errors of the two log losses
    relative = float(np.std(a / a.mean() - b / b.mean(), ddof=1)) / sqrt(count)  # of their difference, by delta method
    errors, dfs = (float(np.hypot(*seeds)), relative), (df, count - 1)
    each = stats.t.isf(ALPHA / 2, dfs)
    joint = half_width(errors, dfs, ALPHA) / float(np.hypot(*(each * errors)) or 1)  # what joining saves of both
    t_seeds, t_documents = joint * each
    within = t_documents * np.std(a - b, ddof=1) / sqrt(count)
    down, up = -np.expm1(-t_seeds * seeds), np.expm1(t_seeds * seeds)
    ratio = log(loss / other)
    return replace(
        effect,
        low=effect.difference - sqrt((loss * down[0]) ** 2 + (other * up[1]) ** 2 + within**2),
        high=effect.difference + sqrt((loss * up[0]) ** 2 + (other * down[1]) ** 2 + within**2),
        p=two_sided(ratio, errors, dfs),
        seeds_needed=seeds_needed(sigma, ratio),
        seed_error=errors[0],
        document_error=relative,
    )


def judged(effects: list[Effect]) -> tuple[Effect, ...]:
    """Adjust the p-values of the arms as one family and give verdicts."""
    family = [i for i, effect in enumerate(effects) if effect.role == "arm" and effect.p is not None]
    adjusted = {i: effect.p for i, effect in enumerate(effects)}
    p_values = np.array([effects[i].p for i in family], dtype=float)
    adjusted.update(zip(family, holm(p_values).tolist(), strict=True))

    def verdict(effect: Effect, p: float | None) -> str:
        if p is None or p >= ALPHA or effect.difference is None:
            return "undecided"
        return "better" if effect.difference < 0 else "worse"

    return tuple(replace(e, p_adjusted=adjusted[i], verdict=verdict(e, adjusted[i])) for i, e in enumerate(effects))
