"""Values with their intervals, one below the other: designs, choices of an axis, early rungs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import expm1
from typing import Any

import numpy as np
import plotly.graph_objects as go

from analysis import Agreement, Analysis
from analysis.axes import AxisEffect
from analysis.rungs import CHANCE, PUBLISHED
from analysis.words import interval, percent, signed
from reports.figures import ACCENT, BLUE, VERDICTS, Figure, hover, plain, to_json
from reports.grid import LARGEST, change, changes

__all__ = ["MOST", "axes", "effects", "rungs"]

MOST = 30  # rows of a figure; the table has the rest
ROW_PIXELS = 44
OUTSIDE = 0.2  # share of the bars that may be beyond the frame, with their values as text
ARROW = "\u25b8"
WIDEST = 3.0  # times the largest value or the usual interval; what is longer runs out of the frame


@dataclass(frozen=True)
class _Bar:
    label: str
    value: float
    low: float
    high: float
    colour: str
    text: str


def effects(analysis: Analysis) -> Figure | None:
    """Differences to the baseline of the first `MOST` designs, largest improvement on top.

    The first are those that came farthest: a difference at an early rung may be large and say little.
    """
    first = [row.effect for row in analysis.rows if row.role == "arm" and row.effect and row.effect.low is not None]
    bars = []
    for e in sorted(first[:MOST], key=lambda effect: effect.difference or 0.0):
        if e.difference is not None and e.low is not None and e.high is not None:
            label = e.design if e.rung == analysis.comparison.rung else f"{e.design} (rung {e.rung})"
            text = f"{signed(e.difference)} ({interval(e.low, e.high)}), {e.verdict}"
            bars.append(_Bar(label, e.difference, e.low, e.high, VERDICTS[e.verdict], text))
    return _forest(bars, "difference to the baseline, nats per token", {0.0: ""})


def axes(found: Sequence[AxisEffect]) -> Figure | None:
    """Changes of the loss by choice, in percent, averaged over the other axes; in the order of the axes."""
    bars = []
    for e in found:
        if e.effect is not None and e.low is not None and e.high is not None:
            values = (100 * expm1(min(x, LARGEST)) for x in (e.effect, e.low, e.high))
            text = f"{change(e.effect)} ({changes(e.low, e.high).text}), {e.verdict}"
            bars.append(_Bar(f"{e.axis}: {e.choice} against {e.reference}", *values, VERDICTS[e.verdict], text))
    return _forest(bars[:MOST], "change of the loss, percent", {0.0: ""})


def rungs(found: Sequence[Agreement]) -> Figure | None:
    """Shares of pairs in the order of the last rung, beside chance and the published reference."""
    bars = []
    for a in found:
        if a.decision_accuracy is not None:
            share = a.decision_accuracy
            low, high = (share, share) if a.low is None or a.high is None else (a.low, a.high)
            text = percent(share) if a.low is None else f"{percent(share)} ({percent(low)} to {percent(high)})"
            bars.append(_Bar(f"rung {a.rung}, {a.trials} trials", 100 * share, 100 * low, 100 * high, BLUE, text))
    marks = {100 * CHANCE: "chance", 100 * PUBLISHED: "reference"}
    return _forest(bars, "pairs in the order of the last rung, percent", marks, (0, 104))


def _forest(
    bars: Sequence[_Bar], title: str, marks: Mapping[float, str], limits: tuple[float, float] | None = None
) -> Figure | None:
    """None without a bar. The first bar on top; dotted lines at the `marks`, with their names."""
    if not bars:
        return None
    left, right = limits or _limits(bars)
    figure = go.Figure()
    for colour in dict.fromkeys(bar.colour for bar in bars):
        figure.add_trace(_intervals([(-i, bar) for i, bar in enumerate(bars) if bar.colour == colour], colour))
    labels: list[dict[str, Any]] = [
        {
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "y": -i,
            "yshift": 5,
            "text": plain(bar.label) + ("" if left <= bar.value <= right else f" {ARROW} {plain(bar.text)}"),
        }
        for i, bar in enumerate(bars)
    ]
    labels += [{"x": x, "y": 0.9, "text": name, "font": {"size": 11}} for x, name in marks.items() if name]
    for x in marks:
        figure.add_vline(x=x, line={"color": ACCENT, "width": 1.5, "dash": "dot"})
    figure.update_layout(
        annotations=[label | {"yanchor": "bottom", "showarrow": False} for label in labels],
        height=ROW_PIXELS * len(bars) + (110 if any(marks.values()) else 90),
        xaxis={"title": title, "zeroline": False, "range": [left, right]},
        yaxis={
            "range": [0.4 - len(bars), 1.4 if any(marks.values()) else 0.9],
            "visible": False,
            "fixedrange": True,
        },
    )
    return to_json(figure)


def _limits(bars: Sequence[_Bar]) -> tuple[float, float]:
    """All values but those far beyond the rest, and their intervals unless one is far longer than the rest."""
    rows = np.array(sorted(((bar.value, bar.low, bar.high) for bar in bars), key=lambda row: abs(row[0])))
    size = np.abs(rows[:, 0])
    far = np.flatnonzero(size[1:] > WIDEST * size[:-1].clip(min=float(np.median(rows[:, 2] - rows[:, 1])) / 2))
    if len(far) and len(bars) - far[-1] - 1 <= len(bars) * OUTSIDE:
        rows = rows[: far[-1] + 1]
    values, low, high = rows.T
    most = WIDEST * max(float(np.abs(values).max()), float(np.median(high - low)) / 2)
    left, right = max(min(low.min(), 0), -most), min(max(high.max(), 0), most)
    room = 0.04 * (right - left or 1)
    return float(left - room), float(right + room)


def _intervals(bars: Sequence[tuple[int, _Bar]], colour: str) -> go.Scatter:
    values = [bar.value for _, bar in bars]
    return go.Scatter(
        x=values,
        y=[y for y, _ in bars],
        mode="markers",
        marker={"color": colour, "size": 9, "symbol": "square"},
        error_x={
            "array": [bar.high - bar.value for _, bar in bars],
            "arrayminus": [bar.value - bar.low for _, bar in bars],
            "color": colour,
            "thickness": 2,
            "width": 0,
        },
        text=[hover(bar.label, bar.text) for _, bar in bars],
        hovertemplate="%{text}<extra></extra>",
    )
