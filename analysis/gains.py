"""What a design gains over the blind control, and how far it is from the uncompressed and the encoderless one.

Notable choices:
- the two sides are paired by held-out document, each document's loss being its mean over the seeds of that side, and
  compared at one rung, so at one budget: a control that has not reached the design's rung says nothing about it;
- the interval is the middle 95% of `DRAWS` draws. A draw resamples the documents, the same for both sides (paired
  percentile bootstrap, expanded for few documents by Hesterberg 2015, section 5.3), and multiplies the mean of each
  side by exp(s z / sqrt(seeds)), z standard normal: controls have one seed, so seeds cannot be resampled. s is the
  pooled standard deviation of the log loss (`pooled_noise`), itself drawn as sigma sqrt(df / chi2_df), so that s z
  is Student's. Controls are quieter than the designs that sigma comes from: against them the interval is too wide;
- of several controls of a kind the one that was trained first is taken, and only one with the design's decoder:
  against another decoder the difference would not be one of the latents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import stats

from analysis.effects import ALPHA, Noise, pooled_noise
from analysis.summary import Row
from analysis.table import METRICS, comparable, documents

__all__ = ["CONTROLS", "Gain", "gains"]

CONTROLS = ("blind", "uncompressed", "encoderless")
DRAWS = 4000
_SEED = 1  # one table, one report


@dataclass(frozen=True)
class Gain:
    """A design and a control of the kind `control`, by the loss `metric`, at `rung`.

    value: nats per token, mean over documents: the control's loss minus the design's where the control is blind
        (a gain, positive is good), else the design's minus the control's (a gap, positive is what is lacking).
    low, high: its 95% interval. reason: why there is no interval, or without a value nothing at all, else None.
    """

    design: str
    control: str
    metric: str
    rung: int
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


def gains(frame: pd.DataFrame, rows: Sequence[Row]) -> tuple[Gain, ...]:
    """Every design of `rows` but the controls, in their order and at their rung, by each loss, to each control."""
    found: list[Gain] = []
    for metric in METRICS:
        columns = ["trial", "design", "role", "control", "decoder", "rung", metric, f"{metric}_documents"]
        usable = comparable(frame, metric)[columns]  # pandas copies every column at every selection
        noise = pooled_noise(usable, metric)
        usable = usable.assign(decoder=usable["decoder"].fillna(""))
        arms = dict(list(usable.groupby(["design", "rung"])))
        controls = _controls(usable)
        for row in rows:
            if row.role != "control":
                arm = arms.get((row.design, row.rung), usable[:0])
                found += [
                    _gain(
                        Gain(row.design, control, metric, row.rung),
                        arm,
                        controls.get((control, row.rung), {}),
                        noise.get(row.rung),
                    )
                    for control in CONTROLS
                ]
    order = {row.design: i for i, row in enumerate(rows)}
    return tuple(sorted(found, key=lambda gain: order[gain.design]))


def _controls(usable: pd.DataFrame) -> dict[tuple[str, int], dict[str, pd.DataFrame]]:
    """By kind and rung, by decoder: the rows of the control that was trained first."""
    found: dict[tuple[str, int], dict[str, pd.DataFrame]] = {}
    for _, rows in usable.groupby(["control", "rung", "decoder"]):
        first = rows.loc[rows["trial"].idxmin()]
        by_decoder = found.setdefault((first["control"], first["rung"]), {})
        by_decoder[first["decoder"]] = rows[rows["design"] == first["design"]]
    return found


def _gain(blank: Gain, arm: pd.DataFrame, by_decoder: Mapping[str, pd.DataFrame], noise: Noise | None) -> Gain:
    """by_decoder: rows of the control of the kind at the rung."""
    if arm.empty:
        return replace(blank, reason="the design has reached no rung")
    if not by_decoder:
        return replace(blank, reason=f"no {blank.control} control has reached rung {blank.rung}")
    control = by_decoder.get(arm["decoder"].iloc[0])
    if control is None:
        return replace(blank, reason=f"no {blank.control} control has the design's decoder")
    pair = documents(arm, control, blank.metric)
    if pair is None:
        return replace(blank, reason="the design shares fewer than two held-out documents with the control")
    own, other = pair
    sign = 1 if blank.control == "blind" else -1
    known = replace(blank, value=sign * float(np.mean(other - own)))
    if noise is None or noise.sigma is None:
        return replace(known, reason=f"noise between seeds is unknown at rung {blank.rung}")
    z = noise.sigma * _seed_draws(noise.df)
    factor = np.exp(np.clip(z / np.sqrt([[len(arm)], [len(control)]]), -50, 50))  # with one df, draws have no bound
    draws = sign * (_drawn(other.tobytes()) * factor[1] - _drawn(own.tobytes()) * factor[0])
    low, high = np.quantile(draws, [ALPHA / 2, 1 - ALPHA / 2])
    return replace(known, low=float(low), high=float(high))


@lru_cache(maxsize=16)
def _drawn(losses: bytes) -> np.ndarray:
    """Means of losses per document in each draw, (DRAWS,); bytes, since each side meets several others."""
    values = np.frombuffer(losses)
    return _document_draws(len(values)) @ values


@lru_cache(maxsize=4)
def _document_draws(count: int) -> np.ndarray:
    """Weights of the documents in each draw, (DRAWS, count): resampled shares, their spread widened to Student's."""
    shares = np.random.default_rng(_SEED).multinomial(count, np.full(count, 1 / count), DRAWS) / count
    wider = stats.t.isf(ALPHA / 2, count - 1) / stats.norm.isf(ALPHA / 2) * np.sqrt(count / (count - 1))
    return 1 / count + wider * (shares - 1 / count)


@lru_cache(maxsize=16)
def _seed_draws(df: int) -> np.ndarray:
    """Student's t of both sides, with the standard deviation drawn once for the two, (2, DRAWS)."""
    random = np.random.default_rng(_SEED + 1)
    return random.standard_normal((2, DRAWS)) * np.sqrt(df / random.chisquare(df, DRAWS))
