"""Intervals cover as often as they say and verdicts are rarely false; docs/calibration.md has more sweeps."""

import pytest

from tests.analysis.calibration import AXES, EFFECTS, axes, effects

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
