"""The ladder and the decision of a promotion, for the page and its Markdown twin."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.gate import Decision
from analysis.ladder import Ladder
from analysis.levels import Arm, Check, gap_text
from analysis.words import DASH, count, interval, joined, large, number, p_value, percent, signed
from reports import laws
from reports.figures import Figure
from reports.grid import Cell, Grid, Line, between, heading, loss, share, size, verdict, word

__all__ = ["Section", "ladder_section"]

_SURE = 0.001
_MARK = {"promoted": "better", "refused": "worse", "forced": "undecided"}


@dataclass(frozen=True)
class Section:
    """headline, reasons, notes, facts: of the decision, empty without one. said: sentences about the ladder.

    grids: tables by name. alternative: the figure in words. legend: design to colour.
    """

    headline: str = ""
    style: str = ""
    reasons: Sequence[str] = ()
    notes: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    said: Sequence[str] = ()
    grids: dict[str, Grid] = field(default_factory=dict)
    figure: Figure | None = None
    alternative: str = ""
    legend: dict[str, str] = field(default_factory=dict)


def ladder_section(ladder: Ladder | None, decision: Decision | None, trouble: str = "") -> Section | None:
    """None where there is neither. trouble: why there is no ladder, where one was begun."""
    if ladder is None and decision is None and not trouble:
        return None
    parts: dict[str, Any] = {"said": (f"There is no ladder: {trouble}.",)} if trouble else {}
    if decision:
        parts |= {
            "headline": _headline(decision),
            "style": _MARK[decision.status],
            "reasons": tuple(decision.reasons),
            "notes": tuple(decision.notes),
            "facts": _facts(decision),
        }
    if ladder:
        arms = laws.drawn(ladder, decision.design if decision else None)
        colours = laws.hues(arms)
        parts |= {
            "said": _said(ladder, decision.design if decision else None),
            "grids": {grid.name: grid for grid in (_levels(ladder), _forecasts(ladder))},
            "figure": laws.laws(ladder, arms, colours),
            "alternative": _alternative(ladder, arms),
            "legend": colours,
        }
    return Section(**parts)


def _headline(decision: Decision) -> str:
    if decision.design is None:
        return "Refused: there is no design to promote."
    against = ""
    if decision.difference is not None:
        seen = f"{signed(decision.difference)} nats per token (95% interval {interval(decision.low, decision.high)})"
        against = f": {seen} against the baseline {decision.baseline}{_at(decision)}"
    elif decision.design == decision.baseline:
        against = f", the baseline, at a loss of {number(decision.loss)}{_at(decision)}"
    if decision.status == "forced":
        why = count(len(decision.reasons), "reason")
        return f"Forced in spite of {why} against it: {decision.design}{against.replace(':', ',', 1)}."
    return f"{decision.status.capitalize()}: {decision.design}{against.replace(':', ',', 1)}."


def _at(decision: Decision) -> str:
    return f" at {decision.level} of the ladder" if decision.level else f" at rung {decision.rung}"


def _facts(decision: Decision) -> list[tuple[str, str]]:
    found = [
        ("baseline", decision.baseline or DASH),
        ("judged by", f"{decision.metric} loss"),
        ("evidence", f"{decision.evidence}{_at(decision).removesuffix(' of the ladder')}"),
        ("seeds", f"{decision.seeds}, of the baseline {decision.baseline_seeds}"),
        ("noise of a seed", percent(decision.sigma)),
        ("p, after Holm", f"{p_value(decision.p)}, {p_value(decision.p_adjusted)}"),
    ]
    known = [rung for rung in decision.rungs if rung["decision_accuracy"] is not None]
    if known:
        shares = [f"{percent(rung['decision_accuracy'])} at rung {rung['rung']}" for rung in known]
        found.append(("order as at the end", f"{joined(shares)} of the sweep"))
    if own := decision.prediction:
        found.append(("predicted loss", f"{number(own.loss)} (95% interval {number(own.low)} to {number(own.high)})"))
        found.append(("self-check", "passed" if own.trusted else "failed"))
    return found


def _said(ladder: Ladder, chosen: str | None) -> list[str]:
    """What the ladder shows, each sentence true of it however few its levels."""
    reach, target = ladder.reach, ladder.target
    where = f"{large(target.parameters)} parameters and {large(target.tokens)} tokens ({large(target.compute)} FLOPs)"
    far = f"{_times(reach.factor)} the compute of the largest level"
    sentences = [
        f"{count(len(ladder.levels), 'level')} span {reach.spanned:.1f} tenfolds of compute; the target, {where}, has "
        f"{far}."
    ]
    for arm in _named(ladder, chosen):
        sentences.append(_loss_sentence(arm))
        sentences += [_gap_sentence(arm)] if arm.gaps else []
    failed = [f"{arm.design}: {why}" for arm in ladder.arms for why in arm.untrusted]
    if failed:
        sentences.append(f"Not to be trusted is what is predicted of {'; of '.join(failed)}.")
    else:
        top = ladder.levels[-1].name
        sentences.append(
            f"Predicted from the smaller levels, the losses and gaps at {top} were all inside of their intervals."
        )
    sentences += [f"{note[0].upper()}{note[1:]}." for note in ladder.notes]
    if ladder.missing:
        sentences.append(f"Without a law: {joined([f'{design} ({why})' for design, why in ladder.missing])}.")
    return sentences


def _named(ladder: Ladder, chosen: str | None) -> list[Arm]:
    """The baseline, and the design decided on or else that of the lowest predicted loss."""
    arm = ladder.of(chosen) or next(iter(ladder.arms[1:]), None)
    return [ladder.arms[0], *([arm] if arm and arm.gaps else [])]


def _loss_sentence(arm: Arm) -> str:
    law = (
        f"{number(arm.law.E)} + {large(arm.law.A)} C^{number(-arm.law.alpha)}"
        if arm.law.identified
        else f"{large(arm.law.A)} C^{number(-arm.law.alpha)}, which a floor may bend"
    )
    ends = f"{number(arm.forecast.low)} to {number(arm.forecast.high)}"
    return (
        f"At the target one run of {arm.design} is expected to reach a loss of {number(arm.forecast.loss)} "
        f"(95% interval {ends}); the law through its levels is {law}."
    )


def _gap_sentence(arm: Arm) -> str:
    own, last = arm.forecast, arm.gaps[-1]
    slope = f"{_gap(arm.slope)} (95% interval {_gaps(arm.slope_low, arm.slope_high)})"
    ahead = f"{_gap(own.gap)} (95% interval {_gaps(own.gap_low, own.gap_high)})"
    return (
        f"Its gap to the baseline is {gap_text(last.value)} of the loss at {last.level} and changes by {slope} per "
        f"tenfold of compute; at the target it is {ahead}, and the order there is another one with a "
        f"probability of {_chance(own.turned)}."
    )


def _levels(ladder: Ladder) -> Grid:
    """Every design at every level, from the largest level down."""
    columns = heading(
        *("design", "level", "parameters", "raw tokens", "FLOPs", "seeds", "loss", "noise", "difference"),
        *("95% interval", "gap", "verdict"),
        words=("level", "verdict"),
    )
    lines = []
    for arm in ladder.arms:
        gaps = {gap.level: gap for gap in arm.gaps}
        for point in (point for point in reversed(arm.points) if point.own):
            gap = gaps.get(point.level)
            effect = gap.effect if gap else None
            told = verdict(effect.verdict, effect.reason or "") if effect else Cell(arm.role)
            lines.append(
                Line(
                    (
                        *(word(arm.design), word(point.level), size(point.parameters), size(point.tokens)),
                        *(size(point.compute), Cell(str(point.seeds), point.seeds), loss(point.loss), share(point.sd)),
                        loss(effect.difference if effect else None, sign=True),
                        between(*((effect.low, effect.high) if effect else (None, None))),
                        Cell(gap_text(gap.value) if gap else DASH, gap.value if gap else None),
                        told,
                    ),
                    arm.role,
                )
            )
    return Grid("ladder", columns, tuple(lines))


def _forecasts(ladder: Ladder) -> Grid:
    columns = heading(
        *("design", "loss at the target", "95% interval", "gap at the target", "95% interval"),
        *("change per tenfold", "95% interval", "another order", "E", "alpha", "self-check"),
        words=("self-check",),
    )
    lines = []
    for arm in ladder.arms:
        own = arm.forecast
        E = f"{number(arm.E[0])} to {number(arm.E[1])}"
        alpha = f"{number(arm.alpha[0])} to {number(arm.alpha[1])}"
        lines.append(
            Line(
                (
                    *(word(arm.design), loss(own.loss), Cell(f"{number(own.low)} to {number(own.high)}", own.low)),
                    *(Cell(_gap(own.gap), own.gap), Cell(_gaps(own.gap_low, own.gap_high), own.gap_low)),
                    *(Cell(_gap(arm.slope), arm.slope), Cell(_gaps(arm.slope_low, arm.slope_high), arm.slope_low)),
                    Cell(_chance(own.turned), own.turned),
                    *(
                        Cell(number(arm.law.E), arm.law.E, below=E),
                        Cell(number(arm.law.alpha), arm.law.alpha, below=alpha),
                    ),
                    Cell("failed" if arm.untrusted else "passed", title="; ".join(arm.untrusted), below=_checked(arm)),
                ),
                arm.role,
            )
        )
    return Grid("forecasts", columns, tuple(lines))


def _checked(arm: Arm) -> str:
    def said(name: str, check: Check, shown: Callable[[float], str]) -> str:
        return f"{name} {shown(check.measured)}, predicted {shown(check.low)} to {shown(check.high)}"

    checks = arm.selfcheck
    return "; ".join([said("loss", checks.loss, number), *([said("gap", checks.gap, gap_text)] if checks.gap else [])])


def _alternative(ladder: Ladder, drawn: Sequence[Arm]) -> str:
    arms = (
        f"{arm.design} {', '.join(number(point.loss) for point in arm.points if point.own)}, at the target "
        f"{number(arm.forecast.loss)} ({number(arm.forecast.low)} to {number(arm.forecast.high)})"
        for arm in drawn
    )
    levels = ", ".join(large(step.compute) for step in ladder.levels)
    return f"Loss by compute at {levels} FLOPs and at the target of {large(ladder.target.compute)}: {'; '.join(arms)}."


def _gap(ratio: float | None) -> str:
    return DASH if ratio is None else gap_text(ratio)


def _gaps(low: float | None, high: float | None) -> str:
    return DASH if low is None or high is None else f"{gap_text(low)} to {gap_text(high)}"


def _chance(share_: float | None) -> str:
    """As many digits as the draws have."""
    return DASH if share_ is None else f"below {percent(_SURE)}" if share_ < _SURE else percent(share_)


def _times(factor: float) -> str:
    return f"{factor:.2g} times" if factor < 100 else f"{large(factor)} times"
