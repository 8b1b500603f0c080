"""Which axes matter: two published measures through Optuna's own evaluators, next to the largest effect of the axis.

PED-ANOVA (Watanabe et al. 2023) asks which axes decide whether a design is among the best; it looks at finished trials
only, so the study that it is given holds each design as one finished trial, with the mean over seeds of its log loss at
`shared_rung`. fANOVA (Hutter et al. 2014) splits the variance that a random forest predicts. Neither knows of noise:
with few designs both give shares to axes that do nothing, so read them next to the effects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, simplefilter

import numpy as np
import pandas as pd

from analysis.axes import AxisEffect, Coding, coding
from analysis.contrasts import means, shared_rung
from analysis.table import comparable

if TYPE_CHECKING:
    import optuna

__all__ = ["Importance", "importance"]

FEWEST = 4  # designs
TREES = 32  # of the forest: with 400 designs shares move by up to 0.04 from seed to seed, by 0.02 with 64
BEST = 5  # designs that PED-ANOVA's documentation wants among the best, where that is less than half of them
_SEED = 1


@dataclass(frozen=True)
class Importance:
    """Shares of an axis, which sum to 1 over the axes; None where they cannot be had.

    effect: the largest absolute `AxisEffect` of its choices, a log ratio.
    """

    axis: str
    ped_anova: float | None
    fanova: float | None
    effect: float | None


def importance(frame: pd.DataFrame, metric: str, effects: Sequence[AxisEffect]) -> tuple[Importance, ...]:
    """Every axis that varies, the largest effect first; nothing with fewer than `FEWEST` designs at the rung.

    An axis that means nothing in a design has a choice of its own there, since the evaluators want every trial to
    have every parameter.
    """
    trials = frame[~frame["role"].isin(["control", "rate"])].sort_values("trial")
    rows = comparable(trials, metric)
    at_rung = rows[rows["rung"] == shared_rung(rows)]
    if at_rung["design"].nunique() < FEWEST:
        return ()
    mean = means(at_rung, metric)
    coded = coding(trials, mean.designs)
    if not coded.choices:
        return ()
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator  # here: it takes a second

    study = _study(coded, mean.log_loss_D)
    best = min(max(0.1, BEST / len(mean.designs)), 0.5)
    ped = _shares(study, PedAnovaImportanceEvaluator(target_quantile=best))
    fanova = _shares(study, FanovaImportanceEvaluator(n_trees=TREES, seed=_SEED))
    largest = {axis: _largest([e.effect for e in effects if e.axis == axis]) for axis in coded.choices}
    found = [Importance(axis, _float(ped.get(axis)), _float(fanova.get(axis)), largest[axis]) for axis in coded.choices]
    return tuple(sorted(found, key=lambda i: -(i.effect or 0.0)))


def _study(coded: Coding, log_loss_D: np.ndarray) -> "optuna.Study":
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution

    names = {axis: (*choices, "idle") for axis, choices in coded.choices.items()}
    used = {axis: sorted(set(codes)) for axis, codes in zip(names, coded.codes_DA.T.tolist(), strict=True)}
    distributions: dict[str, BaseDistribution] = {
        axis: CategoricalDistribution([names[axis][c] for c in used[axis]]) for axis in names
    }
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study()
    finally:
        optuna.logging.set_verbosity(verbosity)
    study.add_trials(
        optuna.trial.create_trial(
            params={axis: names[axis][c] for axis, c in zip(names, codes, strict=True)},
            distributions=distributions,
            value=float(value),
        )
        for codes, value in zip(coded.codes_DA.tolist(), log_loss_D, strict=True)
    )
    return study


def _shares(study: "optuna.Study", evaluator: Any) -> Mapping[str, float]:
    from optuna.importance import get_param_importances

    with catch_warnings():
        simplefilter("ignore")  # experimental, and what the evaluators think of few trials
        try:
            shares = get_param_importances(study, evaluator=evaluator)
        except (ValueError, RuntimeError, ImportError, ZeroDivisionError):  # all equal, or no scikit-learn
            return {}
    known = bool(shares) and np.isfinite(list(shares.values())).all() and sum(shares.values()) > 0
    return shares if known else {}


def _largest(effects: Sequence[float | None]) -> float | None:
    return max((abs(effect) for effect in effects if effect is not None), default=None)


def _float(share: float | None) -> float | None:
    return None if share is None else float(share)
