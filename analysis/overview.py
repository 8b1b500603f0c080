"""The whole analysis of a sweep in one call."""

from dataclasses import dataclass

import pandas as pd

from analysis.axes import AxisEffect, Interaction, axis_effects, interactions
from analysis.claims import Answer, claims
from analysis.distance import Profile, profiles
from analysis.effects import Comparison, compare
from analysis.following import Next, following
from analysis.gains import Gain, gains
from analysis.importance import Importance, importance
from analysis.noise import Signal, signals
from analysis.pareto import Front, fronts
from analysis.rates import Sensitivity, sensitivities
from analysis.rungs import Agreement, agreement
from analysis.statements import learnt, statements
from analysis.summary import Row, summarise
from analysis.table import METRICS, selected_on
from analysis.unsaid import unsaid
from search_space.errors import UsageError

__all__ = ["Analysis", "analyse"]


@dataclass(frozen=True)
class Analysis:
    """What a sweep's table says; `learnt` is the sentence to read first.

    profiles: next-token loss by distance. unsaid: what cannot be told, and why.
    """

    metric: str
    comparison: Comparison
    rows: list[Row]
    rungs: list[Agreement]
    gains: list[Gain]
    profiles: list[Profile]
    axes: list[AxisEffect]
    interactions: list[Interaction]
    importance: list[Importance]
    fronts: list[Front]
    signals: list[Signal]
    following: list[Next]
    sensitivities: list[Sensitivity]
    claims: list[Answer]
    learnt: str
    statements: list[str]
    unsaid: list[str]


def analyse(table: pd.DataFrame, metric: str | None = None) -> Analysis:
    """Analyse the table of a sweep by the loss that it selects on, or by `metric`. The same for any order of rows.

    Trials at another learning rate (role `rate`) are read for `sensitivities` alone.
    """
    metric = metric or selected_on(table)
    if metric not in METRICS:
        raise UsageError(f"metric: {metric!r} is not one of {', '.join(METRICS)}")
    table = table.sort_values(["trial", "rung"], kind="stable")
    frame = table[table["role"] != "rate"]
    comparison = compare(frame, metric)
    rows = summarise(frame, comparison)
    rungs = agreement(frame, metric)
    known = gains(frame, rows)
    axes = axis_effects(frame, metric)
    crossed = interactions(frame, metric)
    weight = importance(frame, metric, axes)
    costs = fronts(frame, metric, rows)
    noise = signals(frame)
    further = following(frame, metric, rows)
    rates = sensitivities(table, metric)
    return Analysis(
        metric=metric,
        comparison=comparison,
        rows=list(rows),
        rungs=list(rungs),
        gains=list(known),
        profiles=list(profiles(frame, rows)),
        axes=list(axes),
        interactions=list(crossed),
        importance=list(weight),
        fronts=list(costs),
        signals=list(noise),
        following=list(further),
        sensitivities=list(rates),
        claims=list(claims(frame, dict.fromkeys([metric, "continue"]))),
        learnt=learnt(comparison, frame),
        statements=statements(frame, comparison, rows, rungs, known),
        unsaid=unsaid(table, metric, axes, crossed, weight, costs, noise, further, rates),
    )
