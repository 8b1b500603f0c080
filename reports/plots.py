"""The figures of a report as Plotly JSON, without colours of the page: the page sets those for light and dark."""

import json
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis import Analysis, Effect
from analysis.table import latest
from analysis.words import interval, signed

__all__ = ["colours", "curves", "forest"]

ACCENT = "#d9480f"  # the baseline, legible on white and on black
VERDICTS = {"better": "#1f9d6b", "worse": "#c2417c", "undecided": "#8a8f98"}
MOST_POINTS = 160  # of a curve
ROW_PIXELS = 44
TICKS = [digit * 10**power for power in range(-4, 2) for digit in (1, 2, 5)]  # of the logarithmic axis


def colours(analysis: Analysis) -> dict[str, str]:
    """Design to colour: the baseline's own, controls grey, others spread by the golden angle."""
    hues: dict[str, str] = {}
    for row in analysis.rows:
        hue = int(200 + 137.5 * len(hues)) % 360
        hues[row.design] = {"baseline": ACCENT, "control": "#8a8f98"}.get(row.role, f"hsl({hue},52%,50%)")
    return hues


def forest(analysis: Analysis) -> dict[str, Any] | None:
    """Differences to the baseline with their intervals, largest improvement on top; None if there is no interval."""
    effects = [e for e in analysis.comparison.effects if e.role == "arm" and e.low is not None and e.high is not None]
    if not effects:
        return None
    effects.sort(key=lambda effect: -(effect.difference or 0))
    figure = go.Figure()
    for verdict, colour in VERDICTS.items():
        chosen = [(y, effect) for y, effect in enumerate(effects) if effect.verdict == verdict]
        if chosen:
            figure.add_trace(_intervals(chosen, colour))
    for y, effect in enumerate(effects):
        figure.add_annotation(
            x=0, xref="paper", xanchor="left", y=y, yanchor="bottom", yshift=5, text=_plain(effect.design),
            showarrow=False, font={"size": 12},
        )  # fmt: skip
    figure.add_vline(x=0, line={"color": ACCENT, "width": 1.5, "dash": "dot"})
    figure.update_layout(
        height=ROW_PIXELS * len(effects) + 90,
        xaxis={"title": "difference to the baseline, nats per token", "zeroline": False},
        yaxis={"range": [-0.6, len(effects) - 0.1], "visible": False, "fixedrange": True},
    )
    return _json(figure)


def _intervals(chosen: list[tuple[int, Effect]], colour: str) -> go.Scatter:
    middle = np.array([effect.difference for _, effect in chosen], dtype=float)
    low, high = np.array([(effect.low, effect.high) for _, effect in chosen], dtype=float).T
    return go.Scatter(
        x=middle,
        y=[y for y, _ in chosen],
        mode="markers",
        marker={"color": colour, "size": 9, "symbol": "square"},
        error_x={"array": high - middle, "arrayminus": middle - low, "color": colour, "thickness": 2, "width": 0},
        text=[f"{_plain(e.design)}<br>{signed(e.difference)} ({interval(e.low, e.high)})" for _, e in chosen],
        hovertemplate="%{text}<extra></extra>",
    )


def curves(analysis: Analysis, trials: pd.DataFrame, curve: pd.DataFrame) -> dict[str, Any] | None:
    """Training loss by raw tokens per trial, held-out losses at the rungs, a cross where a trial was pruned."""
    hues = colours(analysis)
    last = latest(trials).set_index("trial")
    figure = go.Figure()
    order = [trial for trial in last.index if last.at[trial, "role"] != "baseline"]
    for trial in [*order, *last.index.difference(order)]:  # the baseline is drawn on top
        design, role = str(last.at[trial, "design"]), str(last.at[trial, "role"])
        line = {"color": hues[design], "width": 2.6 if role == "baseline" else 1.2}
        if role == "control":
            line["dash"] = "dot"
        points = _thinned(curve[curve["trial"] == trial].sort_values("tokens"))
        name = f"{_plain(design)}, seed {last.at[trial, 'seed']}"
        if len(points):
            figure.add_trace(
                go.Scatter(
                    x=points["tokens"].to_numpy(), y=points["loss"].to_numpy(dtype="float32"), mode="lines", line=line,
                    opacity=1 if role == "baseline" else 0.75,
                    hovertemplate=f"{name}<br>training %{{y:.3f}}<extra></extra>",
                )
            )  # fmt: skip
        rungs = trials[(trials["trial"] == trial) & (trials["rung"] > 0)].sort_values("rung")
        if len(rungs):
            figure.add_trace(_held_out(rungs, analysis.metric, hues[design], name))
    if not figure.data:
        return None
    figure.update_layout(
        height=440,
        xaxis={"title": "raw tokens seen", "rangemode": "tozero"},
        yaxis={
            "title": "loss, nats per token",
            "type": "log",
            "tickvals": TICKS,
            "ticktext": [f"{t:g}" for t in TICKS],
        },
    )
    return _json(figure)


def _held_out(rungs: pd.DataFrame, metric: str, colour: str, name: str) -> go.Scatter:
    symbols = ["circle"] * len(rungs)
    if rungs["state"].iloc[-1] == "pruned":
        symbols[-1] = "x"
    return go.Scatter(
        x=rungs["tokens"].to_numpy(),
        y=rungs[metric].to_numpy(),
        mode="markers",
        marker={"color": colour, "size": 9, "symbol": symbols, "line": {"width": 1, "color": "rgba(127,127,127,.6)"}},
        hovertemplate=f"{name}<br>held out %{{y:.3f}}<extra></extra>",
    )


def _thinned(points: pd.DataFrame) -> pd.DataFrame:
    """At most `MOST_POINTS` points, the means of runs of neighbours."""
    if len(points) <= MOST_POINTS:
        return points
    return points.groupby(np.arange(len(points)) * MOST_POINTS // len(points))[["tokens", "loss"]].mean()


def _plain(text: str) -> str:
    """Plotly reads a subset of HTML in texts; names are to be shown as they are."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("%{", "% {")


def _json(figure: go.Figure) -> dict[str, Any]:
    figure.update_layout(template="none", showlegend=False)
    return json.loads(figure.to_json())
