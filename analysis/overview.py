"""The whole analysis of a sweep in one call."""

from dataclasses import dataclass

import pandas as pd

from analysis.distance import Profile, profiles
from analysis.effects import Comparison, compare
from analysis.gains import Gain, gains
from analysis.rungs import Agreement, agreement
from analysis.statements import learnt, statements
from analysis.summary import Row, summarise
from analysis.table import METRICS, selected_on
from search_space.errors import UsageError

__all__ = ["Analysis", "analyse"]


@dataclass(frozen=True)
class Analysis:
    """What a sweep's table says; `learnt` is the sentence to read first.

    profiles: next-token loss by distance.
    """

    metric: str
    comparison: Comparison
    rows: list[Row]
    rungs: list[Agreement]
    gains: list[Gain]
    profiles: list[Profile]
    learnt: str
    statements: list[str]


def analyse(frame: pd.DataFrame, metric: str | None = None) -> Analysis:
    """Analyse the table of a sweep by the loss that it selects on, or by `metric`. The same for any order of rows."""
    metric = metric or selected_on(frame)
    if metric not in METRICS:
        raise UsageError(f"metric: {metric!r} is not one of {', '.join(METRICS)}")
    comparison = compare(frame, metric)
    rows = summarise(frame, comparison)
    rungs = agreement(frame, metric)
    known = gains(frame, rows)
    return Analysis(
        metric=metric,
        comparison=comparison,
        rows=list(rows),
        rungs=list(rungs),
        gains=list(known),
        profiles=list(profiles(frame, rows)),
        learnt=learnt(comparison, frame),
        statements=statements(frame, comparison, rows, rungs, known),
    )
