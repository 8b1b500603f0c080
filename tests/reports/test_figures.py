"""What the figures hold; that they are drawn is for Chromium to say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import analyse
from reports import curves, forest, scatter
from reports.figures import ACCENT, BLUE, VERDICTS
from tests.analysis.synthetic import curves as points_of
from tests.analysis.synthetic import odd_sweeps
from tests.reports.plenty import BASELINE, curves_of, rich


@pytest.fixture(scope="module")
def large():
    frame = rich(100)
    return frame, analyse(frame)


def drawn(figure):
    """Points of all traces; None stands for a gap."""
    return [(x, y) for trace in figure["data"] for x, y in zip(trace["x"], trace["y"], strict=True) if x is not None]


def test_a_small_sweep_has_a_line_per_trial_and_crosses_where_pruned():
    frame = odd_sweeps()["normal"]
    figure = curves.curves(analyse(frame), frame, points_of(frame))
    assert figure
    lines = [trace for trace in figure["data"] if trace["mode"] == "lines"]
    assert len(lines) == frame["trial"].nunique()
    assert sum(line["line"]["color"] == ACCENT for line in lines) == 3
    symbols = [symbol for trace in figure["data"] if trace["mode"] == "markers" for symbol in trace["marker"]["symbol"]]
    assert symbols.count("x") == frame.loc[frame["state"] == "pruned", "trial"].nunique() == 2
    assert len(symbols) == len(frame)


def test_a_large_sweep_singles_few_out_and_keeps_every_held_out_loss(large, monkeypatch):
    frame, analysis = large
    monkeypatch.setattr(curves, "ALL_POINTS", 2000)
    figure = curves.curves(analysis, frame, curves_of(frame))
    assert figure
    own = frame[(frame["role"] != "rate") & (frame["rung"] > 0)]
    names = curves.legend(analysis, own)
    assert next(iter(names)) == analysis.rows[0].design and names[BASELINE.name] == ACCENT
    marks = [trace for trace in figure["data"] if trace["mode"] == "markers"]
    assert sum(len(trace["x"]) for trace in marks) == len(own)
    assert len(drawn(figure)) - len(own) <= 2000
    assert len(figure["data"]) < 30


def test_thinning_keeps_the_mean_and_the_order(large):
    points = curves_of(large[0])
    thin = curves._thinned(points)
    for trial, line in thin.groupby("trial"):
        assert line["tokens"].is_monotonic_increasing
        assert line["loss"].mean() == pytest.approx(points.loc[points["trial"] == trial, "loss"].mean(), rel=0.05)


def test_the_forest_has_those_with_an_interval_largest_improvement_on_top():
    analysis = analyse(odd_sweeps()["normal"])
    figure = forest.effects(analysis)
    assert figure
    rows = sorted(
        (-y, x, trace["marker"]["color"])
        for trace in figure["data"]
        for x, y in zip(trace["x"], trace["y"], strict=True)
    )
    known = sorted((e.difference, VERDICTS[e.verdict]) for e in analysis.comparison.effects if e.role == "arm")
    assert [(pytest.approx(x, rel=1e-4), colour) for x, colour in known] == [(x, colour) for _, x, colour in rows]
    assert forest.effects(analyse(odd_sweeps()["single seed"])) is None


def test_frontiers_and_rates_show_what_the_analysis_has(large):
    analysis = large[1]
    assert len(analysis.fronts) == 3 and analysis.sensitivities
    for front in analysis.fronts:
        figure = scatter.front(front)
        assert figure
        designs = [point for point in front.points if point.role != "control"]
        marks = [trace for trace in figure["data"] if trace["mode"] == "markers"]
        assert sum(len(trace["x"]) for trace in marks) == len(designs)
        steps = figure["data"][0]["y"]
        assert len(steps) == sum(point.front for point in designs) and steps == sorted(steps, reverse=True)
    rates = scatter.rates(analysis.sensitivities, {})
    assert rates
    for trace in rates["data"]:
        assert trace["y"][trace["x"].index(1.0)] == 0


@given(st.lists(st.floats(-1, 1), min_size=6, max_size=20), st.floats(100, 1e6))
def test_a_value_far_beyond_the_rest_is_written_out_and_the_rest_keep_their_room(near, far):
    """Whatever is not in the frame has its value in its label."""
    bars = [forest._Bar(f"d{i}", x, x - 0.1, x + 0.1, BLUE, f"{x:.3f}") for i, x in enumerate([*near, far])]
    figure = forest._forest(bars, "difference", {0: ""})
    assert figure is not None
    left, right = figure["layout"]["xaxis"]["range"]
    assert right - left <= 6 * (max(map(abs, near)) + 0.2)
    for bar, label in zip(bars, figure["layout"]["annotations"], strict=False):
        inside = left <= bar.value <= right
        assert inside or bar is bars[-1]
        assert (bar.text in label["text"]) is not inside
