"""One self-contained page per sweep: statements first, then the table, the figures and how to go on.

No network: styles and scripts are inside. Plotly's bundle (4.8 MB) is stored gzipped (2.0 MB as text) and unpacked
by the browser's own DecompressionStream; where that is missing, the text alternatives stand in for the figures.
"""

import base64
import gzip
import json
import os
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from analysis import Analysis, Effect, Row, analyse, words
from analysis.table import CURVES, DISTANCES, latest, load, to_frame
from reports import plots, text
from search_space.errors import UsageError

__all__ = ["render", "write"]


def write(folder: Path) -> Path:
    """Analyse the sweep in `folder` and write its `report.html` atomically; returns the file's path.

    Raises `UsageError` if `trials.parquet` is missing or unreadable. Curves and configuration may be missing.
    """
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such sweep folder")
    trials = load(folder / "trials.parquet")
    curves = folder / "curves.parquet"
    config = folder / "sweep.yaml"
    page = render(
        folder.name,
        trials,
        load(curves, CURVES) if curves.exists() else to_frame([], CURVES),
        config.read_text(encoding="utf-8") if config.exists() else "",
    )
    target = folder / "report.html"
    temporary = folder / f".report.html.{os.getpid()}.tmp"
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def render(name: str, trials: pd.DataFrame, curves: pd.DataFrame, config: str) -> str:
    """The page of a sweep called `name`. The same input gives the same bytes."""
    analysis = analyse(trials)
    figures = {"forest": plots.forest(analysis), "curves": plots.curves(analysis, trials, curves)}
    figures = {key: figure for key, figure in figures.items() if figure}
    environment = Environment(
        loader=PackageLoader("reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": words.number,
        "percent": words.percent,
        "large": words.large,
        "span": words.span,
        "signed": words.signed,
        "interval": words.interval,
    }
    last = latest(trials)
    return environment.get_template("report.html.j2").render(
        name=name,
        analysis=analysis,
        metric=words.METRIC_NAMES[analysis.metric],
        headers=list(zip(text.HEADERS, _numeric(), strict=True)),
        rows=[(row, list(zip(text.cells(row), _sort_keys(row), strict=True))) for row in analysis.rows],
        losses=text.LOSSES.values(),
        gains=[list(gains) for _, gains in groupby(analysis.gains, lambda gain: gain.design)],
        unsaid=sorted({gain.reason for gain in analysis.gains if gain.reason}),
        distance=_by_distance(analysis),
        states=last["state"].value_counts().to_dict(),
        figures=figures,
        figure_data=_embedded(figures),
        forest_text=_forest_text(analysis),
        colours=plots.colours(analysis),
        verdict_colours=plots.VERDICTS,
        seconds=float(last["seconds"].sum()),
        tokens=int(last["tokens"].sum()),
        failures=last[last["state"] == "failed"].fillna({"reason": "no reason recorded"}).to_dict("records"),
        config=config,
        plotly=_plotly() if figures else "",
    )


def _forest_text(analysis: Analysis) -> str:
    parts = [
        f"{e.design} {words.signed(e.difference)} ({words.interval(e.low, e.high)}), {e.verdict}"
        for e in analysis.comparison.effects
        if e.role == "arm" and e.low is not None
    ]
    return "Difference to the baseline in nats per token with 95% interval: " + "; ".join(parts) + "."


def _by_distance(analysis: Analysis) -> list[tuple[str, list[float | None]]]:
    """The stretches that anything was scored in, and the losses there in the order of the profiles."""
    columns = zip(*(profile.losses for profile in analysis.profiles), strict=True)
    pairs = zip(words.stretches(DISTANCES), columns, strict=False)  # there may be no profile
    return [(stretch, list(losses)) for stretch, losses in pairs if any(loss is not None for loss in losses)]


def _numeric() -> list[bool]:
    return [header not in ("design", "verdict", "state") for header in text.HEADERS]


def _sort_keys(row: Row) -> list[float | str]:
    """What a click on a header sorts by, in the order of the headers; an empty key goes last."""
    of = row.effect or Effect(row.design, row.role)
    keys: list[float | str | None] = [
        row.design, row.verdict, row.seeds, row.rung, *(row.losses[metric] for metric in text.LOSSES),
        of.difference, of.low, of.p_adjusted, of.seeds_needed,
        row.seconds, row.tokens_per_second, row.parameters, row.train_flops_per_token, row.prefill_flops_per_token,
        row.state,
    ]  # fmt: skip
    return ["" if key is None else key for key in keys]


def _embedded(figures: dict[str, Any]) -> str:
    """JSON that cannot close the script element it stands in."""
    return json.dumps(figures, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")


@cache
def _plotly() -> str:
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
