import numpy as np
import pytest

from analysis.rungs import CHANCE, agreement
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


def test_the_interval_narrows_with_designs_and_holds_the_figure():
    random = np.random.default_rng(0)
    widths = []
    for count in (12, 100):
        late = random.normal(size=count)
        early = late + random.normal(size=count)
        pairs = [(float(np.exp(e)), float(np.exp(x))) for e, x in zip(early, late, strict=True)]
        (first,) = agreement(with_early(pairs))
        assert first.low is not None and first.high is not None and first.decision_accuracy is not None
        assert CHANCE - 0.2 < first.low < first.decision_accuracy < first.high <= 1
        widths.append(first.high - first.low)
    assert widths[1] < 0.5 * widths[0]


def test_the_interval_covers_what_normal_losses_have():
    """Pairs of a bivariate normal with correlation r agree in 1/2 + asin(r) / pi."""
    random = np.random.default_rng(1)
    true, covered = 0.5 + np.arcsin(0.8) / np.pi, []
    for _ in range(60):
        late = random.normal(size=40)
        early = 0.8 * late + 0.6 * random.normal(size=40)
        (first,) = agreement(
            with_early([(float(np.exp(e)), float(np.exp(x))) for e, x in zip(early, late, strict=True)])
        )
        assert first.low is not None and first.high is not None
        covered.append(first.low <= true <= first.high)
    assert np.mean(covered) >= 0.86  # three standard errors below 95%


def test_seeds_of_one_design_are_one_piece_of_evidence():
    pairs = [(1.0, 1.0), (2.0, 3.0), (3.0, 2.0), (4.0, 4.0)]
    once, twice = (agreement(with_early(pairs * n, [f"d{i}" for i in range(4)] * n))[0] for n in (1, 2))
    assert (once.low, once.high) == (twice.low, twice.high)


def test_where_all_pairs_agree_there_is_no_interval():
    (first,) = agreement(with_early([(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]))
    assert (first.decision_accuracy, first.low, first.high) == (1.0, None, None)
