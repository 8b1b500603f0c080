"""Contrasts: the two-sample t-test, the paired t-test and the comparison with the baseline as special cases."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.contrasts import Contrast, contrast, shared_rung
from analysis.effects import Noise, compare, pooled_noise
from analysis.table import comparable, to_frame
from search_space.errors import UsageError
from tests.analysis.synthetic import BASELINE, TRUTH, sweep, trial


def at_rung(frame: pd.DataFrame, rung: int = 2) -> tuple[pd.DataFrame, Noise]:
    rows = comparable(frame)
    return rows[rows["rung"] == rung], pooled_noise(rows, "parallel")[rung]


def known(frame: pd.DataFrame, weights: dict[str, float]) -> Contrast:
    found = contrast(*(lambda rows, noise: (rows, weights, noise))(*at_rung(frame)), "parallel")
    assert found is not None
    return found


def test_two_designs_without_document_variance_are_a_pooled_t_test():
    a, b = [0.7, 0.8, 0.75], [1.0, 1.1, 0.9, 1.3]
    rows = [row for i, loss in enumerate(a) for row in trial(i, "a", loss, seed=i)]
    rows += [row for i, loss in enumerate(b) for row in trial(10 + i, "b", loss, seed=i)]
    found, expected = known(to_frame(rows), {"a": 1, "b": -1}), stats.ttest_ind(np.log(a), np.log(b))
    interval = expected.confidence_interval()
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_an_arm_minus_the_baseline_is_the_comparison_of_effects():
    frame = sweep(arm_seeds=2, seed=4)
    for effect in compare(frame).effects:
        if effect.role == "arm":
            found = known(frame, {effect.design: 1, BASELINE: -1})
            assert effect.loss is not None and effect.baseline_loss is not None
            assert found.value == pytest.approx(np.log(effect.loss / effect.baseline_loss))
            assert (found.seed_error, found.document_error) == pytest.approx((effect.seed_error, effect.document_error))
            assert found.p == pytest.approx(effect.p)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), factor=st.floats(0.1, 10))
def test_it_is_linear_and_its_errors_are_those_of_the_weights(seed, factor):
    frame = sweep(arm_seeds=2, seed=seed)
    random = np.random.default_rng(seed)
    drawn = random.normal(size=len(TRUTH))
    weights = dict(zip(TRUTH, drawn - drawn.mean(), strict=True))
    one, more = known(frame, weights), known(frame, {d: factor * w for d, w in weights.items()})
    assert (more.value, more.low, more.high) == pytest.approx([factor * x for x in (one.value, one.low, one.high)])
    assert more.p == pytest.approx(one.p, rel=1e-4)
    rows, noise = at_rung(frame)
    counts = rows.groupby("design").size()
    assert noise.sigma is not None
    assert one.seed_error == pytest.approx(noise.sigma * np.sqrt(sum(w**2 / counts[d] for d, w in weights.items())))


def test_what_is_none_and_what_is_refused():
    frame = sweep()
    rows, noise = at_rung(frame)
    pair = {"concat-w128-causal-mlp-O0-n8": 1.0, BASELINE: -1.0}
    assert contrast(rows, pair, Noise(2, None, 0, 0), "parallel") is None
    short = rows.copy()
    short["parallel_documents"] = [d[: 1 + i] for i, d in enumerate(short["parallel_documents"])]
    assert contrast(short, pair, noise, "parallel") is None
    with pytest.raises(UsageError, match="sums to 0"):
        contrast(rows, {BASELINE: 1.0}, noise, "parallel")
    with pytest.raises(UsageError, match="no rows of elsewhere"):
        contrast(rows, {BASELINE: 1.0, "elsewhere": -1.0}, noise, "parallel")
    with pytest.raises(UsageError, match="one rung"):
        contrast(comparable(frame), pair, noise, "parallel")


def test_the_shared_rung_is_the_last_that_half_of_the_designs_have_reached():
    names = list(TRUTH)
    assert shared_rung(comparable(sweep(pruned=names[-3:]))) == 2
    assert shared_rung(comparable(sweep(pruned=names[-4:]))) == 1
    assert shared_rung(to_frame([])) is None
