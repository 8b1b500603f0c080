"""Effects of axes and interactions: exact special cases, statsmodels' least squares, and what cannot be told apart."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.axes import AxisEffect, axis_effects, interactions
from analysis.contrasts import contrast
from analysis.effects import compare, holm, pooled_noise
from analysis.table import comparable, to_frame
from search_space.design import Design
from tests.analysis.synthetic import BASELINE, sweep, trial

POOLINGS, MASKS, WINDOWS = ("mean", "concat", "eos"), ("causal", "bidirectional"), (128, 64)
ONE_AT_A_TIME = {
    BASELINE: 0.8,
    "concat-w128-causal-mlp-O0-n8": 0.7,
    "mean-w64-causal-mlp-O0-n8": 0.75,
    "mean-w128-bidirectional-mlp-O0-n8": 0.82,
    "mean-w128-causal-attn_mlp-O0-n8": 0.9,
    "mean-w128-causal-mlp-O8-n8": 0.79,
}


def names() -> list[str]:
    return [f"{p}-w{w}-{m}-mlp-O0-n8" for p, m, w in product(POOLINGS, MASKS, WINDOWS)]


def factorial(seed: int = 0, keep: int | None = None) -> pd.DataFrame:
    """The baseline first."""
    random = np.random.default_rng(seed)
    chosen = [BASELINE, *(n for n in random.permutation(names()) if n != BASELINE)][:keep]
    return sweep({str(n): float(np.exp(random.normal())) for n in chosen}, arm_seeds=2, seed=seed)


def of(frame: pd.DataFrame, axis: str, choice: str) -> AxisEffect:
    return next(e for e in axis_effects(frame, "parallel") if (e.axis, e.choice) == (axis, choice))


def logs(frame: pd.DataFrame) -> pd.DataFrame:
    rows = frame[(frame["rung"] == 2) & (frame["role"] != "control")]
    table = np.log(rows["parallel"]).groupby([rows[a] for a in ("design", "pooling", "mask", "window")]).mean()
    return table.rename("y").reset_index()


def test_one_at_a_time_it_is_the_arm_minus_the_baseline():
    frame = sweep(ONE_AT_A_TIME, arm_seeds=2)
    rows = comparable(frame)
    noise = pooled_noise(rows, "parallel")[2]
    found = axis_effects(frame, "parallel")
    assert [(e.axis, e.choice, e.reference) for e in found] == [
        ("pooling", "concat", "mean"), ("window", "64", "128"), ("overlap", "8", "0"),
        ("mask", "bidirectional", "causal"), ("adapter", "attn_mlp", "mlp"),
    ]  # fmt: skip
    arms = dict(zip(("pooling", "window", "mask", "adapter", "overlap"), list(ONE_AT_A_TIME)[1:], strict=True))
    for effect in found:
        arm = contrast(rows[rows["rung"] == 2], {arms[effect.axis]: 1.0, BASELINE: -1.0}, noise, "parallel")
        assert arm is not None
        assert (effect.effect, effect.low, effect.high) == pytest.approx((arm.value, arm.low, arm.high))
        assert (effect.p, effect.designs, effect.pairs) == (pytest.approx(arm.p), 1, 1)
    adjusted = holm(np.array([e.p for e in found]))
    assert [e.p_adjusted for e in found] == pytest.approx(adjusted.tolist())


def test_in_a_balanced_factorial_it_is_the_difference_of_marginal_means():
    frame = factorial()
    table = logs(frame)
    for effect in axis_effects(frame, "parallel"):
        marginal = table.groupby(table[effect.axis].astype(str))["y"].mean()
        assert effect.effect == pytest.approx(marginal[effect.choice] - marginal[effect.reference])
        assert effect.pairs == effect.designs == (table[effect.axis].astype(str) == effect.choice).sum()


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), keep=st.integers(8, 12))
def test_estimates_are_those_of_statsmodels(seed, keep):
    frame = factorial(seed, keep)
    table = logs(frame)
    dummies = pd.get_dummies(table[["pooling", "mask", "window"]].astype(str), dtype=float)
    fit = sm.OLS(table["y"], sm.add_constant(dummies.drop(columns=["pooling_mean", "mask_causal", "window_128"]))).fit()
    for effect in axis_effects(frame, "parallel"):
        if effect.effect is not None:
            assert effect.effect == pytest.approx(fit.params[f"{effect.axis}_{effect.choice}"], abs=1e-9)


def test_with_noise_too_small_to_matter_the_interval_is_that_of_least_squares():
    """All that is left is lack of fit, and then it is the t-test of a regression."""
    random = np.random.default_rng(1)
    truth = {n: float(np.exp(0.1 * random.normal())) for n in names()}
    frame = sweep(truth, controls={}, arm_seeds=2, sigma=1e-7, document_sigma=1e-7)
    table = logs(frame)
    dummies = pd.get_dummies(table[["pooling", "mask", "window"]].astype(str), dtype=float)
    fit = sm.OLS(table["y"], sm.add_constant(dummies.drop(columns=["pooling_mean", "mask_causal", "window_128"]))).fit()
    intervals = fit.conf_int()
    for effect in axis_effects(frame, "parallel"):
        column = f"{effect.axis}_{effect.choice}"
        assert effect.p == pytest.approx(fit.pvalues[column], rel=1e-3)
        assert (effect.low, effect.high) == pytest.approx(tuple(intervals.loc[column]), rel=1e-3)


def test_choices_that_always_come_together_get_a_reason_and_no_number():
    truth = {BASELINE: 0.8, "concat-w128-bidirectional-mlp-O0-n8": 0.6, "mean-w64-causal-mlp-O0-n8": 0.7}
    frame = sweep(truth, arm_seeds=2)
    pooling, mask, window = (
        of(frame, a, c) for a, c in (("pooling", "concat"), ("mask", "bidirectional"), ("window", "64"))
    )
    assert pooling.effect is mask.effect is pooling.p is None
    assert pooling.reason == "its designs do not tell it apart from mask=bidirectional"
    assert mask.reason == "its designs do not tell it apart from pooling=concat"
    assert window.effect is not None and window.reason is None


def test_an_axis_that_means_nothing_beside_the_others_is_no_choice_there():
    """Depth 0 of a linear adapter is no depth: the adapter keeps its effect, and depth compares 2 with 1."""
    truth = {
        BASELINE: 0.8,
        "mean-w128-causal-attn_mlp-O0-n8": 0.7,
        "mean-w128-causal-mlp_attn-O0-n8": 0.6,
        "mean-w128-causal-attn_mlp-O0-n8-l2": 0.5,
    }
    assert all(Design.parse(name).name == name for name in truth)
    frame = sweep(truth, arm_seeds=2)
    found = {(e.axis, e.choice): e for e in axis_effects(frame, "parallel")}
    assert list(found) == [("adapter", "attn_mlp"), ("adapter", "mlp_attn"), ("depth", "2")]
    assert found["depth", "2"].reference == "1"
    assert (found["depth", "2"].pairs, found["adapter", "attn_mlp"].pairs) == (1, 1)
    assert all(e.effect is not None for e in found.values())


def test_a_choice_whose_designs_were_all_pruned_says_so():
    frame = sweep(ONE_AT_A_TIME, arm_seeds=2, pruned=["concat-w128-causal-mlp-O0-n8"])
    concat = of(frame, "pooling", "concat")
    assert (concat.effect, concat.reason) == (None, "no design with it has reached rung 2")


def test_without_repeats_there_is_an_effect_and_no_interval():
    effect = of(sweep(ONE_AT_A_TIME, baseline_seeds=1), "mask", "bidirectional")
    assert effect.effect is not None and effect.low is None and effect.verdict == "undecided"
    assert "no design has two seeds" in str(effect.reason)


def test_an_interaction_is_the_difference_of_differences():
    frame = factorial(3)
    y = logs(frame).set_index(["pooling", "mask", "window"])["y"]
    found = {(i.first, i.second): i for i in interactions(frame, "parallel")}
    assert len(found) == 2 + 2 + 1
    cell = found["pooling=eos", "mask=bidirectional"]
    by_hand = [
        (y["eos", "bidirectional", w] - y["mean", "bidirectional", w])
        - (y["eos", "causal", w] - y["mean", "causal", w])
        for w in WINDOWS
    ]
    assert (cell.effect, cell.designs) == (pytest.approx(np.mean(by_hand)), 8)
    assert cell.low is not None and cell.high is not None and cell.low < np.mean(by_hand) < cell.high
    adjusted = holm(np.array([i.p for i in found.values()]))
    assert [i.p_adjusted for i in found.values()] == pytest.approx(adjusted.tolist())


def test_without_a_complete_quadruple_there_is_no_interaction():
    assert interactions(sweep(ONE_AT_A_TIME, arm_seeds=2), "parallel") == ()
    crossed = ONE_AT_A_TIME | {"concat-w64-causal-mlp-O0-n8": 0.5}
    (only,) = interactions(sweep(crossed, arm_seeds=2), "parallel")
    assert (only.first, only.second, only.designs) == ("pooling=concat", "window=64", 4)


def test_trials_at_another_rate_and_controls_do_not_count():
    frame = factorial()
    strange = to_frame([r | {"rate": 3.0} for r in trial(900, "eos-w128-causal-mlp-O0-n8", 9.0, role="rate", seed=9)])
    with_rate = pd.concat([frame, strange], ignore_index=True)
    assert axis_effects(with_rate, "parallel") == axis_effects(frame, "parallel")
    assert axis_effects(frame[frame["role"] != "control"], "parallel") == axis_effects(frame, "parallel")
    assert compare(frame).baseline == BASELINE
