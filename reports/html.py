"""One self-contained page per sweep: the verdict first, then the evidence, and how to go on.

Nothing is loaded: styles and scripts are inside. Plotly's bundle (4.8 MB) is stored gzipped (2.0 MB as text) and
unpacked by the browser's own DecompressionStream; where that is missing, the text alternatives stand in for the
figures.
"""

import base64
import gzip
import json
from functools import cache
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from analysis import Analysis, words
from analysis.table import latest
from reports import curves, designs, findings, forest, scatter
from reports.about import About
from reports.figures import VERDICTS, Figure, colours
from reports.grid import Grid, change, changes
from reports.ladder import Section

__all__ = ["render"]


def render(
    analysis: Analysis, trials: pd.DataFrame, points: pd.DataFrame, about: About, promotion: Section | None = None
) -> str:
    """The page of a sweep from its analysis, its table and its curves. The same input gives the same bytes.

    promotion: the ladder and the decision, which a page without them says nothing of.
    """
    promotion = promotion or Section()
    drawn = {"ladder": promotion.figure} | _figures(analysis, trials, points)
    figures = {name: figure for name, figure in drawn.items() if figure}
    environment = Environment(
        loader=PackageLoader("reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"large": words.large, "percent": words.percent, "span": words.span}
    last = latest(trials)
    return environment.get_template("report.html.j2").render(
        about=about,
        analysis=analysis,
        metric=words.METRIC_NAMES[analysis.metric],
        grids=_grids(analysis, trials, about) | promotion.grids,
        promotion=promotion,
        missing_gains=sorted({gain.reason for gain in analysis.gains if gain.reason}),
        most=forest.MOST,
        tested=sum(e.role == "arm" and e.low is not None for e in analysis.comparison.effects),
        states=last["state"].value_counts().to_dict(),
        linked=bool(last["mlflow_run"].notna().any()),
        cost=_cost(last),
        figures=figures,
        alternatives=_alternatives(analysis) | {"ladder": promotion.alternative},
        figure_data=_embedded(figures),
        fronts=[front.cost for front in analysis.fronts],
        legend=curves.legend(analysis, trials[trials["role"] != "rate"]),
        rate_legend={s.design: colours(analysis)[s.design] for s in scatter.steepest(analysis.sensitivities)},
        verdicts=VERDICTS,
        plotly=_plotly() if figures else "",
    )


def _figures(analysis: Analysis, trials: pd.DataFrame, points: pd.DataFrame) -> dict[str, Figure | None]:
    return {
        "forest": forest.effects(analysis),
        "axes": forest.axes(analysis.axes),
        **{f"pareto-{front.cost}": scatter.front(front) for front in analysis.fronts},
        "curves": curves.curves(analysis, trials, points),
        "rates": scatter.rates(analysis.sensitivities, colours(analysis)),
        "rungs": forest.rungs(analysis.rungs),
    }


def _grids(analysis: Analysis, trials: pd.DataFrame, about: About) -> dict[str, Grid]:
    """Tables by the name of their section, those that have a row."""
    grids = (
        designs.designs(analysis, trials, about),
        findings.axes(analysis.axes),
        findings.claims(analysis.claims),
        findings.fronts(analysis.fronts),
        findings.interactions(analysis.interactions),
        findings.importance(analysis.importance, analysis.axes),
        designs.gains(analysis),
        designs.distance(analysis),
        findings.noise(analysis.comparison.noise),
        findings.signals(analysis.signals),
        findings.sensitivities(analysis.sensitivities),
        findings.rungs(analysis.rungs),
        findings.following(analysis.following),
        designs.failures(trials),
        designs.each_trial(trials, analysis.metric, about),
    )
    return {grid.name: grid for grid in grids if grid.lines}


def _alternatives(analysis: Analysis) -> dict[str, str]:
    """What the figures show, in words."""
    effects = (
        f"{e.design} {words.signed(e.difference)} ({words.interval(e.low, e.high)}), {e.verdict}"
        for e in analysis.comparison.effects
        if e.role == "arm" and e.low is not None
    )
    axes = (
        f"{e.axis} {e.choice} against {e.reference} {change(e.effect)} ({changes(e.low, e.high).text}), {e.verdict}"
        for e in analysis.axes
        if e.low is not None
    )
    rungs = (
        f"rung {a.rung} {words.percent(a.decision_accuracy)}" for a in analysis.rungs if a.decision_accuracy is not None
    )
    rates = (f"{s.design} is best at x{s.best:g}" for s in analysis.sensitivities)
    fronts = {
        f"pareto-{front.cost}": f"Loss against {findings.COSTS.get(front.cost, front.cost)}; on the frontier: "
        + "; ".join(
            f"{p.design} (loss {words.number(p.loss)}, cost {words.large(p.cost)})"
            for p in front.points
            if p.front and p.role != "control"
        )
        + "."
        for front in analysis.fronts
    }
    return fronts | {
        "forest": f"Difference to the baseline in nats per token with 95% interval: {_listed(effects)}.",
        "axes": f"Change of the loss by choice with 95% interval: {_listed(axes)}.",
        "curves": "Training loss by raw tokens, one line per trial; the held-out losses at the rungs are in the table "
        "of designs.",
        "rates": f"Change of the loss by the factor on the learning rates: {_listed(rates)}.",
        "rungs": f"Share of pairs of trials in the order of the last rung, 50% being chance: {_listed(rungs)}.",
    }


def _listed(parts: Any) -> str:
    """As many as a figure shows."""
    known = list(parts)
    more = [f"{len(known) - forest.MOST} more in the table"] if len(known) > forest.MOST else []
    return "; ".join(known[: forest.MOST] + more)


def _cost(last: pd.DataFrame) -> list[tuple[str, str]]:
    """Of the whole sweep; without a trained token nothing."""
    if not last["tokens"].sum():
        return []
    done = last.fillna({"seconds": 0.0, "train_flops_per_token": 0.0})
    wasted = done.loc[done["state"].isin(("pruned", *designs.UNSUCCESSFUL)), "seconds"].sum()
    seconds = float(done["seconds"].sum())
    facts = [
        ("training time, all trials", words.span(seconds)),
        ("of it in trials cut short", words.percent(wasted / seconds) if seconds else words.DASH),
        ("raw tokens", words.large(float(done["tokens"].sum()))),
        ("training FLOPs", words.large(float((done["tokens"] * done["train_flops_per_token"]).sum()))),
    ]
    return facts


def _embedded(figures: dict[str, Any]) -> str:
    """JSON that cannot close the script element it stands in."""
    return json.dumps(figures, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")


@cache
def _plotly() -> str:
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
