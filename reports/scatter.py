"""Losses against costs, and against the learning rate."""

from collections.abc import Sequence
from math import expm1, log

import plotly.graph_objects as go

from analysis.pareto import Front, Point
from analysis.rates import Sensitivity
from analysis.words import large, number, percent
from reports.figures import ACCENT, BLUE, GREY, Figure, hover, log_axis, to_json
from reports.findings import COSTS, LIKELY

__all__ = ["front", "rates", "steepest"]

WIDE = 4.0  # a ratio of losses from which on their axis is logarithmic
MOST_DESIGNS = 8


def front(found: Front) -> Figure | None:
    """The frontier as steps, with the intervals of designs that are on it or have a chance to be.

    Controls are left out: nobody chooses them, and they would stretch the axes.
    """
    points = [point for point in found.points if point.role != "control"]
    if not points:
        return None
    on = [point for point in points if point.front]
    near = [point for point in points if not point.front and (point.chance or 0) >= LIKELY]
    rest = [point for point in points if not point.front and (point.chance or 0) < LIKELY]
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=[point.cost for point in on], y=[point.loss for point in on], mode="lines", hoverinfo="skip",
            line={"color": BLUE, "width": 1.5, "shape": "hv"},
        )
    )  # fmt: skip
    for some, symbol, colour in ((rest, "circle", f"{GREY}99"), (near, "circle-open", BLUE), (on, "circle", BLUE)):
        if some:
            figure.add_trace(_points(some, symbol, colour, bars=some is not rest))
    losses = [point.loss for point in points]
    title = "loss, nats per token"
    wide = max(losses) > WIDE * min(losses) > 0
    figure.update_layout(
        height=360,
        xaxis={"title": COSTS.get(found.cost, found.cost), "type": "log", "tickformat": "~s", "nticks": 6},
        yaxis=log_axis(title) if wide else {"title": title},
    )
    return to_json(figure)


def _points(points: Sequence[Point], symbol: str, colour: str, bars: bool) -> go.Scatter:
    marker = {
        "color": [ACCENT if point.role == "baseline" else colour for point in points], "size": 9 if bars else 7,
        "symbol": symbol,
    }  # fmt: skip
    intervals = {
        "array": [0 if point.high is None else point.high - point.loss for point in points],
        "arrayminus": [0 if point.low is None else point.loss - point.low for point in points],
        "color": colour, "thickness": 1.2, "width": 0,
    }  # fmt: skip
    return go.Scatter(
        x=[point.cost for point in points],
        y=[point.loss for point in points],
        mode="markers",
        marker=marker,
        error_y=intervals if bars else None,
        text=[
            hover(point.design, f"loss {number(point.loss)}, cost {large(point.cost)}", _chance(point))
            for point in points
        ],
        hovertemplate="%{text}<extra></extra>",
    )


def _chance(point: Point) -> str:
    if point.chance is None:
        return "on the frontier" if point.front else "behind the frontier"
    return f"on the frontier with {percent(point.chance)}"


def steepest(found: Sequence[Sensitivity]) -> list[Sensitivity]:
    """The designs that the figure shows."""
    known = [s for s in found if len(s.factors) > 1 and 1.0 in s.factors]
    return sorted(known, key=lambda s: -(s.steepest or 0.0))[:MOST_DESIGNS]


def rates(found: Sequence[Sensitivity], hues: dict[str, str]) -> Figure | None:
    """The loss over the loss at the sweep's own rate, by the factor on the rate."""
    drawn = steepest(found)
    if not drawn:
        return None
    figure = go.Figure()
    for s in drawn:
        own = s.losses[s.factors.index(1.0)]
        pairs = zip(s.factors, s.losses, strict=True)
        figure.add_trace(
            go.Scatter(
                x=list(s.factors), y=[100 * expm1(log(loss / own)) for loss in s.losses], mode="lines+markers",
                line={"color": hues.get(s.design, GREY), "width": 2.6 if s.role == "baseline" else 1.6},
                text=[hover(s.design, f"x{factor:g}: {number(loss)}") for factor, loss in pairs],
                hovertemplate="%{text}<extra></extra>",
            )
        )  # fmt: skip
    ticks = sorted({factor for s in drawn for factor in s.factors})
    figure.update_layout(
        height=340,
        xaxis={
            "title": "factor on the learning rates",
            "type": "log",
            "tickvals": ticks,
            "ticktext": [f"x{tick:g}" for tick in ticks],
        },
        yaxis={"title": "change of the loss, percent", "zeroline": True},
    )
    return to_json(figure)
