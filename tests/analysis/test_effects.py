"""The comparison with the baseline: special cases against scipy, invariants, and calibration by simulation."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.effects import Effect, compare, holm, seeds_needed
from analysis.table import to_frame
from search_space.errors import UsageError
from tests.analysis.synthetic import BASELINE, CONTROLS, sweep, trial


def two_arms(base: list[float], arm: list[float]) -> pd.DataFrame:
    """No document differs from another, so that only seeds matter."""
    runs = [(BASELINE, loss, "baseline", seed) for seed, loss in enumerate(base)]
    runs += [("x", loss, "arm", seed) for seed, loss in enumerate(arm)]
    rows = [trial(i, name, loss, role=role, seed=seed) for i, (name, loss, role, seed) in enumerate(runs)]
    return to_frame([row for trial_rows in rows for row in trial_rows])


def the(frame: pd.DataFrame, design: str = "x") -> Effect:
    effect = compare(frame).of(design)
    assert effect is not None
    return effect


@pytest.mark.parametrize(("base", "arm"), [([1.0, 1.1, 0.9], [0.7, 0.8]), ([2.0, 2.2], [2.1, 2.6, 2.3, 2.4])])
def test_without_document_variance_it_is_the_pooled_t_test_of_log_losses(base, arm):
    effect = the(two_arms(base, arm))
    expected = stats.ttest_ind(np.log(arm), np.log(base))
    assert effect.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert effect.document_error == pytest.approx(0, abs=1e-12)


def test_with_little_noise_it_is_the_pooled_t_test_of_losses():
    random = np.random.default_rng(1)
    base, arm = 3 + random.normal(0, 1e-4, 4), 3.0001 + random.normal(0, 1e-4, 3)
    effect = the(two_arms(list(base), list(arm)))
    expected = stats.ttest_ind(arm, base)
    assert effect.p == pytest.approx(expected.pvalue, rel=1e-3)
    assert (effect.low, effect.high) == pytest.approx(expected.confidence_interval(), rel=1e-3)


def test_with_little_seed_noise_it_is_the_paired_t_test_over_documents():
    random = np.random.default_rng(2)
    a, b = random.uniform(0.99, 1.01, (2, 40))
    a, b = a / a.mean() * 1.001, b / b.mean()
    rows = [
        *trial(0, BASELINE, 1.0, role="baseline", documents=b),
        *trial(1, BASELINE, 1.0 + 1e-9, role="baseline", seed=1, documents=b),
        *trial(2, "x", 1.001, documents=a / 1.001),
    ]
    effect = the(to_frame(rows))
    expected = stats.ttest_rel(a, b)
    assert effect.p == pytest.approx(expected.pvalue, rel=1e-2)
    assert (effect.low, effect.high) == pytest.approx(expected.confidence_interval(), rel=1e-2)


@pytest.mark.parametrize(("sigma", "difference", "seeds"), [(0.0013, 0.002, 7), (0.003, -0.005, 6), (0.01, 0.01, 14)])
def test_seeds_needed(sigma, difference, seeds):
    assert seeds_needed(sigma, difference) == seeds


def test_seeds_needed_at_the_ends():
    assert seeds_needed(0.1, 0.0) is None
    assert seeds_needed(0.1, 1e-6) is None
    assert seeds_needed(1e-6, 5.0) == 2


def test_holm_by_hand():
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])
    assert holm(np.array([])).size == 0


def test_controls_are_no_part_of_the_family():
    with_controls, without = compare(sweep()), compare(sweep(controls={}))
    for effect in without.effects:
        same = with_controls.of(effect.design)
        assert same is not None
        assert same.p_adjusted == effect.p_adjusted
    controls = [with_controls.of(name) for name in CONTROLS]
    assert all(control and control.p_adjusted == control.p is not None for control in controls)


def test_without_repeats_nothing_is_decided():
    comparison = compare(sweep(baseline_seeds=1))
    assert comparison.sigma is None
    for effect in comparison.effects:
        assert effect.verdict == "undecided"
        assert (effect.low, effect.p, effect.seeds_needed) == (None, None, None)
        assert effect.difference is not None
        assert "no design has two seeds" in str(effect.reason)


def test_identical_repeats_are_no_evidence():
    assert "identical" in str(the(two_arms([1.0, 1.0, 1.0], [0.5])).reason)


def test_arms_are_compared_at_the_largest_rung_both_reached():
    rows = [
        *trial(0, BASELINE, 1.0, role="baseline"),
        *trial(1, BASELINE, 1.1, role="baseline", seed=1),
        *trial(2, "x", 2.0, reached=1, state="pruned"),
    ]
    effect = the(to_frame(rows))
    assert (effect.rung, effect.seeds) == (1, 1)
    assert effect.difference == pytest.approx(1.5 * (2.0 - np.sqrt(1.1)))


def test_two_baselines_are_refused():
    rows = [*trial(0, BASELINE, 1.0, role="baseline"), *trial(1, "x", 1.0, role="baseline")]
    with pytest.raises(UsageError, match="a sweep has one"):
        compare(to_frame(rows))


@settings(max_examples=6, deadline=None)
@given(scale=st.floats(1e-2, 1e2), seed=st.integers(0, 10_000))
def test_scale_and_order_do_not_matter(scale, seed):
    """A unit other than nats changes losses and differences by its factor, and no verdict; neither does any order."""
    frame = sweep(seed=seed, document_sigma=0.2)
    random = np.random.default_rng(seed)
    order = random.permutation(32)
    other = frame.sample(frac=1, random_state=seed)
    other["parallel"] *= scale
    other["parallel_documents"] = [list(scale * np.asarray(d)[order]) for d in other["parallel_documents"]]
    for effect in compare(frame).effects:
        changed = compare(other).of(effect.design)
        assert changed is not None
        for field, value in asdict(effect).items():
            in_nats = field in ("loss", "baseline_loss", "difference", "low", "high")
            expected = scale * value if in_nats else value
            assert getattr(changed, field) == (
                pytest.approx(expected, rel=1e-5) if isinstance(value, float) else expected
            )


def outcomes(truth: dict[str, float], sweeps: int, sigma: float) -> tuple[float, float]:
    """Coverage of the 95% intervals, and the share of sweeps in which any truly equal arm gets a verdict."""
    base = truth[BASELINE]
    covered, false = [], []
    for seed in range(sweeps):
        frame = sweep(truth, controls={}, seed=seed, documents=48, sigma=sigma, document_sigma=0.2)
        effects = compare(frame[frame["rung"] == 2]).effects
        true = [truth[effect.design] - base for effect in effects]
        covered += [e.low <= t <= e.high for e, t in zip(effects, true, strict=True) if e.low is not None and e.high]
        false.append(any(e.verdict != "undecided" for e, t in zip(effects, true, strict=True) if t == 0))
    return float(np.mean(covered)), float(np.mean(false))


@pytest.mark.parametrize(
    ("losses", "sigma"), [([0.8] * 12, 0.15), ([0.03, 0.3, 0.5, 0.7, 0.8, 0.8, 0.8, 0.8, 0.8, 1.0, 1.6, 2.5], 0.15)]
)
def test_intervals_cover_and_verdicts_are_rarely_false(losses, sigma):
    """Three seeds of the baseline, twelve arms with one seed, noise of seeds and of documents."""
    truth = {BASELINE: 0.8} | {f"arm{i}": loss for i, loss in enumerate(losses)}
    coverage, false = outcomes(truth, sweeps=80, sigma=sigma)
    assert 0.92 <= coverage <= 0.98
    assert false <= 0.06
