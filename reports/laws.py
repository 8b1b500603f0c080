"""Loss against compute along a ladder, with the laws that its levels allow and the run at the target."""

from collections.abc import Sequence

import plotly.graph_objects as go

from analysis.levels import Arm, Ladder
from analysis.words import count, number
from reports.figures import ACCENT, BLUE, TICKS, Figure, hover, to_json

__all__ = ["MOST_ARMS", "drawn", "hues", "laws"]

MOST_ARMS = 6  # drawn, the baseline among them; the tables have all


def drawn(ladder: Ladder, chosen: str | None) -> list[Arm]:
    """The baseline, the design decided on, and the lowest predicted losses."""
    first = [arm for arm in ladder.arms if arm.role == "baseline" or arm.design == chosen]
    return [*first, *(arm for arm in ladder.arms if arm not in first)][:MOST_ARMS]


def hues(arms: Sequence[Arm]) -> dict[str, str]:
    """Design to colour, of arms that begin with the baseline."""
    spread = [BLUE, *(f"hsl({int(200 + 137.5 * i) % 360},52%,50%)" for i in range(1, MOST_ARMS))]
    return {arm.design: ACCENT if i == 0 else spread[i - 1] for i, arm in enumerate(arms)}


def laws(ladder: Ladder, arms: Sequence[Arm], colour: dict[str, str]) -> Figure:
    """Loss against compute, both logarithmic: levels, early rungs, laws with 95% bands, and the run at the target."""
    figure = go.Figure()
    for arm in arms:
        hue, band = colour[arm.design], arm.band
        x = list(band.compute)
        figure.add_trace(
            go.Scatter(
                x=[*x, *reversed(x)], y=[*band.low, *reversed(band.high)], fill="toself", fillcolor=hue, opacity=0.12,
                line={"width": 0}, mode="lines", hoverinfo="skip",
            )
        )  # fmt: skip
        figure.add_trace(
            go.Scatter(x=x, y=list(band.loss), mode="lines", line={"color": hue, "width": 1.6}, hoverinfo="skip")
        )
        for own in (False, True):
            figure.add_trace(_points(arm, hue, own))
        figure.add_trace(_run(ladder, arm, hue))
    figure.add_vline(x=ladder.target.compute, line={"color": ACCENT, "width": 1.5, "dash": "dot"}, layer="below")
    values = [value for arm in arms for value in (*arm.band.low, *arm.band.high, *(point.loss for point in arm.points))]
    ticks = [tick for tick in TICKS if min(values) <= tick <= max(values)]
    axis = {"tickvals": TICKS, "ticktext": [f"{tick:g}" for tick in TICKS]} if len(ticks) > 2 else {"nticks": 6}
    figure.update_layout(
        height=440,
        xaxis={"title": "training compute 6 N D, FLOPs", "type": "log", "exponentformat": "power", "nticks": 8},
        yaxis={"title": "loss, nats per token", "type": "log"} | axis,
    )
    return to_json(figure)


def _points(arm: Arm, hue: str, own: bool) -> go.Scatter:
    points = [point for point in arm.points if point.own == own]
    return go.Scatter(
        x=[point.compute for point in points],
        y=[point.loss for point in points],
        mode="markers",
        marker={"color": hue, "size": 9 if own else 6, "symbol": "circle" if own else "circle-open"},
        text=[
            hover(
                f"{arm.design}, {point.level}, rung {point.rung}", f"{number(point.loss)}, {count(point.seeds, 'seed')}"
            )
            for point in points
        ],
        hovertemplate="%{text}<extra></extra>",
    )


def _run(ladder: Ladder, arm: Arm, hue: str) -> go.Scatter:
    own = arm.forecast
    return go.Scatter(
        x=[ladder.target.compute],
        y=[own.loss],
        mode="markers",
        marker={"color": hue, "size": 10, "symbol": "diamond-open"},
        error_y={
            "array": [own.high - own.loss], "arrayminus": [own.loss - own.low], "color": hue, "thickness": 1.5,
            "width": 6,
        },
        text=[hover(f"{arm.design} at the target", f"{number(own.loss)} ({number(own.low)} to {number(own.high)})")],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
