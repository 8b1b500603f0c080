"""How much an early rung tells about the last one."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.table import METRIC

__all__ = ["Agreement", "agreement"]

FEWEST = 3  # trials, below which an order says nothing


@dataclass(frozen=True)
class Agreement:
    """A rung against the last one, over the `trials` that reached both.

    decision_accuracy: share of the pairs of trials of different designs that the rung orders as the last one does.
    spearman: rank correlation. Both None with fewer than three trials (or no two designs, or all equal).
    Pruned trials are missing at the end, and they are not missing at random: the figures hold for what survived.
    """

    rung: int
    tokens: int
    trials: int
    decision_accuracy: float | None
    spearman: float | None


def agreement(frame: pd.DataFrame, metric: str = METRIC) -> tuple[Agreement, ...]:
    """Every rung before the last against the last. Controls stay out: their order is no decision, and easy."""
    rows = frame[(frame["rung"] >= 1) & np.isfinite(frame[metric]) & (frame["role"] != "control")]
    if rows.empty:
        return ()
    wide = rows.pivot_table(index=["trial", "design"], columns="rung", values=metric)
    tokens = rows.groupby("rung")["tokens"].median()
    last = wide.columns.max()
    return tuple(
        _agreement(int(rung), int(tokens[rung]), wide[[rung, last]].dropna()) for rung in wide.columns if rung != last
    )


def _agreement(rung: int, tokens: int, both: pd.DataFrame) -> Agreement:
    if len(both) < FEWEST:
        return Agreement(rung, tokens, len(both), None, None)
    early, late = both.to_numpy().T
    design = both.index.get_level_values("design").to_numpy()
    i, j = np.triu_indices(len(both), 1)
    differ = design[i] != design[j]
    same_order = np.sign(early[i] - early[j]) == np.sign(late[i] - late[j])
    varied = np.ptp(early) > 0 and np.ptp(late) > 0
    return Agreement(
        rung,
        tokens,
        len(both),
        float(same_order[differ].mean()) if differ.any() else None,
        float(stats.spearmanr(early, late).statistic) if varied else None,
    )
