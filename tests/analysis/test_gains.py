"""Gains and gaps: signs and pairing by hand, coverage by simulation, and what cannot be said."""

import numpy as np
import pandas as pd
import pytest

from analysis import analyse
from analysis.distance import profiles
from analysis.gains import CONTROLS, Gain, gains
from analysis.table import DISTANCES, METRICS, to_frame
from search_space.layout import TASKS
from tests.analysis.synthetic import BASELINE, TRUTH, sweep, trial
from trainer import evaluate


def of(frame: pd.DataFrame, design: str, control: str, metric: str = "parallel") -> Gain:
    return next(g for g in analyse(frame).gains if (g.design, g.control, g.metric) == (design, control, metric))


def little_noise(documents: np.ndarray, more: np.ndarray) -> pd.DataFrame:
    """Baseline with losses `documents` (D,), a blind control with `more` on top of each, an uncompressed with less."""
    rows = [
        *trial(0, BASELINE, 1.0, role="baseline", documents=documents),
        *trial(1, BASELINE, 1.0 + 1e-9, role="baseline", seed=1, documents=documents),
        *trial(2, "blind", 1.0, role="control", documents=documents + more),
        *trial(3, "uncompressed", 1.0, role="control", documents=documents - more),
    ]
    return to_frame(rows)


def test_a_gain_is_over_the_blind_control_and_a_gap_is_to_the_others():
    frame = little_noise(np.array([0.5, 1.0, 1.5, 2.0]), np.array([0.2, 0.3, 0.2, 0.3]))
    for control in ("blind", "uncompressed"):
        gain = of(frame, BASELINE, control)
        assert (gain.rung, gain.value) == (2, pytest.approx(0.25))
        assert gain.low is not None and gain.high is not None
        assert 0.1 < gain.low < 0.25 < gain.high < 0.4


def test_documents_that_all_gain_as_much_leave_no_doubt_however_they_differ():
    gain = of(little_noise(np.geomspace(0.1, 10, 16), np.full(16, 0.3)), BASELINE, "blind")
    assert (gain.low, gain.value, gain.high) == pytest.approx((0.3, 0.3, 0.3), abs=1e-6)


def test_every_design_but_the_controls_by_every_loss_in_the_order_of_the_rows():
    analysis = analyse(sweep())
    designs = [row.design for row in analysis.rows if row.role != "control"]
    expected = [(d, m, c) for d in designs for m in METRICS for c in CONTROLS]
    assert [(g.design, g.metric, g.control) for g in analysis.gains] == expected
    assert all(g.low is not None and g.high is not None and g.low < g.high for g in analysis.gains)


def test_a_pruned_design_is_held_against_the_controls_at_its_own_rung():
    pruned = "eos-w128-causal-mlp-O0-n8"
    frame = sweep(pruned=[pruned])
    gain, at_rung = of(frame, pruned, "blind"), frame[frame["rung"] == 1].set_index("design")["parallel"]
    assert (gain.rung, gain.value) == (1, pytest.approx(at_rung["blind"] - at_rung[pruned]))


def test_what_cannot_be_said():
    assert of(sweep(controls={}), BASELINE, "blind").reason == "no blind control has reached rung 2"
    frame = sweep()
    behind = of(frame[(frame["design"] != "blind") | (frame["rung"] == 1)], BASELINE, "blind")
    assert (behind.value, behind.reason) == (None, "no blind control has reached rung 2")
    frame["decoder"] = np.where(frame["design"] == BASELINE, "l4", "l2")
    assert of(frame, BASELINE, "uncompressed").reason == "no uncompressed control has the design's decoder"
    alone = of(sweep(baseline_seeds=1), BASELINE, "blind")
    assert alone.value is not None and alone.low is None and "unknown" in str(alone.reason)
    unreached = to_frame(
        [*trial(0, BASELINE, 1.0, role="baseline", reached=0), *trial(1, "blind", 2.0, role="control")]
    )
    assert of(unreached, BASELINE, "blind").reason == "the design has reached no rung"


@pytest.mark.parametrize(("sigma", "documents"), [(0.05, 32), (0.003, 8)])
def test_intervals_cover(sigma, documents):
    """Noise of seeds, and of documents where seeds hardly differ."""
    truth, controls, covered = {BASELINE: 0.8, "x": 0.5}, {"blind": 4.2, "uncompressed": 0.1}, []
    rows = analyse(sweep(truth, controls=controls)).rows
    for seed in range(60):
        frame = sweep(truth, controls=controls, seed=seed, sigma=sigma, document_sigma=0.2, documents=documents)
        for gain in gains(frame, rows):
            if gain.metric == "parallel" and gain.control in controls:
                assert gain.low is not None and gain.high is not None
                covered.append(gain.low <= abs(controls[gain.control] - truth[gain.design]) <= gain.high)
    assert 0.86 <= np.mean(covered) < 1  # three standard errors of 60 sweeps below 95%


def test_the_terminal_says_what_the_latents_do_for_the_next_token():
    said = " ".join(analyse(sweep()).statements)
    best = min(TRUTH, key=TRUTH.__getitem__)
    assert "In next-token loss the gain over the blind control is +0." in said
    assert f"for {best}, the lowest in loss" in said
    assert "In next-token loss" not in " ".join(analyse(sweep(controls={})).statements)


def test_order_of_rows_does_not_matter():
    frame = sweep(seed=3)
    rows = analyse(frame).rows
    assert gains(frame, rows) == gains(frame.sample(frac=1, random_state=0), rows)


def test_distances_and_losses_are_those_of_the_evaluation():
    assert evaluate.DISTANCES == DISTANCES
    assert set(TASKS) == set(METRICS)


def test_profiles_are_of_the_baseline_the_best_and_the_controls():
    frame = sweep(arm_seeds=2)
    rows = analyse(frame).rows
    found = profiles(frame, rows)
    assert [p.design for p in found] == [r.design for i, r in enumerate(rows) if i == 0 or r.role != "arm"]
    assert {p.role for p in found} == {"arm", "baseline", "control"}
    for profile in found:
        near, far = profile.losses[0], profile.losses[4]
        assert near is not None and far is not None and near < far and profile.losses[5:] == (None, None, None)
        of_seeds = frame[(frame["design"] == profile.design) & (frame["rung"] == 2)]["continue"]
        assert near == pytest.approx(np.exp(np.log(of_seeds - 0.2).mean()))


def test_a_sweep_whose_results_know_no_distance_has_no_profiles():
    frame = sweep()
    frame["continue_distance"] = [[]] * len(frame)
    assert analyse(frame).profiles == []
