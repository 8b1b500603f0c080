"""The whole analysis of a sweep in one call."""

from dataclasses import dataclass

import pandas as pd

from analysis.effects import Comparison, compare
from analysis.rungs import Agreement, agreement
from analysis.statements import learnt, statements
from analysis.summary import Row, summarise
from analysis.table import METRIC, METRICS
from search_space.errors import UsageError

__all__ = ["Analysis", "analyse"]


@dataclass(frozen=True)
class Analysis:
    """What a sweep's table says; `learnt` is the sentence to read first."""

    metric: str
    comparison: Comparison
    rows: list[Row]
    rungs: list[Agreement]
    learnt: str
    statements: list[str]


def analyse(frame: pd.DataFrame, metric: str = METRIC) -> Analysis:
    """Analyse the table of a sweep by one of its held-out losses. Pure, and the same for any order of rows."""
    if metric not in METRICS:
        raise UsageError(f"metric: {metric!r} is not one of {', '.join(METRICS)}")
    comparison = compare(frame, metric)
    rows = summarise(frame, comparison)
    rungs = agreement(frame, metric)
    return Analysis(
        metric=metric,
        comparison=comparison,
        rows=list(rows),
        rungs=list(rungs),
        learnt=learnt(comparison, frame),
        statements=statements(frame, comparison, rows, rungs),
    )
