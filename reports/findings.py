"""Tables of what was found out beyond single designs: axes, claims, costs, noise, and what to run next."""

from collections.abc import Sequence
from dataclasses import replace

from analysis.axes import AxisEffect, Interaction
from analysis.claims import Answer
from analysis.effects import Noise
from analysis.following import Next
from analysis.importance import Importance
from analysis.noise import Signal
from analysis.pareto import Front, Point
from analysis.rates import Sensitivity
from analysis.rungs import Agreement
from analysis.words import DASH, METRIC_NAMES, number, percent
from reports.grid import Cell, Grid, Line, change, changes, heading, loss, p, share, size, verdict, word

__all__ = [
    *("COSTS", "LIKELY", "UNTESTED", "axes", "claims", "following", "fronts", "importance", "interactions"),
    *("noise", "rungs", "sensitivities", "signals"),
]

COSTS = {
    "prefill_flops_per_token": "prefill FLOPs per token",
    "train_flops": "training FLOPs",
    "memory": "memory of a training step, bytes",
}
UNTESTED = "not tested"
NAMED = 12  # pairs that a hover text lists
LIKELY = 0.05  # chance of being on a frontier from which on a design is named


def axes(effects: Sequence[AxisEffect]) -> Grid:
    """What a choice does to the loss, averaged over the other axes."""
    columns = heading(
        *("axis", "choice", "against", "verdict", "change of the loss", "95% interval", "p (Holm)"),
        *("designs", "pairs", "rung", "seeds needed"),
        words=("choice", "against", "verdict"),
    )
    lines = (
        Line((
            word(e.axis), word(e.choice), word(e.reference), verdict(e.verdict, e.reason or ""),
            Cell(change(e.effect), e.effect), changes(e.low, e.high), p(e.p_adjusted),
            _count(e.designs), _count(e.pairs), _count(e.rung), _count(e.seeds_needed),
        ))
        for e in effects
    )  # fmt: skip
    return Grid("axes", columns, tuple(lines))


def interactions(found: Sequence[Interaction]) -> Grid:
    """How much the effect of one choice differs beside another; the strongest evidence first."""
    columns = heading(
        *("choice", "beside", "change of its effect", "95% interval", "p (Holm)", "designs", "rung"), words=("beside",)
    )
    ordered = sorted(found, key=lambda i: (i.p is None, i.p or 0.0))
    lines = (
        Line((
            word(i.first, title=i.reason or ""), word(i.second), Cell(change(i.effect), i.effect),
            changes(i.low, i.high), p(i.p_adjusted), _count(i.designs), _count(i.rung),
        ))
        for i in ordered
    )  # fmt: skip
    return Grid("interactions", columns, tuple(lines))


def importance(found: Sequence[Importance], effects: Sequence[AxisEffect]) -> Grid:
    """How much of the differences between designs an axis explains, beside the largest effect of its choices."""
    lines = []
    for i in found:
        own = [(abs(e.effect), e) for e in effects if e.axis == i.axis and e.effect is not None]
        largest = max(own, key=lambda pair: pair[0])[1] if own else None
        cell = Cell(DASH)
        if largest:
            cell = Cell(change(largest.effect), i.effect, below=f"{largest.choice} against {largest.reference}")
        lines.append(Line((word(i.axis), share(i.ped_anova, bar=True), share(i.fanova, bar=True), cell)))
    return Grid("importance", heading("axis", "PED-ANOVA", "fANOVA", "largest effect"), tuple(lines))


def claims(answers: Sequence[Answer]) -> Grid:
    """What was published, and what this sweep says of it. Those that it can say nothing of come last."""
    columns = heading(
        *("claim", "answer", "by", "change of the loss", "95% interval", "p (Holm)", "pairs", "rung"),
        words=("answer", "by"),
    )
    lines = (
        Line((
            Cell(a.claim.text, a.claim.text, below=f"published: {a.claim.published}", style="reason"),
            replace(verdict(a.answer), below=a.reason or ""), word(METRIC_NAMES.get(a.metric, a.metric)),
            Cell(change(a.effect), a.effect), changes(a.low, a.high), p(a.p_adjusted),
            Cell(str(len(a.pairs)), len(a.pairs), title="; ".join(" against ".join(pair) for pair in a.pairs[:NAMED])),
            _count(a.rung or None),
        ))
        for a in sorted(answers, key=lambda a: a.answer == UNTESTED)
    )  # fmt: skip
    return Grid("claims", columns, tuple(lines))


def fronts(found: Sequence[Front]) -> Grid:
    """The designs that are on a frontier, or may well be; for each cost the chance of that."""
    points: dict[str, dict[str, Point]] = {}
    for front in found:
        for point in (point for point in front.points if point.role != "control"):
            points.setdefault(point.design, {})[front.cost] = point
    likely = [
        (design, own)
        for design, own in points.items()
        if any(point.front or (point.chance or 0) >= LIKELY for point in own.values())
    ]
    likely.sort(key=lambda pair: min(point.loss for point in pair[1].values()))
    costs = [front.cost for front in found]
    groups = (("", 4), *((COSTS.get(cost, cost), 2) for cost in costs))
    names = ("design", "loss", "95% interval", "rung", *(name for _ in costs for name in ("cost", "on the frontier")))
    lines = []
    for design, own in likely:
        some = next(iter(own.values()))
        ends = DASH if some.low is None or some.high is None else f"{number(some.low)} to {number(some.high)}"
        cells = [word(design), loss(some.loss), Cell(ends, some.low), _count(some.rung)]
        for cost in costs:
            cells += _on(own[cost]) if cost in own else [Cell(DASH), Cell(DASH)]
        lines.append(Line(tuple(cells), some.role))
    return Grid("pareto", heading(*names), tuple(lines), groups)


def _on(point: Point) -> list[Cell]:
    seen = "yes" if point.front else "no"
    text = seen if point.chance is None else f"{seen}, {percent(point.chance)}"
    return [size(point.cost), Cell(text, point.chance if point.chance is not None else float(point.front))]


def signals(found: Sequence[Signal]) -> Grid:
    """Noise between seeds against the true differences between designs, at the last rung."""
    columns = heading(
        *("loss", "rung", "noise between seeds", "degrees of freedom"),
        *("spread of designs", "signal to noise", "designs"),
    )
    lines = (
        Line((
            word(METRIC_NAMES.get(s.metric, s.metric)), _count(s.rung), _unknown(s.sigma), _count(s.df),
            _unknown(s.spread), Cell("unknown" if s.ratio is None else f"{s.ratio:.2g}", s.ratio), _count(s.designs),
        ))
        for s in found
    )  # fmt: skip
    return Grid("signals", columns, tuple(lines))


def noise(found: Sequence[Noise]) -> Grid:
    """Noise between seeds by rung, as a share of the loss."""
    columns = heading("rung", "standard deviation", "degrees of freedom", "designs repeated")
    lines = (Line((Cell(str(n.rung), n.rung), _unknown(n.sigma), _count(n.df), _count(n.designs))) for n in found)
    return Grid("noise", columns, tuple(lines))


def rungs(found: Sequence[Agreement]) -> Grid:
    """How often an early rung orders two trials as the last one does."""
    columns = heading("rung", "raw tokens", "trials", "pairs in the same order", "95% interval", "rank correlation")
    lines = (
        Line((
            Cell(str(a.rung), a.rung), size(a.tokens), _count(a.trials), share(a.decision_accuracy),
            Cell(DASH if a.low is None or a.high is None else f"{percent(a.low)} to {percent(a.high)}", a.low),
            loss(a.spearman),
        ))
        for a in found
    )  # fmt: skip
    return Grid("rungs", columns, tuple(lines))


def sensitivities(found: Sequence[Sensitivity]) -> Grid:
    """Losses in nats per token by the factor on the learning rates."""
    factors = sorted({factor for s in found for factor in s.factors})
    columns = heading(
        *("design", "rung", *(f"x{factor:g}" for factor in factors)),
        *("best factor", "one rate for all costs", "steepest"),
    )
    lines = []
    for s in found:
        by = dict(zip(s.factors, s.losses, strict=True))
        cells = [loss(by.get(factor)) for factor in factors]
        lines.append(
            Line(
                (
                    *(word(s.design), _count(s.rung), *cells, Cell(f"x{s.best:g}", s.best)),
                    *(Cell(change(s.cost), s.cost), Cell(change(s.steepest), s.steepest)),
                ),
                s.role,
            )
        )
    return Grid("rates", columns, tuple(lines))


def following(found: Sequence[Next]) -> Grid:
    """Where one more seed is expected to help most."""
    columns = heading("design", "seeds now", "worth of one more seed", "chance of being best", "why", words=("why",))
    lines = (
        Line((word(n.design), _count(n.seeds), _worth(n.worth), _chance(n.chance_best), word(n.reason, style="reason")),
             n.role)
        for n in found
    )  # fmt: skip
    return Grid("following", columns, tuple(lines))


def _worth(nats: float) -> Cell:
    return Cell("< 0.0001" if nats < 1e-4 else number(nats), nats)


def _chance(chance: float) -> Cell:
    return Cell("< 1%" if chance < 0.01 else percent(chance), chance)


def _count(value: int | None) -> Cell:
    return Cell(DASH if value is None else f"{value:,}", value)


def _unknown(value: float | None) -> Cell:
    return Cell("unknown" if value is None else percent(value), value)
