"""Intervals cover as often as they say and verdicts are rarely false; docs/calibration.md has more sweeps, and tells
where they do not."""

import pytest

from tests.analysis.calibration import AXES, EFFECTS, PRUNED, UNEQUAL, axes, effects, pruned

SWEEPS = 120


@pytest.mark.parametrize("scene", [EFFECTS[1], EFFECTS[3], EFFECTS[6]], ids=lambda s: s.name)
def test_effects_cover(scene):
    outcome = effects(scene, SWEEPS)
    assert 0.93 - 2 * outcome.error <= outcome.coverage <= 0.97 + 2 * outcome.error


@pytest.mark.parametrize("scene", EFFECTS[-2:], ids=lambda s: s.name)
def test_of_thirty_equal_arms_none_is_called_better_in_19_of_20_sweeps(scene):
    assert effects(scene, SWEEPS).better <= 0.05


@pytest.mark.parametrize("scene", AXES, ids=lambda s: s.name)
def test_effects_of_axes_and_interactions_cover(scene):
    outcome = axes(scene, SWEEPS)
    assert 0.93 - 2 * outcome.error <= outcome.coverage <= 0.97 + 2 * outcome.error
    assert 0.93 - 2 * outcome.error <= outcome.interactions <= 0.97 + 2 * outcome.error
    assert outcome.better <= 0.05


@pytest.mark.parametrize(
    ("scene", "survivors"),
    [(PRUNED[2], 0.902), (PRUNED[3], 0.806)],
    ids=lambda s: getattr(s, "name", ""),
)
def test_with_pruning_effects_cover_but_those_of_survivors_do_less(scene, survivors):
    outcome = pruned(scene, SWEEPS)
    assert 0.93 - 2 * outcome.error <= outcome.coverage <= 0.97 + 2 * outcome.error
    assert abs(outcome.part - survivors) <= 2.5 * outcome.part_error
    assert outcome.part < outcome.coverage
    assert outcome.better <= 0.05


@pytest.mark.parametrize(
    ("scene", "coverage", "noisier", "better"),
    [(UNEQUAL[0], 0.894, 0.848, 0.048), (UNEQUAL[1], 0.797, 0.654, 0.121), (UNEQUAL[3], 0.969, 0.944, 0.022)],
    ids=lambda s: getattr(s, "name", ""),
)
def test_noisier_arms_cover_less_and_only_their_repeats_tell(scene, coverage, noisier, better):
    outcome = effects(scene, SWEEPS)
    assert abs(outcome.coverage - coverage) <= 2.5 * outcome.error
    assert abs(outcome.part - noisier) <= 2.5 * outcome.part_error
    assert abs(outcome.better - better) <= 2.5 * (better * (1 - better) / SWEEPS) ** 0.5
