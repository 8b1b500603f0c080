"""How much an early rung tells about the last one."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.table import METRIC

__all__ = ["CHANCE", "PUBLISHED", "Agreement", "agreement"]

FEWEST = 3  # trials, below which an order says nothing
CHANCE = 0.5
PUBLISHED = 0.8  # 150M parameters against 1B, pairs of data recipes (Magnusson et al. 2025, DataDecide)
DRAWS = 1000
_SEED = 1


@dataclass(frozen=True)
class Agreement:
    """A rung against the last one, over the `trials` that reached both.

    decision_accuracy: share of the pairs of trials of different designs that the rung orders as the last one does.
    spearman: rank correlation. Both None with fewer than three trials (or no two designs, or all equal).
    low, high: 95% interval of decision_accuracy, the middle of `DRAWS` bootstrap draws (Efron 1979). A draw takes as
        many designs with replacement, with all trials of each; pairs of a design with its own copy do not count.
        Hold it against `CHANCE` and `PUBLISHED`. None where all pairs agree or none does: no draw differs then.
    Pruned trials are missing at the end, and they are not missing at random: the figures hold for what survived.
    """

    rung: int
    tokens: int
    trials: int
    decision_accuracy: float | None
    spearman: float | None
    low: float | None = None
    high: float | None = None


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
    design, names = pd.factorize(both.index.get_level_values("design"))
    same_order = np.sign(early[:, None] - early) == np.sign(late[:, None] - late)
    differ = design[:, None] != design
    varied = np.ptp(early) > 0 and np.ptp(late) > 0
    return Agreement(
        rung,
        tokens,
        len(both),
        float(same_order[differ].mean()) if differ.any() else None,
        float(stats.spearmanr(early, late).statistic) if varied else None,
        *_interval(same_order & differ, design, len(names)),
    )


def _interval(agreed: np.ndarray, design: np.ndarray, count: int) -> tuple[float, float] | tuple[None, None]:
    """agreed: pairs of trials (T, T). design: of each trial (T,), of `count`."""
    of_DT = np.zeros((count, len(design)))
    of_DT[design, np.arange(len(design))] = 1
    agreed_DD = of_DT @ agreed @ of_DT.T
    pairs_DD = np.outer(of_DT.sum(axis=1), of_DT.sum(axis=1)) * (1 - np.eye(count))
    if count < FEWEST or agreed_DD.sum() in (0, pairs_DD.sum()):
        return None, None
    times_SD = np.random.default_rng(_SEED).multinomial(count, np.full(count, 1 / count), DRAWS).astype(float)
    hits, tries = (((times_SD @ pairs) * times_SD).sum(axis=1) for pairs in (agreed_DD, pairs_DD))
    low, high = np.quantile(hits[tries > 0] / tries[tries > 0], [0.025, 0.975])
    return float(low), float(high)
