"""What the analysis leaves out of a sweep, and why: so that an empty section is no riddle."""

from collections.abc import Sequence

import pandas as pd

from analysis.axes import AxisEffect, Interaction
from analysis.contrasts import shared_rung
from analysis.following import Next
from analysis.importance import FEWEST, Importance
from analysis.noise import Signal
from analysis.pareto import COSTS, Front
from analysis.rates import Sensitivity
from analysis.table import comparable, latest
from analysis.words import count, joined

__all__ = ["unsaid"]

_COSTS = {"prefill_flops_per_token": "prefill", "train_flops": "training", "memory": "memory"}


def unsaid(
    frame: pd.DataFrame,
    metric: str,
    axes: Sequence[AxisEffect],
    interactions: Sequence[Interaction],
    importance: Sequence[Importance],
    fronts: Sequence[Front],
    signals: Sequence[Signal],
    following: Sequence[Next],
    sensitivities: Sequence[Sensitivity],
) -> list[str]:
    """Sentences without an end stop; frame: the whole table."""
    rows = comparable(frame[~frame["role"].isin(["control", "rate"])], metric)
    rung = shared_rung(rows)
    if rung is None:
        return ["No design has reached a rung, so nothing is said of axes, costs, noise or what to run next"]
    designs = int(rows.loc[rows["rung"] == rung, "design"].nunique())
    at = f"at rung {rung}"
    signal = next((signal for signal in signals if signal.metric == metric), None)
    found: list[str] = []
    if not axes:
        why = "only one design is there" if designs < 2 else "no axis has two choices among the designs"
        found.append(f"No effect of an axis can be told {at}, since {why}")
    elif nameless := [f"{e.axis}={e.choice}" for e in axes if e.effect is None]:
        found.append(f"No effect can be told of {_some(nameless)} {at}: the table of axis effects says why for each")
    if not interactions:
        found.append(f"No interaction can be told {at}, since no four designs cross two choices of two axes")
    if not importance and designs < FEWEST:
        found.append(f"Importance of axes needs {FEWEST} designs {at}, and there {_are(designs)}")
    elif not importance:
        found.append("Importance of axes cannot be told, since no axis has two choices among the designs")
    elif any(i.ped_anova is None or i.fanova is None for i in importance):
        found.append("One of the measures of importance cannot be had from these designs")
    if missing := [_COSTS[cost] for cost in COSTS if cost not in {front.cost for front in fronts}]:
        found.append(
            f"There is no front of loss against {joined(missing)} {at}, for want of two designs that have both"
        )
    if signal is None or signal.sigma is None:
        found.append(f"Noise between seeds is unknown {at}, hence no interval and no advice on what to run next")
    elif not following:
        found.append(f"What to run next cannot be told {at}, since {_no_advice(signal)}")
    if not sensitivities:
        tried = (frame["role"] == "rate").any()
        why = "no design has a loss at two of them yet" if tried else "no trial had another one"
        found.append(f"How much the learning rate matters cannot be told, since {why}")
    return found + _assumed(frame, rows)


def _assumed(frame: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    """What the intervals take for granted, where it can matter; shares are those of docs/calibration.md."""
    found = []
    arms = latest(rows[rows["role"] == "arm"]).groupby("design")["seed"].nunique().tolist()
    if single := arms.count(1):
        them = "the design with one seed is" if single == 1 else f"the {single} designs with one seed are"
        found.append(
            f"Whether {them} noisier than the baseline cannot be told, and the intervals take all for alike: of "
            "designs with twice the noise they covered 85% in simulations"
        )
    if ((frame["state"] == "pruned") & (frame["role"] == "arm")).any():
        found.append(
            "How much luck has brought designs through pruning cannot be told: over all designs of a sweep intervals "
            "covered 94% in simulations, of those that came through 81 to 93%; new seeds tell, as those of a ladder do"
        )
    return found


def _no_advice(signal: Signal) -> str:
    if signal.spread is None:
        return "fewer than three designs are there"
    return "one more seed would hardly change the choice" if signal.spread else "designs do not differ beyond noise"


def _are(designs: int) -> str:
    return f"{'is' if designs == 1 else 'are'} {designs}"


def _some(names: Sequence[str]) -> str:
    return joined(list(names)) if len(names) <= 3 else f"{joined(list(names[:2]))} and {count(len(names) - 2, 'other')}"
