"""What the figures share. Plotly JSON without colours of the page: the page sets those for light and dark."""

import json
from typing import Any

import plotly.graph_objects as go

from analysis import Analysis

__all__ = ["ACCENT", "BLUE", "GREY", "TICKS", "VERDICTS", "Figure", "colours", "hover", "log_axis", "plain", "to_json"]

Figure = dict[str, Any]

ACCENT = "#d9480f"  # the baseline; this and the others legible on white and on black
BLUE = "#3f7fd0"
GREY = "#8a8f98"
VERDICTS = {"better": "#1f9d6b", "worse": "#c2417c", "undecided": GREY}
TICKS = [digit * 10**power for power in range(-4, 2) for digit in (1, 2, 5)]  # of a logarithmic axis of losses
DIGITS = 6  # of a number in a figure: finer than any screen


def colours(analysis: Analysis) -> dict[str, str]:
    """Design to colour: the baseline's own, controls grey, others spread by the golden angle."""
    hues: dict[str, str] = {}
    for row in analysis.rows:
        hue = int(200 + 137.5 * len(hues)) % 360
        hues[row.design] = {"baseline": ACCENT, "control": GREY}.get(row.role, f"hsl({hue},52%,50%)")
    return hues


def plain(text: str) -> str:
    """Plotly reads a subset of HTML in texts; names are to be shown as they are."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("%{", "% {")


def hover(*lines: str) -> str:
    """Lines of a hover text."""
    return "<br>".join(map(plain, lines))


def log_axis(title: str) -> dict[str, Any]:
    """A logarithmic axis of losses with ticks that people read."""
    return {"title": title, "type": "log", "tickvals": TICKS, "ticktext": [f"{tick:g}" for tick in TICKS]}


def to_json(figure: go.Figure) -> Figure:
    """Lists of numbers as such (Plotly would pack arrays in base64), with as many digits as can be seen."""
    figure.update_layout(template="none", showlegend=False)
    return json.loads(json.dumps(figure.to_plotly_json(), default=list), parse_float=_short)


def _short(text: str) -> float:
    return float(f"{float(text):.{DIGITS}g}")
