import pytest

from analysis.rungs import agreement
from analysis.table import to_frame
from tests.analysis.synthetic import sweep, trial


def with_early(losses: list[tuple[float, float]], designs: list[str] | None = None):
    frame = to_frame([row for i in range(len(losses)) for row in trial(i, designs[i] if designs else f"d{i}", 1.0)])
    frame["parallel"] = [loss for pair in losses for loss in pair]
    return frame


def test_by_hand():
    (first,) = agreement(with_early([(1.0, 1.0), (2.0, 3.0), (3.0, 2.0), (4.0, 4.0)]))
    assert (first.rung, first.trials) == (1, 4)
    assert first.decision_accuracy == pytest.approx(5 / 6)
    assert first.spearman == pytest.approx(0.8)


def test_pairs_of_one_design_are_no_decision():
    (first,) = agreement(with_early([(1.0, 2.0), (2.0, 1.0), (3.0, 3.0)], ["a", "a", "b"]))
    assert first.decision_accuracy == 1.0


def test_with_two_trials_nothing_is_said():
    (first,) = agreement(with_early([(1.0, 1.0), (2.0, 2.0)]))
    assert (first.decision_accuracy, first.spearman) == (None, None)


def test_controls_stay_out_and_an_empty_table_says_nothing():
    assert agreement(sweep())[0].trials == agreement(sweep(controls={}))[0].trials
    assert agreement(to_frame([])) == ()
