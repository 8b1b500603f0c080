"""What was published about the architecture (arXiv 2606.09659, section 5), answered by a sweep's own trials.

A claim compares two sides that differ in one axis. Its effect is the mean over all pairs of designs in the sweep that
differ in that axis alone, one on either side, of the log ratio of their losses: a `contrast`, with its error from
seeds and documents. So it holds for the designs that were tried, at their budget, and says how many pairs it rests on.

A claim that one side is better is supported or refuted where Holm's p over all such claims is below 5%, by the sign.
A claim that two sides are alike is supported where the 95% interval lies within the margin, and refuted where it lies
beyond it: two one-sided tests (Schuirmann 1987), each at 2.5%. Everything else is undecided.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd

from analysis.contrasts import contrast, shared_rung
from analysis.effects import ALPHA, holm, pooled_noise
from analysis.table import comparable

__all__ = ["CLAIMS", "Answer", "Claim", "claims"]

MARGIN = 0.01
"""Log ratio below which two sides are alike: a hundredth of the loss. The published differences that are called none
are 0.002 and 0.003 nats of 1.17; ours are of smaller models and larger losses."""

AXES = ["pooling", "ratio", "window", "overlap", "mask", "adapter", "depth"]
AXES += ["encoder", "decoder", "embeddings", "positions"]
_CONDITIONAL = {"adapter": "depth"}  # what is not the same where the axis is not

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """axis: in which the sides differ. left, right: whether a design, and the other one, are on these sides.

    alike: the claim is that they do not differ; else that the left one's loss is lower.
    published: the training losses of section 5 that it rests on.
    """

    name: str
    text: str
    published: str
    axis: str
    sides: Callable[[Row, Row], bool]
    alike: bool = False


def _choices(axis: str, left: str, right: set[str]) -> Callable[[Row, Row], bool]:
    return lambda a, b: a[axis] == left and b[axis] in right


def _where(condition: Callable[[Row], bool], sides: Callable[[Row, Row], bool]) -> Callable[[Row, Row], bool]:
    return lambda a, b: condition(a) and sides(a, b)


def _block(row: Row) -> bool:
    return row["window"] == row["ratio"]


def _wide(row: Row) -> bool:
    return row["window"] >= 16 * row["ratio"]


CLAIMS = (
    Claim(
        "window-block", "A window of one block (W = N) is worse than wider ones.", "1.183 at W=16, 1.169 at W=1024",
        "window", lambda a, b: not _block(a) and _block(b),
    ),
    Claim(
        "window-width", "Among windows wider than a block, four times the width makes no difference.",
        "1.172 at W=256, 1.169 at W=1024", "window",
        lambda a, b: not _block(a) and b["window"] == 4 * a["window"], alike=True,
    ),
    Claim(
        "mask", "A causal encoder beats a bidirectional one.", "1.169 causal, 1.191 bidirectional",
        "mask", _choices("mask", "causal", {"bidirectional"}),
    ),
    Claim(
        "overlap", "Overlap between windows brings nothing.", "causal: 1.169 without, 1.172 at O=256", "overlap",
        lambda a, b: a["overlap"] == 0 < b["overlap"], alike=True,
    ),
    Claim(
        "adapter", "An MLP adapter beats one with attention.", "bidirectional: 1.191 mlp, 1.277 attn_mlp", "adapter",
        _choices("adapter", "mlp", {"attn_mlp", "mlp_attn"}),
    ),
    Claim(
        "eos-wide", "Mean pooling beats eos at wide windows (16 blocks or more).", "1.169 mean, 1.191 eos at W=1024",
        "pooling", _where(_wide, _choices("pooling", "mean", {"eos"})),
    ),
    Claim(
        "eos-narrow", "Mean pooling and eos are alike at windows of one block.", "1.183 mean, 1.182 eos at W=16",
        "pooling", _where(_block, _choices("pooling", "mean", {"eos"})), alike=True,
    ),
    Claim(
        "concat", "Mean pooling and concat are alike.", "1.169 mean, 1.171 concat at W=1024", "pooling",
        _choices("pooling", "mean", {"concat"}), alike=True,
    ),
    Claim(
        "ratio", "A lower ratio has a lower loss.", "full scale: 0.664 at 4x, 0.679 at 8x, 0.688 at 16x", "ratio",
        lambda a, b: a["ratio"] < b["ratio"],
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """answer: supported, refuted, undecided or not tested, by the loss `metric` at `rung`.

    effect: mean log ratio of the left side's loss over the right one's, so about a share of the loss; low, high: its
    95% interval; p_adjusted: Holm over the claims that one side is better, None for the others.
    pairs: of designs, left and right. reason: why it is not tested, or has no interval.
    """

    claim: Claim
    metric: str
    answer: str = "not tested"
    rung: int = 0
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    p_adjusted: float | None = None
    pairs: tuple[tuple[str, str], ...] = ()
    reason: str | None = None


def claims(frame: pd.DataFrame, metrics: Iterable[str]) -> tuple[Answer, ...]:
    """Every claim by every metric, at the last rung that half of the designs have reached (`shared_rung`)."""
    return tuple(answer for metric in metrics for answer in _answered(frame, metric))


def _answered(frame: pd.DataFrame, metric: str) -> list[Answer]:
    rows = comparable(frame, metric)
    rows = rows[(rows["control"] == "none") & rows["role"].isin(["baseline", "arm"])]
    rung = shared_rung(rows) or 0
    rows = rows[rows["rung"] == rung]
    designs = rows.drop_duplicates("design").sort_values("design")[["design", *AXES]].to_dict("records")
    noise = pooled_noise(rows, metric).get(rung)
    found, p_values = [], dict[int, float]()
    for number, claim in enumerate(CLAIMS):
        pairs = tuple((str(a["design"]), str(b["design"])) for a, b in _pairs(designs, claim))
        blank = Answer(claim, metric, rung=rung, pairs=pairs)
        if not pairs:
            blank = replace(blank, reason="no two designs of the sweep differ in this alone")
        else:
            weights = _weights(pairs)
            logs = np.log(rows[metric]).groupby(rows["design"]).mean()
            effect = float(sum(weight * logs[design] for design, weight in weights.items()))
            known = contrast(rows, weights, noise, metric) if noise else None
            why = f"no design has two seeds at rung {rung}, so the noise is unknown"
            blank = replace(blank, answer="undecided", effect=effect, reason=None if known else why)
            if known:
                blank = replace(blank, low=known.low, high=known.high)
                if not claim.alike:
                    p_values[number] = known.p
        found.append(blank)
    adjusted = dict(zip(p_values, holm(np.array([*p_values.values()], dtype=float)).tolist(), strict=True))
    return [_judged(replace(answer, p_adjusted=adjusted.get(i))) for i, answer in enumerate(found)]


def _pairs(designs: Sequence[Row], claim: Claim) -> Iterator[tuple[Row, Row]]:
    """Designs that differ in the claim's axis alone, in the order left, right."""
    free = {claim.axis, _CONDITIONAL.get(claim.axis)}
    alike: dict[tuple[Any, ...], list[Row]] = {}
    for row in designs:
        alike.setdefault(tuple(str(row[axis]) for axis in AXES if axis not in free), []).append(row)
    for group in alike.values():
        yield from (pair for pair in permutations(group, 2) if claim.sides(*pair))


def _weights(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for left, right in pairs:
        weights[left] = weights.get(left, 0.0) + 1 / len(pairs)
        weights[right] = weights.get(right, 0.0) - 1 / len(pairs)
    return weights


def _judged(answer: Answer) -> Answer:
    if answer.low is None or answer.high is None or answer.effect is None:
        return answer
    if answer.claim.alike:
        within = answer.low > -MARGIN and answer.high < MARGIN
        beyond = answer.low > MARGIN or answer.high < -MARGIN
        return replace(answer, answer="supported" if within else "refuted" if beyond else "undecided")
    if answer.p_adjusted is None or answer.p_adjusted >= ALPHA:
        return answer
    return replace(answer, answer="supported" if answer.effect < 0 else "refuted")
