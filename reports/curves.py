"""Training loss by raw tokens, with the held-out losses at the rungs."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis import Analysis
from analysis.table import latest
from reports.figures import ACCENT, BLUE, GREY, Figure, colours, hover, log_axis, to_json

__all__ = ["curves", "legend"]

FEW = 40  # trials, of which each has a line and a colour of its own
MOST_POINTS = 160  # of a line
ALL_POINTS = 20_000  # of all lines together: what a page opens quickly with
MOST_SEEDS = 6  # lines of a design that is singled out
OTHERS = "all other trials"


def legend(analysis: Analysis, trials: pd.DataFrame) -> dict[str, str]:
    """Name to colour: every design of a small sweep; of a large one the baseline, the best and the controls."""
    if _is_small(trials):
        return colours(analysis)
    best = analysis.rows[0]
    singled = {best.design: BLUE} if best.role == "arm" else {}
    singled |= {row.design: ACCENT if row.role == "baseline" else GREY for row in analysis.rows if row.role != "arm"}
    return singled | {OTHERS: f"{GREY}80"}


def curves(analysis: Analysis, trials: pd.DataFrame, points: pd.DataFrame) -> Figure | None:
    """One line per trial; held-out losses as points, a cross where a trial was pruned; dotted lines at the rungs.

    A large sweep has lines for the baseline and the best design; the others are drawn faintly and as one.
    """
    trials = trials[trials["role"] != "rate"]
    hues = legend(analysis, trials)
    last = latest(trials)
    thin = _thinned(points[points["trial"].isin(last["trial"])])
    rungs = trials[trials["rung"] > 0].sort_values(["trial", "rung"])
    singled = last[last["design"].isin(hues.keys())]
    if not _is_small(trials):
        singled = singled.groupby("design").head(MOST_SEEDS)
    lines = {number: line for number, line in thin.groupby("trial")}
    figure = go.Figure()
    others = ~last["trial"].isin(singled["trial"])
    if others.any():
        _draw_faintly(figure, [lines[n] for n in last.loc[others, "trial"] if n in lines])
        _held_out(figure, rungs[~rungs["trial"].isin(singled["trial"])], analysis.metric, hues[OTHERS], 5)
    for trial in sorted(singled.itertuples(), key=lambda trial: (trial.role == "baseline", trial.trial)):
        design, role = str(trial.design), str(trial.role)
        if trial.trial in lines:
            line = {"color": hues[design], "width": 2.6 if role == "baseline" else 1.2 if _is_small(trials) else 2}
            line |= {"dash": "dot"} if role == "control" else {}
            own = lines[trial.trial]
            figure.add_trace(
                go.Scatter(
                    x=own["tokens"].tolist(), y=own["loss"].tolist(), mode="lines", line=line,
                    opacity=1 if role == "baseline" else 0.75,
                    hovertemplate=f"{hover(f'{design}, seed {trial.seed}')}<br>training %{{y:.3f}}<extra></extra>",
                )
            )  # fmt: skip
        _held_out(figure, rungs[rungs["trial"] == trial.trial], analysis.metric, hues[design], 9)
    if not figure.data:
        return None
    for rung, tokens in rungs.groupby("rung")["tokens"].median().items():
        figure.add_vline(x=float(tokens), line={"color": GREY, "width": 1, "dash": "dot"}, layer="below")
        figure.add_annotation(
            x=float(tokens), y=1, yref="paper", xanchor="right", yanchor="top", text=f"rung {rung}", showarrow=False,
            font={"size": 11},
        )  # fmt: skip
    figure.update_layout(
        height=440, xaxis={"title": "raw tokens seen", "rangemode": "tozero"}, yaxis=log_axis("loss, nats per token")
    )
    return to_json(figure)


def _is_small(trials: pd.DataFrame) -> bool:
    return trials["trial"].nunique() <= FEW


def _draw_faintly(figure: go.Figure, lines: Sequence[pd.DataFrame]) -> None:
    """As one trace, with gaps."""
    x: list[float | None] = []
    y: list[float | None] = []
    for line in lines:
        x += [*line["tokens"].tolist(), None]
        y += [*line["loss"].tolist(), None]
    figure.add_trace(
        go.Scatter(x=x, y=y, mode="lines", line={"color": GREY, "width": 0.8}, opacity=0.3, hoverinfo="skip")
    )


def _held_out(figure: go.Figure, rungs: pd.DataFrame, metric: str, colour: str, size: int) -> None:
    rungs = rungs[np.isfinite(rungs[metric])]
    if rungs.empty:
        return
    pruned = (rungs["state"] == "pruned") & ~rungs["trial"].duplicated(keep="last")
    names = [hover(f"{design}, seed {seed}") for design, seed in zip(rungs["design"], rungs["seed"], strict=True)]
    figure.add_trace(
        go.Scatter(
            x=rungs["tokens"].tolist(),
            y=rungs[metric].tolist(),
            mode="markers",
            marker={
                "color": colour,
                "size": size,
                "symbol": np.where(pruned, "x", "circle").tolist(),
                "line": {"width": 1 if size > 5 else 0, "color": "rgba(127,127,127,.6)"},
            },
            text=names if len(set(names)) > 1 else names[0],
            hovertemplate="%{text}<br>held out %{y:.3f}<extra></extra>",
        )
    )


def _thinned(points: pd.DataFrame) -> pd.DataFrame:
    """Of each line the means of runs of neighbours, so that no line and not all together have too many points."""
    most = int(np.clip(ALL_POINTS // max(points["trial"].nunique(), 1), 12, MOST_POINTS))
    points = points.sort_values(["trial", "tokens"], kind="stable")
    by = points.groupby("trial")["tokens"]
    place, count = by.cumcount(), by.transform("size")
    run = np.where(count > most, place * most // count, place)
    means = points.groupby([points["trial"], run])[["tokens", "loss"]].mean().reset_index(level="trial")
    return means.astype({"tokens": "int64"})
