"""Signal to noise: known spread and noise are found again, on average over sweeps."""

import numpy as np
import pytest

from analysis.contrasts import Means
from analysis.effects import Noise
from analysis.noise import signals, spread
from analysis.table import METRICS, to_frame
from tests.analysis.synthetic import sweep


def test_the_spread_of_true_losses_is_found_without_bias():
    """Variances, since their estimate is unbiased where it is not cut off at 0."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(300):
        documents = np.exp(random.normal(0, 0.2, (12, 32)) - 0.02)
        seeds = random.integers(1, 4, 12)
        losses = random.normal(0, 0.1, 12) + np.log(documents.mean(axis=1)) + random.normal(0, 0.05 / np.sqrt(seeds))
        mean = Means(tuple(map(str, range(12))), seeds, losses, documents / documents.mean(axis=1, keepdims=True))
        found.append((spread(mean, Noise(1, 0.05, 20, 5)) or 0) ** 2)
    assert np.mean(found) == pytest.approx(0.01, abs=4 * np.std(found) / np.sqrt(300))


def test_one_signal_for_each_loss_with_its_own_noise():
    frame = sweep(arm_seeds=3)
    found = signals(frame)
    assert tuple(s.metric for s in found) == METRICS
    logs = np.log(frame[(frame["rung"] == 2) & (frame["role"] != "control")].set_index("design")["parallel"])
    sigma = np.sqrt(logs.groupby(level=0).var().mean())  # as many seeds of each
    assert (found[0].sigma, found[0].df, found[0].designs, found[0].rung) == (pytest.approx(sigma), 14, 7, 2)
    assert found[0].ratio == pytest.approx((found[0].spread or 0) / sigma)


def test_what_is_unknown():
    alone = signals(sweep(baseline_seeds=1))[0]
    assert (alone.sigma, alone.spread, alone.ratio) == (None, None, None)
    equal = sweep({"a": 0.5, "b": 0.5, "c": 0.5}, baseline="a", sigma=0.1, document_sigma=0.001, seed=2)
    assert signals(equal)[0].spread is not None
    assert signals(to_frame([])) == ()
