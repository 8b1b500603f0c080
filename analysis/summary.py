"""One row per design: what the terminal and the report show."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.effects import Comparison, Effect
from analysis.table import METRICS, comparable, latest

__all__ = ["Row", "summarise"]

_COSTS = ["seconds", "tokens_per_second", "train_flops_per_token", "prefill_flops_per_token"]


@dataclass(frozen=True)
class Row:
    """A design over its seeds at `rung`, the one where it is compared (0: none reached, no numbers).

    losses: by metric, geometric means over seeds in nats per token; costs are plain means (`parameters`: the first).
    effect: against the baseline; None for the baseline itself.
    state: of its trials, such as `complete` or `2 complete, 1 failed`.
    """

    design: str
    role: str
    rung: int
    seeds: int
    losses: dict[str, float | None]
    effect: Effect | None
    seconds: float | None
    tokens_per_second: float | None
    parameters: int | None
    train_flops_per_token: float | None
    prefill_flops_per_token: float | None
    state: str

    @property
    def verdict(self) -> str:
        return self.effect.verdict if self.effect else self.role


def summarise(frame: pd.DataFrame, comparison: Comparison) -> tuple[Row, ...]:
    """Best first within the largest rung, then smaller rungs, then designs without a number, controls last."""
    usable = comparable(frame, comparison.metric)
    trials = latest(frame)
    first = trials.drop_duplicates("design")
    states = trials.groupby("design")["state"].agg(_states)
    effects = {effect.design: effect for effect in comparison.effects}
    at_rung = dict(zip(*_means(usable), strict=True))
    rows: list[tuple[tuple[bool, int, float], Row]] = []
    for design, role in zip(first["design"], first["role"], strict=True):
        effect = effects.get(design)
        rung = effect.rung if effect else comparison.rung
        row = _row(design, role, rung, at_rung.get((design, rung), {}), effect, states[design])
        loss = row.losses[comparison.metric]
        rows.append(((role == "control", -rung, np.inf if loss is None else loss), row))
    return tuple(row for _, row in sorted(rows, key=lambda pair: pair[0]))


def _means(usable: pd.DataFrame) -> tuple[list[tuple[str, int]], list[dict[str, float]]]:
    """Of each design at each rung that it has reached."""
    losses = usable[list(METRICS)]
    numbers = np.log(losses.where(losses > 0)).join(usable[_COSTS])
    groups = numbers.groupby([usable["design"], usable["rung"]])
    means = groups.mean()
    means[list(METRICS)] = np.exp(means[list(METRICS)])
    means["seeds"] = groups.size()
    means["parameters"] = usable["parameters"].groupby([usable["design"], usable["rung"]]).first()
    return list(means.index), means.to_dict("records")


def _row(design: str, role: str, rung: int, means: Mapping[str, float], effect: Effect | None, state: str) -> Row:
    """means: empty for a design that has reached no rung."""
    return Row(
        design=design,
        role=role,
        rung=rung,
        seeds=int(means.get("seeds", 0)),
        losses={metric: _finite(means.get(metric, np.nan)) for metric in METRICS},
        effect=effect,
        seconds=_finite(means.get("seconds", np.nan)),
        tokens_per_second=_finite(means.get("tokens_per_second", np.nan)),
        parameters=int(means["parameters"]) if means else None,
        train_flops_per_token=_finite(means.get("train_flops_per_token", np.nan)),
        prefill_flops_per_token=_finite(means.get("prefill_flops_per_token", np.nan)),
        state=state,
    )


def _states(states: pd.Series) -> str:
    counts = Counter(states).most_common()
    return counts[0][0] if len(counts) == 1 else ", ".join(f"{number} {state}" for state, number in counts)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
