"""Fronts: against every pair by brute force, and chances where they are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import analyse
from analysis.pareto import COSTS, fronts, on_front
from tests.analysis.synthetic import CONTROLS, TRUTH, sweep

few = st.integers(0, 4).map(float)  # so that ties come often


@given(points=st.lists(st.tuples(few, few), min_size=1, max_size=12))
def test_on_the_front_is_what_no_other_beats(points):
    cost, loss = np.array(points).T
    beaten = [any(c <= a and d <= b and (c, d) != (a, b) for c, d in points) for a, b in points]
    assert on_front(cost, loss[None])[0].tolist() == [not b for b in beaten]


def priced(seed: int = 0, **kwargs):
    frame = sweep(seed=seed, **kwargs)
    costs = {design: 1e6 * (1 + i) for i, design in enumerate([*CONTROLS, *TRUTH])}
    frame["prefill_flops_per_token"] = frame["design"].map(costs).astype(float)
    return frame


def test_points_are_by_cost_and_the_last_rung_is_paid_for():
    frame = priced()
    found = fronts(frame, "parallel", analyse(frame).rows)
    assert tuple(front.cost for front in found) == COSTS
    prefill, training, _ = found
    assert [p.cost for p in prefill.points] == sorted(p.cost for p in prefill.points)
    assert {p.cost for p in training.points} == {7.4e6 * 600_000}
    own = [p for p in prefill.points if p.role != "control"]
    lowest = np.minimum.accumulate([p.loss for p in own])
    assert [p.front for p in own] == [p.loss == low for p, low in zip(own, lowest, strict=True)]
    assert not any(p.front or p.chance is not None for p in prefill.points if p.role == "control")
    assert all(p.low is not None and p.high is not None and p.low < p.loss < p.high for p in own)


def test_the_chance_of_two_designs_as_cheap_sums_to_one_and_is_a_half_where_losses_are_equal():
    frame = sweep({"a": 0.5, "b": 0.5}, baseline="a", baseline_seeds=2, arm_seeds=2, controls={})
    for column in ("parallel",):
        frame.loc[frame["design"] == "b", column] = frame.loc[frame["design"] == "a", column].to_numpy()
    front = fronts(frame, "parallel", analyse(frame).rows)[0]
    chances = [p.chance or 0 for p in front.points]
    assert sum(chances) == pytest.approx(1)
    assert chances[0] == pytest.approx(0.5, abs=0.04)  # 2,000 draws


def test_the_cheapest_is_on_the_front_for_certain_and_a_far_better_one_too():
    points = {p.design: p for p in fronts(priced(), "parallel", analyse(priced()).rows)[0].points}
    chances = [points[design].chance or 0 for design in TRUTH]
    assert chances[0] == 1
    assert chances[1] > 0.99
    assert max(chances[2:]) < 0.01


def test_without_repeats_there_is_a_front_and_no_chance():
    frame = priced(baseline_seeds=1)
    points = fronts(frame, "parallel", analyse(frame).rows)[0].points
    assert any(p.front for p in points)
    assert all(p.chance is None and p.low is None for p in points)


def test_a_cost_that_nobody_knows_has_no_front_and_the_analysis_says_so():
    frame = priced()
    frame["memory"] = np.nan
    analysis = analyse(frame)
    assert [front.cost for front in analysis.fronts] == ["prefill_flops_per_token", "train_flops"]
    assert any("no front of loss against memory" in sentence for sentence in analysis.unsaid)
