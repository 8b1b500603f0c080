"""A few designs trained at several sizes and budgets: what their losses and gaps will be at a size nobody has trained.

Every level of a ladder is an ordinary sweep over the same designs; its own point is the last rung that the baseline has
reached there, at the compute C = 6 N D of N parameters and D raw tokens (Kaplan et al. 2020, arXiv 2001.08361). Earlier
rungs are listed, but laws are fitted to the own points alone: N and D grow together from level to level, but not from
rung to rung.

Notable choices:
- a gap is the log ratio of the arm's loss to the baseline's, as `effects` tests it. Its slope per tenfold of compute is
  the weighted regression of the levels' gaps on log10 C through every draw of a bootstrap over seeds and held-out
  documents: the levels score the same documents, so their errors go together and largely leave the slope alone, which
  a regression with independent errors would not know. Gaps that no line meets have their errors widened.
- towards the target the log ratio of what is above the baseline's floor E goes on along its line, with the E of every
  draw of `powerlaw.ensemble`: with E = 0 that is the line of the gap itself, with a floor a gap that fades as the
  losses near it. The order turns where that line crosses 0.
- in the intervals: noise between seeds (its size estimated), for a gap also the choice of documents, A and alpha, and
  the floor, from none at all to almost reached. A predicted loss is that of one new run on the same documents. Not in
  the intervals: a law that bends, floors that differ between designs, another mix of data, another ratio of tokens to
  parameters, badly set learning rates at the target.
- the check that this can be trusted at all is `SelfCheck`: the largest level as predicted from the others.

Shapes: P levels, S draws, K documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, log10

import numpy as np
import pandas as pd

from analysis.effects import Comparison, compare
from analysis.gapline import Line, documents
from analysis.levels import Arm, Band, Check, Forecast, Gap, Ladder, Level, Point, Reach, SelfCheck, Step, Target
from analysis.powerlaw import DRAWS, FEWEST, Ensemble, bootstrap, ensemble, fit, middle
from analysis.table import METRICS, comparable
from search_space.errors import UsageError

__all__ = ["FEWEST_LEVELS", "OTHER_RATIO", "Ladder", "Level", "Target", "analyse_ladder", "other_ratio"]

FEWEST_LEVELS = 3
OTHER_RATIO = 2.0
"""Factor on the levels' tokens per parameter from which on the target is another kind of run. At one compute, A/N^.34 +
B/D^.34 (Hoffmann et al. 2022, arXiv 2203.15556) is 0.7% higher at twice the ratio that is best and 8% at ten times it,
and more changes where the levels are not at the best one."""

_SEED = 1
_CURVE = 33  # points of a law's curve


@dataclass(frozen=True)
class _Rung:
    """The own point of a level: comparable rows of all of its rungs and of the last, and what `compare` says there."""

    step: Step
    rows: pd.DataFrame
    last: pd.DataFrame
    comparison: Comparison

    def logs(self, design: str) -> np.ndarray:
        return np.log(self.last.loc[self.last["design"] == design, self.comparison.metric].to_numpy())


@dataclass(frozen=True)
class _Climb:
    """A design's own points: compute (P,), mean log losses (P,), their errors (P,), their draws (S, P)."""

    compute_P: np.ndarray
    log_P: np.ndarray
    error_P: np.ndarray
    draws_SP: np.ndarray
    df: float

    def at(self, which: slice | list[int]) -> "_Climb":
        return _Climb(
            self.compute_P[which], self.log_P[which], self.error_P[which], self.draws_SP[:, which], self.df
        )  # fmt: skip

    def laws(self, random: np.random.Generator) -> Ensemble:
        return ensemble(self.compute_P.tolist(), self.draws_SP, self.log_P, self.error_P, self.df, random)


@dataclass(frozen=True)
class _Fitted:
    """laws: through all points of a climb; sooner: through all but the last."""

    climb: _Climb
    laws: Ensemble
    sooner: Ensemble


def analyse_ladder(levels: Sequence[Level], baseline: str, metric: str, target: Target) -> Ladder:
    """Fit every design that stands on at least `FEWEST_LEVELS` levels beside the baseline, and look at the target.

    The same input gives the same numbers. Simulated (tests/analysis/ladders.py: three designs with floors of 0 or 1 or
    with crossing laws, 60 ladders per case, three seeds, noise of 0.3%, about a tenfold from level to level): the
    self-check's 95% intervals held the loss of the largest level in 98 to 100% of cases with three levels and 95 to 99%
    with four, its gap in 97 to 100%; those for the target, two or three tenfolds on, held the loss of a run in 96 to
    98% and the true gap in 98 to 100%.

    Raises `UsageError` for an unknown metric, a target that is not positive,
    fewer levels than that, two of one compute, a baseline that is missing on one of them, and noise that no level can
    tell.
    """
    if metric not in METRICS:
        raise UsageError(f"metric: {metric!r} is not one of {', '.join(METRICS)}")
    if not (target.parameters > 0 and np.isfinite(target.compute) and target.compute > 0):
        raise UsageError(f"target: takes positive parameters and tokens, found {target.parameters} and {target.tokens}")
    if len(levels) < FEWEST_LEVELS:
        raise UsageError(f"levels: a ladder has at least {FEWEST_LEVELS}, found {len(levels)}")
    known = sorted(_known([_read(each, baseline, metric) for each in levels]), key=lambda rung: rung.step.compute)
    computes = [rung.step.compute for rung in known]
    if len(set(computes)) < len(computes):
        raise UsageError(f"levels: two have the same compute; found {', '.join(f'{c:.3g}' for c in computes)} FLOPs")
    random = np.random.default_rng(_SEED)
    base = _fitted(known, baseline, random)
    arms, missing = [_arm(known, baseline, "baseline", base, target, random)], []
    for design in sorted({effect.design for rung in known for effect in rung.comparison.effects}):
        on = [i for i, rung in enumerate(known) if len(rung.logs(design))]
        if len(on) < FEWEST_LEVELS:
            missing.append((design, f"it stands on {len(on)} of {len(known)} levels, and a law takes {FEWEST_LEVELS}"))
            continue
        there = [known[i] for i in on]
        own = _fitted(there, design, random)
        beside = base if len(on) == len(known) else _refitted(base.climb.at(on), random)
        arms.append(
            _against(_arm(there, design, "arm", own, target, random), there, own.climb, beside, base.laws, target)
        )
    farther = log10(target.compute / computes[-1])
    reach = Reach(target.compute / computes[-1], farther, log10(computes[-1] / computes[0]))
    steps = tuple(rung.step for rung in known)
    ranked = (arms[0], *sorted(arms[1:], key=lambda arm: arm.forecast.loss))
    return Ladder(metric, baseline, target, steps, ranked, reach, tuple(missing), _notes(steps, target, reach))


def _read(level: Level, baseline: str, metric: str) -> _Rung:
    if level.parameters < 1:
        raise UsageError(f"levels: {level.name} has {level.parameters} parameters, a model has at least 1")
    frame = level.frame[~level.frame["role"].isin(["control", "rate"])]
    role = frame["role"].mask(frame["role"] == "baseline", "arm").mask(frame["design"] == baseline, "baseline")
    frame = frame.assign(role=role)
    rows = comparable(frame, metric)
    reached = rows.loc[rows["design"] == baseline, "rung"]
    if reached.empty:
        raise UsageError(f"baseline: {baseline} has reached no rung of level {level.name}")
    last = rows[rows["rung"] == reached.max()]
    comparison = compare(last, metric)
    tokens = float(last["tokens"].median())
    compute = Target(level.parameters, tokens).compute
    step = Step(level.name, level.parameters, tokens, compute, comparison.sigma or 0.0, comparison.df)
    return _Rung(step, rows, last, comparison)


def _known(rungs: Sequence[_Rung]) -> list[_Rung]:
    """With the noise of all levels where one has no design with two seeds."""
    noisy = [rung.step for rung in rungs if rung.step.sigma]
    if not noisy:
        raise UsageError("levels: no design has two seeds on any level, so the noise between seeds is unknown")
    df = sum(step.df for step in noisy)
    sigma = float(np.sqrt(sum(step.df * step.sigma**2 for step in noisy) / df))
    return [r if r.step.sigma else replace(r, step=replace(r.step, sigma=sigma, df=df)) for r in rungs]


def _fitted(rungs: Sequence[_Rung], design: str, random: np.random.Generator) -> _Fitted:
    seeds = [rung.logs(design) for rung in rungs]
    sigma_P = np.array([rung.step.sigma for rung in rungs])
    df_P = np.array([rung.step.df for rung in rungs], dtype=float)
    climb = _Climb(
        compute_P=np.array([rung.step.compute for rung in rungs]),
        log_P=np.array([own.mean() for own in seeds]),
        error_P=sigma_P / np.sqrt([len(own) for own in seeds]),
        draws_SP=bootstrap(seeds, sigma_P, df_P, random),
        df=float(df_P.sum()),
    )
    return _refitted(climb, random)


def _refitted(climb: _Climb, random: np.random.Generator) -> _Fitted:
    return _Fitted(climb, climb.laws(random), climb.at(slice(-1)).laws(random))


def _arm(
    rungs: Sequence[_Rung], design: str, role: str, own: _Fitted, target: Target, random: np.random.Generator
) -> Arm:
    """Without what there is against the baseline."""
    climb, laws, last = own.climb, own.laws, rungs[-1].step
    run_S = np.exp(last.sigma * random.standard_t(last.df, DRAWS))
    loss, low, high = middle(laws.at(target.compute) * run_S, laws.pure_S)
    mean_S = np.exp(climb.draws_SP[:, -1] - climb.log_P[-1])  # the noise of what is to be predicted, a mean over seeds
    check = Check(*middle(own.sooner.at(last.compute) * mean_S, own.sooner.pure_S), exp(climb.log_P[-1]))
    E, alpha = (tuple(np.quantile(draws, [0.025, 0.975]).tolist()) for draws in (laws.E_S, laws.alpha_S))
    return Arm(
        design=design,
        role=role,
        points=tuple(point for rung in rungs for point in _points(rung, design)),
        law=fit(climb.compute_P.tolist(), np.exp(climb.log_P).tolist(), climb.error_P.tolist()),
        E=E,
        alpha=alpha,
        band=_band(laws, climb.compute_P[0], max(last.compute, target.compute)),
        forecast=Forecast(loss, low, high),
        selfcheck=SelfCheck(last.name, check, None),
    )


def _against(arm: Arm, rungs: Sequence[_Rung], own: _Climb, base: _Fitted, ahead: Ensemble, target: Target) -> Arm:
    """`arm` with its gap to the baseline: now, at the target, and in the self-check.

    base: on the levels where the arm stands; ahead: the baseline's laws from all levels.
    """
    gap_P, seed_P = own.log_P - base.climb.log_P, np.hypot(own.error_P, base.climb.error_P)
    seeds_SP = own.draws_SP - base.climb.draws_SP - gap_P
    base_name, metric = str(rungs[0].comparison.baseline), rungs[0].comparison.metric
    documents_SP = np.stack([documents(rung.last, arm.design, base_name, metric) for rung in rungs], axis=1)
    line = Line(base.climb.compute_P, np.exp(base.climb.log_P), gap_P, seed_P)
    noise_SP = seeds_SP + documents_SP
    h_S = line.at(target.compute, noise_SP, ahead.E_S)
    gap, low, high = middle(line.whole(h_S, ahead.at(target.compute), ahead.E_S), ahead.pure_S)
    slope, slope_low, slope_high = middle(line.slopes(noise_SP))
    sooner, last = base.sooner, float(base.climb.compute_P[-1])
    early = Line(*(part[:-1] for part in (line.compute_P, line.loss_P, gap_P, seed_P)))
    expected_S = early.whole(early.at(last, seeds_SP[:, :-1], sooner.E_S), sooner.at(last), sooner.E_S)
    check = Check(*middle(expected_S + seeds_SP[:, -1], sooner.pure_S), float(gap_P[-1]))
    effects = [effect for rung in rungs if (effect := rung.comparison.of(arm.design))]
    forecast = replace(
        arm.forecast,
        gap=gap,
        gap_low=low,
        gap_high=high,
        better=float((h_S < 0).mean()),
        turned=float((h_S * np.sign(gap_P[-1]) <= 0).mean()),
    )
    return replace(
        arm,
        forecast=forecast,
        selfcheck=replace(arm.selfcheck, gap=check),
        gaps=tuple(
            Gap(rung.step.name, rung.step.compute, float(gap), rung.comparison.seeds, effect)
            for rung, gap, effect in zip(rungs, gap_P, effects, strict=True)
        ),
        slope=slope,
        slope_low=slope_low,
        slope_high=slope_high,
    )


def _points(rung: _Rung, design: str) -> list[Point]:
    """At every rung up to the level's own."""
    metric, last, found = rung.comparison.metric, rung.last["rung"].max(), []
    for at, rows in rung.rows[rung.rows["design"] == design].groupby("rung"):
        tokens, logs = float(rows["tokens"].median()), np.log(rows[metric].to_numpy())
        found.append(
            Point(
                level=rung.step.name,
                parameters=rung.step.parameters,
                tokens=tokens,
                compute=Target(rung.step.parameters, tokens).compute,
                rung=int(str(at)),
                loss=exp(logs.mean()),
                sd=float(logs.std(ddof=1)) if len(logs) > 1 else None,
                seeds=len(logs),
                own=at == last,
            )
        )
    return [point for point in found if point.rung <= last]


def _band(laws: Ensemble, first: float, last: float) -> Band:
    compute = np.geomspace(first, last, _CURVE).tolist()
    loss, low, high = zip(*(middle(laws.at(x), laws.pure_S) for x in compute), strict=True)
    return Band(tuple(compute), loss, low, high)


def other_ratio(steps: Sequence[Step], target: Target) -> str:
    """How the target's tokens per parameter are off those of the levels by more than `OTHER_RATIO`; empty if not."""
    ratios = [step.tokens / step.parameters for step in steps]
    own = target.tokens / target.parameters
    if min(ratios) / OTHER_RATIO <= own <= max(ratios) * OTHER_RATIO:
        return ""
    return f"the target reads {own:.3g} tokens per parameter and the levels {min(ratios):.3g} to {max(ratios):.3g}"


def _notes(steps: Sequence[Step], target: Target, reach: Reach) -> tuple[str, ...]:
    found = []
    if reach.tenfolds > reach.spanned:
        found.append(
            f"the target is {reach.tenfolds:.1f} tenfolds of compute beyond the largest level, farther than the "
            f"{reach.spanned:.1f} that the levels span"
        )
    if other := other_ratio(steps, target):
        found.append(f"{other}; a law of compute alone takes that ratio to stay about the same")
    if len(steps) < FEWEST:
        found.append(f"{len(steps)} levels cannot tell the floor of a law, so the intervals allow for any")
    return tuple(found)
