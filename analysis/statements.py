"""A comparison in plain English. Every sentence must be true of the sweep at hand, however odd or unfinished."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from analysis.effects import ALPHA, Comparison, Effect
from analysis.gains import Gain
from analysis.rungs import CHANCE, PUBLISHED, Agreement
from analysis.summary import Row
from analysis.table import latest
from analysis.words import METRIC_NAMES, count, interval, joined, number, percent, signed

__all__ = ["learnt", "statements"]

NAMED = 2  # designs named in a sentence; the rest are counted
FEW_DF = 4  # below it the t quantile is so large that only huge differences can be shown
LOW_AGREEMENT = 0.5


def learnt(comparison: Comparison, trials: pd.DataFrame) -> str:
    """What the sweep has taught, in one sentence.

    trials: the sweep's table.
    """
    states = latest(trials)["state"].value_counts()
    running, finished = int(states.get("running", 0)), int(states.drop("running", errors="ignore").sum())
    body = _obstacle(comparison, trials) or _findings(comparison)
    if running:
        return f"So far ({count(finished, 'trial')} finished, {running} running), {body}."
    return f"{body[0].upper()}{body[1:]}."


def statements(
    frame: pd.DataFrame,
    comparison: Comparison,
    rows: Sequence[Row],
    rungs: Sequence[Agreement],
    gains: Sequence[Gain],
) -> list[str]:
    """Further sentences: the noise, the encoder, floor and ceiling, prediction, the rungs, and other losses."""
    sentences = (
        _noise(comparison),
        _encoder(frame, comparison),
        _gap(comparison),
        _prediction(rows, gains),
        _early(rungs),
        _other_order(rows, comparison),
    )
    return [sentence for sentence in sentences if sentence]


def _obstacle(comparison: Comparison, trials: pd.DataFrame) -> str | None:
    """Why no design can be judged, if none can."""
    if trials.empty:
        return "nothing can be said yet, because the sweep has no trials"
    if not comparison.rung and all(effect.loss is None for effect in comparison.effects):
        if (trials["state"] == "failed").all():
            reason = trials["reason"].fillna("no reason recorded").mode().iloc[0]
            failed = trials["trial"].nunique()
            subject = "its only trial" if failed == 1 else f"all {failed} trials"
            return f"nothing can be said, because {subject} failed ({'most often: ' if failed > 1 else ''}{reason})"
        return "nothing can be said yet, because no trial has reached a rung"
    arms = [effect for effect in comparison.effects if effect.role == "arm"]
    if not comparison.rung:
        why = "the sweep has no baseline" if comparison.baseline is None else "its baseline has reached no rung"
        return f"no design can be judged, because {why}{_lowest(arms)}"
    if not arms:
        return f"only the baseline {comparison.baseline} has been tried, at a loss of {number(comparison.loss)}"
    if all(effect.p is None for effect in arms):
        reasons = {effect.reason for effect in arms if effect.loss is not None} or {arms[0].reason}
        return f"no design can be judged against {comparison.baseline}, because {joined(sorted(map(str, reasons)))}" + (
            _lowest(arms, comparison)
        )
    return None


def _lowest(arms: Sequence[Effect], comparison: Comparison | None = None) -> str:
    known = [(-arm.rung, arm.loss, arm.design) for arm in arms if arm.loss is not None]
    if comparison and comparison.baseline and comparison.loss is not None:
        known.append((-comparison.rung, comparison.loss, comparison.baseline))
    if not known:
        return ""
    rung, loss, design = min(known)
    return f"; the lowest loss is that of {design} ({number(loss)} at rung {-rung}), which noise alone may explain"


def _findings(comparison: Comparison) -> str:
    arms = [effect for effect in comparison.effects if effect.role == "arm"]
    parts = [
        _decided([arm for arm in arms if arm.verdict == "better"], "better", comparison),
        _decided([arm for arm in arms if arm.verdict == "worse"], "worse", comparison),
        _undecided([arm for arm in arms if arm.verdict == "undecided"], comparison),
    ]
    return f"against the baseline {comparison.baseline}, " + "; ".join(part for part in parts if part)


def _decided(arms: Sequence[Effect], verdict: str, comparison: Comparison) -> str:
    if not arms:
        return ""
    ordered = sorted(arms, key=lambda arm: (-arm.rung, -abs(arm.difference or 0)))  # losses are larger at early rungs
    named = [
        f"{arm.design} by {number(abs(arm.difference or 0))} nats per token "
        f"(95% interval {interval(arm.low, arm.high)}{_at(arm, comparison)})"
        for arm in ordered[:NAMED]
    ]
    if rest := len(arms) - len(named):
        named.append(f"{rest} more")
    return f"{verdict} beyond noise {'is' if len(arms) == 1 else 'are'} {joined(named)}"


def _undecided(arms: Sequence[Effect], comparison: Comparison) -> str:
    """How many cannot be told apart, and which of them the fewest further seeds would decide."""
    tested = [arm for arm in arms if arm.p is not None]
    parts = []
    if tested:
        nearest = min(tested, key=lambda arm: (arm.seeds_needed or np.inf, arm.p, arm.design))
        seeds = (
            "more than 1,000 seeds" if nearest.seeds_needed is None else f"about {count(nearest.seeds_needed, 'seed')}"
        )
        if len(tested) == 1:
            subject = f"{nearest.design} cannot be told apart from it"
        else:
            subject = (
                f"{len(tested)} designs cannot be told apart from it, {nearest.design} being nearest to a decision"
            )
        parts.append(
            f"{subject} ({signed(nearest.difference)} seen{_at(nearest, comparison)}; "
            f"to show that in a test of its own takes {seeds} per design)"
        )
    if untested := len(arms) - len(tested):
        parts.append(f"{count(untested, 'design')} could not be compared")
    return "; ".join(parts)


def _at(arm: Effect, comparison: Comparison) -> str:
    return "" if arm.rung == comparison.rung else f", at rung {arm.rung}"


def _noise(comparison: Comparison) -> str | None:
    if comparison.sigma is None:
        return None
    sentence = (
        f"Between seeds of one design the loss varies by {percent(comparison.sigma)} (standard deviation, "
        f"{count(comparison.df, 'degree')} of freedom, rung {comparison.rung})"
    )
    if comparison.df < FEW_DF:
        sentence += "; so few repeats can show large differences only, and more seeds of the baseline would help most"
    return f"{sentence}."


def _encoder(frame: pd.DataFrame, comparison: Comparison) -> str | None:
    """The baseline against its own design without an encoder."""
    # What that control keeps of a design.
    axes = ["pooling", "ratio", "adapter", "depth", "decoder", "embeddings", "positions"]
    own = frame.loc[frame["design"] == comparison.baseline, axes].head(1)
    bare = frame[frame["control"] == "encoderless"].merge(own, on=axes)
    effect = comparison.of(str(bare["design"].iloc[0])) if len(bare) else None
    if effect is None or effect.difference is None:
        return None
    by = f"{signed(effect.difference)} nats per token"
    if effect.low is None or effect.p is None:
        return f"Without its encoder the baseline's loss changes by {by}; whether that is noise is unknown."
    seen = f"{by}, 95% interval {interval(effect.low, effect.high)}"
    if effect.p >= ALPHA:
        return f"Whether the encoder earns its keep cannot be said: without it the loss changes within noise ({seen})."
    if effect.difference > 0:
        return f"The encoder earns its keep: without it the baseline's loss changes by {seen}."
    return f"The encoder does harm at this budget: without it the baseline's loss changes by {seen}."


def _gap(comparison: Comparison) -> str | None:
    """Where the baseline stands between raw tokens (floor) and nothing at all (ceiling)."""
    raw, blind = comparison.of("uncompressed"), comparison.of("blind")
    floor = raw.loss if raw and raw.difference is not None else None
    ceiling = blind.loss if blind and blind.difference is not None else None
    if comparison.loss is None or (floor is None and ceiling is None):
        return None
    low = f"With raw tokens in place of latents the loss is {number(floor)}"
    high = f"without any context it is {number(ceiling)}"
    if raw is None or floor is None:
        return f"Without any context the loss is {number(ceiling)}; the baseline's is {number(comparison.loss)}."
    if blind is None or ceiling is None:
        return f"{low}; the baseline's is {number(comparison.loss)}."
    both = f"{low} and {high}"
    if raw.rung != comparison.rung or blind.rung != comparison.rung:
        return f"{both}, but not all at rung {comparison.rung}, where the baseline's is {number(comparison.loss)}."
    if floor >= ceiling:
        return f"{both}: the controls are out of order, so the baseline's {number(comparison.loss)} has no scale."
    closed = percent((ceiling - comparison.loss) / (ceiling - floor))
    return f"{both}; the baseline, at {number(comparison.loss)}, closes {closed} of that gap."


def _prediction(rows: Sequence[Row], gains: Sequence[Gain]) -> str | None:
    """What the latents of the baseline, and of the best design where that is another, do for the next token."""
    known = {gain.design: gain for gain in gains if (gain.control, gain.metric) == ("blind", "continue")}
    named = {row.design: "the baseline" for row in rows if row.role == "baseline"}
    named |= {row.design: f"{row.design}, the lowest in loss" for row in rows[:1] if row.role == "arm"}
    parts = [
        f"{signed(known[design].value)} nats per token for {name} "
        f"(95% interval {interval(known[design].low, known[design].high)})"
        for design, name in named.items()
        if known[design].low is not None
    ]
    return f"In next-token loss the gain over the blind control is {joined(parts)}." if parts else None


def _early(rungs: Sequence[Agreement]) -> str | None:
    known = [rung for rung in rungs if rung.decision_accuracy is not None]
    if not known:
        return None
    shares = [
        f"rung {rung.rung} in {percent(rung.decision_accuracy)}"
        + ("" if rung.low is None else f" (95% interval {percent(rung.low)} to {percent(rung.high)})")
        for rung in known
    ]
    return (
        f"Of the pairs of trials that reached the last rung, the order was already the last one's at {joined(shares)}; "
        f"{count(known[-1].trials, 'trial')}; {percent(CHANCE)} is chance, {percent(PUBLISHED)} was published once."
    )


def _other_order(rows: Sequence[Row], comparison: Comparison) -> str | None:
    """Said only where designs rank differently by next-token loss."""
    at_rung = [row for row in rows if row.role != "control" and row.rung == comparison.rung]
    pairs = [(row.losses[comparison.metric], row.losses["continue"]) for row in at_rung]
    values = np.array([pair for pair in pairs if None not in pair], dtype=float)
    if comparison.metric == "continue" or len(values) < 4 or (np.ptp(values, axis=0) == 0).any():
        return None
    rank = float(stats.spearmanr(values).statistic)
    if rank > LOW_AGREEMENT:
        return None
    name = METRIC_NAMES[comparison.metric]
    return (
        f"Next-token loss ranks the designs differently from {name} (Spearman {number(rank)} over "
        f"{count(len(values), 'design')}): a choice made here is one of fidelity, not of prediction."
    )
