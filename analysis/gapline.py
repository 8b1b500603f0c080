"""The gap between two designs along a ladder: a line in log compute of the log ratio of what is above a common floor.

Shapes: P levels, S draws, D designs, K documents.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from analysis.contrasts import means
from analysis.powerlaw import DRAWS, HIGHEST, lines, widening

__all__ = ["Line", "documents"]

_SEED = 1


@dataclass(frozen=True)
class Line:
    """The gaps of an arm as log ratios, with their errors, and the baseline's losses, (P,) each."""

    compute_P: np.ndarray
    loss_P: np.ndarray
    gap_P: np.ndarray
    error_P: np.ndarray

    def at(self, compute: float, noise_SP: np.ndarray, E_S: np.ndarray) -> np.ndarray:
        """(S,) log ratios of what is above the floors E_S."""
        return self._lines(np.log(self.compute_P / compute), noise_SP, E_S)[0]

    def slopes(self, noise_SP: np.ndarray) -> np.ndarray:
        """(S,) changes of the gap per tenfold of compute."""
        return self._lines(np.log10(self.compute_P), noise_SP, np.zeros(len(noise_SP)))[1]

    def whole(self, h_S: np.ndarray, loss_S: np.ndarray, E_S: np.ndarray) -> np.ndarray:
        """(S,) log ratios of the losses from those above the floors, for losses of the baseline."""
        share_S = np.clip(self._below(E_S) / loss_S, 0, 1)
        return np.log(share_S + (1 - share_S) * np.exp(h_S))

    def _below(self, E_S: np.ndarray) -> np.ndarray:
        """A floor is below the losses of both sides."""
        return np.minimum(E_S, HIGHEST * (self.loss_P * np.exp(np.minimum(self.gap_P, 0))).min())

    def _lines(self, at_P: np.ndarray, noise_SP: np.ndarray, E_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        height, slope = lines(at_P, self.gap_P[None], 1 / self.error_P)
        apart_P = (self.gap_P - height - slope * at_P) / self.error_P
        wider = widening(float(apart_P @ apart_P), len(at_P) - 2)
        E_S1 = self._below(E_S)[:, None]
        loss_SP = self.loss_P * np.exp(self.gap_P + wider * noise_SP)
        above_SP = np.maximum(loss_SP - E_S1, 1e-3 * loss_SP) / (self.loss_P - E_S1)
        return lines(at_P, np.log(above_SP), (1 - E_S1 / self.loss_P) / self.error_P)


def documents(rows: pd.DataFrame, design: str, baseline: str, metric: str) -> np.ndarray:
    """(S,) changes of the log ratio of `design` to `baseline` when other held-out documents are drawn.

    rows: comparable ones of one rung. 0 where the two share fewer than two documents; `effects` then says so.
    """
    pair = means(rows[rows["design"].isin([design, baseline])], metric)
    if pair.ratios_DK is None:
        return np.zeros(DRAWS)
    drawn_SD = np.log(_times(pair.ratios_DK.shape[1]) @ pair.ratios_DK.T)
    return (drawn_SD[:, 0] - drawn_SD[:, 1]) * (1 if pair.designs[0] == design else -1)


@lru_cache(maxsize=8)
def _times(count: int) -> np.ndarray:
    """(S, K) how often each of `count` documents is drawn, over `count`; the same draws for every level and design."""
    return np.random.default_rng(_SEED).multinomial(count, np.full(count, 1 / count), DRAWS) / count
