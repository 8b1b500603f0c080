"""Held-out loss by distance from the span: how far behind it the latents still help."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.summary import Row
from analysis.table import DISTANCES, comparable

__all__ = ["Profile", "profiles"]


@dataclass(frozen=True)
class Profile:
    """A design's losses in nats per token in the stretches that begin at `DISTANCES`, None where none was scored.

    Means over the tokens of a stretch and geometric means over seeds, at `rung`.
    """

    design: str
    role: str
    rung: int
    losses: tuple[float | None, ...]


def profiles(frame: pd.DataFrame, rows: Sequence[Row], metric: str = "continue") -> tuple[Profile, ...]:
    """Of the baseline, the best design and the controls, each at its rung; those without losses are left out.

    rows: best first, as `summarise` gives them.
    """
    usable = comparable(frame, metric)
    chosen = [row for i, row in enumerate(rows) if i == 0 or row.role != "arm"]
    found = []
    for row in chosen:
        at_rung = usable[(usable["design"] == row.design) & (usable["rung"] == row.rung)]
        lists = [values for values in at_rung[f"{metric}_distance"] if len(values) == len(DISTANCES)]
        if lists:
            means = np.exp(np.log(np.array(lists)).mean(axis=0))
            losses = tuple(float(mean) if np.isfinite(mean) else None for mean in means)
            found.append(Profile(row.design, row.role, row.rung, losses))
    return tuple(found)
