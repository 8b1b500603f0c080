"""Whether a design may be trained at full scale: promoted, refused with the reasons, or forced in spite of them.

A design is promoted if and only if there is no reason against it. The reasons, in the order in which they are given:
- the sweep is unfinished, or no design has come to its last rung;
- the paired 95% interval against the baseline does not exclude 0 on the better side at the largest rung, or it does for
  this comparison alone but not after Holm's adjustment for all arms;
- the design itself has not come to the largest rung;
- one of the two sides has fewer than `FEWEST_SEEDS` seeds there;
- there is no ladder, or the design does not stand on it;
- at the target the order is another one with a probability of `TURNS` or more: the gap vanishes or turns;
- the gap of the largest level was not in the interval predicted from the smaller ones, so that the line to the target
  is not to be trusted. A loss outside of its interval is told with the forecast, but does not touch the order.
The largest rung is the largest level of the ladder for a design that stands there, since its seeds were drawn after the
design had been chosen; otherwise the last rung of the sweep, where the best of many looks better than it is.
For the baseline the first two points turn round: it is promoted if no arm is better than it in this sense, in the sweep
or on the ladder, which says that nothing better was found, not that it is better than the rest.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from analysis.effects import ALPHA, Effect
from analysis.ladder import Ladder
from analysis.levels import Arm, Prediction, gap_text, prediction
from analysis.overview import Analysis
from analysis.summary import Row
from analysis.table import latest
from analysis.words import count, interval, p_value, percent, signed
from search_space.errors import UsageError

__all__ = ["FEWEST_SEEDS", "TURNS", "Decision", "Prediction", "decide", "unfinished", "winning"]

FEWEST_SEEDS = 3
TURNS = 0.05

Status = Literal["promoted", "refused", "forced"]


@dataclass(frozen=True)
class Decision:
    """The record of a promotion; numbers, texts, lists and dictionaries only, so that `asdict` can be written as YAML.

    evidence: what `loss` to `sigma` are of: the `sweep`'s last rung or the `ladder`'s largest level, named by `level`.
    design: None where there is none to promote. difference, low, high: in nats per token; None for the baseline.
    reasons: why it is refused, or what was overridden. notes: what holds besides.
    rungs: of the sweep, how often each had the order of the last.
    """

    status: Status
    design: str | None
    baseline: str | None
    metric: str
    reasons: list[str]
    notes: list[str] = field(default_factory=list)
    evidence: Literal["sweep", "ladder"] = "sweep"
    level: str = ""
    rung: int = 0
    loss: float | None = None
    baseline_loss: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    verdict: str = "undecided"
    seeds: int = 0
    baseline_seeds: int = 0
    sigma: float | None = None
    rungs: list[dict[str, Any]] = field(default_factory=list)
    prediction: Prediction | None = None


@dataclass(frozen=True)
class _Evidence:
    """Of a design at its largest rung; effect is None for the baseline."""

    where: Literal["sweep", "ladder"]
    level: str
    rung: int
    loss: float | None
    effect: Effect | None
    seeds: int
    baseline_seeds: int
    sigma: float | None


def decide(
    analysis: Analysis, frame: pd.DataFrame, ladder: Ladder | None, design: str | None = None, force: bool = False
) -> Decision:
    """Decide on `design`, or on the winner of the sweep where none is named.

    frame: the sweep's table; ladder: of the same baseline and metric. With `force` reasons do not refuse, and stay in
    the record; without a design nothing can be forced.
    Raises `UsageError` for a design that is no baseline or arm of the sweep, and a ladder of something else.
    """
    baseline = analysis.comparison.baseline
    if ladder and (ladder.baseline, ladder.metric) != (baseline, analysis.metric):
        raise UsageError(
            f"ladder: it is of the baseline {ladder.baseline} by {ladder.metric}, and the sweep of {baseline} by "
            f"{analysis.metric}"
        )
    row = _chosen(analysis, frame, design)
    reasons, notes = list(unfinished(analysis, frame)), []
    if row is None:
        return Decision("refused", None, baseline, analysis.metric, reasons, rungs=_rungs(analysis))
    evidence = _evidence(analysis, row, ladder)
    arm = ladder.of(row.design) if ladder else None
    reasons += _early(evidence, frame, ladder)
    if row.role == "baseline":
        reasons += _beaten(analysis, ladder)
        reasons += _few(evidence, row.design, None)
        notes += (
            [] if reasons else ["nothing better than the baseline was found, so it is the baseline that is promoted"]
        )
    else:
        reasons += _not_shown(evidence)
        reasons += _few(evidence, row.design, baseline)
    if ladder is None:
        reasons.append("no ladder: at how many sizes the difference holds, and where it goes, is unknown")
    elif arm is None:
        why = dict(ladder.missing).get(row.design, "it was not trained there")
        reasons.append(f"{row.design} is not on the ladder: {why}")
    else:
        reasons += _fading(arm)
        notes += [*(why for name, why in arm.selfcheck.unmet.items() if name == "loss"), *ladder.notes]
    effect = evidence.effect or Effect(row.design, row.role, loss=evidence.loss, verdict="baseline")
    return Decision(
        status="promoted" if not reasons else "forced" if force else "refused",
        design=row.design,
        baseline=baseline,
        metric=analysis.metric,
        reasons=reasons,
        notes=notes,
        evidence=evidence.where,
        level=evidence.level,
        rung=evidence.rung,
        loss=evidence.loss,
        baseline_loss=effect.baseline_loss if evidence.effect else evidence.loss,
        difference=effect.difference,
        low=effect.low,
        high=effect.high,
        p=effect.p,
        p_adjusted=effect.p_adjusted,
        verdict=effect.verdict,
        seeds=evidence.seeds,
        baseline_seeds=evidence.baseline_seeds,
        sigma=evidence.sigma,
        rungs=_rungs(analysis),
        prediction=prediction(ladder, arm) if ladder and arm else None,
    )


def winning(analysis: Analysis, frame: pd.DataFrame) -> Row | None:
    """The lowest loss at the last rung, of baseline and arms within the limits; None where none got there."""
    fit = (row for row in analysis.rows if row.role in ("baseline", "arm") and "infeasible" not in row.state)
    row = next(fit, None)
    return row if row and row.rung and row.rung == _last(frame) else None


def unfinished(analysis: Analysis, frame: pd.DataFrame) -> list[str]:
    """Why the sweep cannot be judged yet, empty where it can; trials that were not started are not in the table."""
    running = int((latest(frame)["state"] == "running").sum())
    reasons = [f"the sweep is unfinished: {count(running, 'trial')} running"] if running else []
    if winning(analysis, frame) is None:
        reasons.append(
            f"no design has come to the last rung, {_last(frame)}" if len(frame) else "the sweep has no trials"
        )
    return reasons


def _last(frame: pd.DataFrame) -> int:
    own = frame[frame["role"].isin(["baseline", "arm"])]
    return int(own["rungs"].max()) if len(own) else 0


def _chosen(analysis: Analysis, frame: pd.DataFrame, design: str | None) -> Row | None:
    if design is None:
        return winning(analysis, frame)
    rows = {row.design: row for row in analysis.rows if row.role in ("baseline", "arm")}
    if design not in rows:
        raise UsageError(f"design: {design!r} is not one of {', '.join(rows) or 'the sweep, which has none'}")
    return rows[design]


def _evidence(analysis: Analysis, row: Row, ladder: Ladder | None) -> _Evidence:
    known = analysis.comparison
    arm = ladder.of(row.design) if ladder else None
    if ladder and arm:
        step = next(step for step in reversed(ladder.levels) if step.name == arm.selfcheck.level)
        own = next(point for point in reversed(arm.points) if point.own)
        gap = arm.gaps[-1] if arm.gaps else None
        others = gap.baseline_seeds if gap else own.seeds
        return _Evidence(
            "ladder", step.name, own.rung, own.loss, gap.effect if gap else None, own.seeds, others, step.sigma
        )  # fmt: skip
    loss = row.losses[analysis.metric]
    return _Evidence("sweep", "", row.rung, loss, row.effect, row.seeds, known.seeds, known.sigma)


def _not_shown(evidence: _Evidence) -> list[str]:
    """Whether the interval excludes 0 on the better side, at the largest rung."""
    effect, where = evidence.effect, _where(evidence)
    if effect is None or effect.difference is None:
        return [f"no difference to the baseline is known: {effect.reason if effect else 'it was not compared'}"]
    seen = f"{signed(effect.difference)} nats per token"
    if effect.low is None or effect.high is None:
        return [f"the difference to the baseline {where}, {seen}, has no interval: {effect.reason}"]
    seen = f"{seen} (95% interval {interval(effect.low, effect.high)})"
    if effect.low > 0:
        return [f"it is worse than the baseline {where}: {seen}"]
    if effect.high >= 0:
        seeds = f"about {count(effect.seeds_needed, 'seed')}" if effect.seeds_needed else "more than 1,000 seeds"
        return [f"the difference to the baseline {where} may be noise: {seen}; to show it takes {seeds} per design"]
    if effect.verdict != "better":
        adjusted = f"p = {p_value(effect.p_adjusted)} after Holm's adjustment, {ALPHA} is the limit"
        return [
            f"the difference to the baseline {where}, {seen}, does not stand out among the arms compared: {adjusted}"
        ]
    return []


def _few(evidence: _Evidence, design: str, baseline: str | None) -> list[str]:
    sides = {design: evidence.seeds} | ({baseline: evidence.baseline_seeds} if baseline else {})
    return [
        f"{name} has {count(seeds, 'seed')} {_where(evidence)}, at least {FEWEST_SEEDS} are needed"
        for name, seeds in sides.items()
        if seeds < FEWEST_SEEDS
    ]


def _beaten(analysis: Analysis, ladder: Ladder | None) -> list[str]:
    """Arms that are better than the baseline, which is to be promoted: as the ladder knows them, else the sweep."""
    effects = {
        effect.design: ("in the sweep", effect) for effect in analysis.comparison.effects if effect.role == "arm"
    }
    for arm in ladder.arms[1:] if ladder else ():
        effects[arm.design] = (f"at {arm.gaps[-1].level}", arm.gaps[-1].effect)
    return [
        f"{design} is better {where}: {signed(effect.difference)} nats per token "
        f"(95% interval {interval(effect.low, effect.high)})"
        for design, (where, effect) in effects.items()
        if effect.verdict == "better"
    ]


def _fading(arm: Arm) -> list[str]:
    """Whether the gap is still there at the target."""
    forecast, reasons = arm.forecast, []
    if forecast.turned is not None and forecast.turned >= TURNS:
        now, slope = gap_text(arm.gaps[-1].value), gap_text(arm.slope or 0.0)
        ends = f"95% interval {gap_text(arm.slope_low or 0.0)} to {gap_text(arm.slope_high or 0.0)}"
        reasons.append(
            f"the gap may vanish or turn on the way to the target: it is {now} of the loss at {arm.gaps[-1].level} and "
            f"changes by {slope} per tenfold of compute ({ends}), so that the order at the target is another "
            f"one with a probability of {percent(forecast.turned)}; below {percent(TURNS)} is needed"
        )
    if why := arm.selfcheck.unmet.get("gap"):
        reasons.append(f"the ladder fails its own check: {why}")
    return reasons


def _where(evidence: _Evidence) -> str:
    return f"at {evidence.level}" if evidence.level else f"at rung {evidence.rung}"


def _early(evidence: _Evidence, frame: pd.DataFrame, ladder: Ladder | None) -> list[str]:
    """Whether the largest rung of the design is not the largest there is."""
    if ladder and evidence.level:
        top = ladder.levels[-1].name
        return [] if evidence.level == top else [f"it stands at {evidence.level} and not at {top}, the largest level"]
    last = _last(frame)
    return [] if evidence.rung == last else [f"it has come to rung {evidence.rung} and not to {last}, the last"]


def _rungs(analysis: Analysis) -> list[dict[str, Any]]:
    return [
        {"rung": a.rung, "tokens": a.tokens, "trials": a.trials, "decision_accuracy": a.decision_accuracy,
         "low": a.low, "high": a.high}
        for a in analysis.rungs
    ]  # fmt: skip
