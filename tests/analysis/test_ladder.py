from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.ladder import FEWEST_LEVELS, OTHER_RATIO, Level, Target, analyse_ladder, other_ratio
from analysis.levels import Step
from analysis.table import to_frame
from search_space.errors import UsageError
from tests.analysis.ladders import ARM, OTHER, SIZES, TRUTHS, Truth, ladder, target
from tests.analysis.synthetic import BASELINE


def analysed(levels, to=None):
    return analyse_ladder(levels, BASELINE, "parallel", to or target())


@pytest.fixture(scope="module")
def four():
    return analysed(ladder())


def test_points_and_gaps_are_those_of_the_tables(four):
    assert [arm.design for arm in four.arms] == [BASELINE, ARM, OTHER]
    for step, level in zip(four.levels, ladder(), strict=True):
        last = level.frame[level.frame["rung"] == 2]
        assert (step.name, step.parameters, step.tokens) == (level.name, level.parameters, 20 * level.parameters)
        assert step.compute == 6 * step.parameters * step.tokens and step.df == 6
        for arm in four.arms:
            point = next(point for point in arm.points if point.level == level.name and point.own)
            logs = np.log(last.loc[last["design"] == arm.design, "parallel"])
            assert (point.loss, point.sd, point.seeds) == pytest.approx((np.exp(logs.mean()), logs.std(), 3))
    arm = four.of(ARM)
    assert [point.own for point in arm.points] == [False, True] * 4
    for gap in arm.gaps:
        assert gap.value == pytest.approx(np.log(gap.effect.loss / gap.effect.baseline_loss))
        assert gap.effect.rung == 2 and gap.baseline_seeds == 3
    assert four.arms[0].gaps == () and four.arms[0].slope is None and four.arms[0].forecast.turned is None


def test_the_slope_is_that_of_a_weighted_regression(four):
    arm = four.of(ARM)
    errors = [np.hypot(1, 1) * step.sigma / 3**0.5 for step in four.levels]
    x, gaps = np.log10([gap.compute for gap in arm.gaps]), [gap.value for gap in arm.gaps]
    expected = np.polyfit(x, gaps, 1, w=1 / np.array(errors))[0]
    assert arm.slope_low < expected < arm.slope_high
    assert arm.slope == pytest.approx(expected, abs=0.1 * (arm.slope_high - arm.slope_low))


def test_documents_in_common_widen_the_gap_but_not_its_slope():
    quiet, wide = (analysed(ladder(document_sigma=sigma)).of(ARM) for sigma in (0.001, 0.08))
    assert wide.slope_high - wide.slope_low < 1.3 * (quiet.slope_high - quiet.slope_low)
    assert wide.forecast.gap_high - wide.forecast.gap_low > 1.5 * (quiet.forecast.gap_high - quiet.forecast.gap_low)


@pytest.mark.slow
@pytest.mark.parametrize(("floor", "count"), [(0.0, 3), (1.0, 4)])
def test_intervals_cover_what_they_should(floor, count):
    """`analyse_ladder` has the shares of 60 ladders per case. Of 12, independent intervals of 95% would leave more than
    5 of 36 losses outside in 0.8% of tries, and more than 4 of 24 gaps in 0.6%."""
    truths = {design: replace(truth, E=floor) for design, truth in TRUTHS.items()}
    losses, gaps, checks = [], [], []
    for seed in range(12):
        found = analysed(ladder(truths, SIZES[:count], seed=seed))
        random = np.random.default_rng([seed, 1])
        for arm in found.arms:
            true = truths[arm.design].at(target().compute)
            losses.append(arm.forecast.low <= true * np.exp(0.003 * random.standard_normal()) <= arm.forecast.high)
            checks.append(not arm.untrusted)
            if arm.gaps:
                gap = np.log(true / truths[BASELINE].at(target().compute))
                gaps.append(arm.forecast.gap_low <= gap <= arm.forecast.gap_high)
    assert sum(losses) >= 31 and sum(gaps) >= 20 and sum(checks) >= 31


def test_a_gap_that_closes_is_seen_to_turn():
    crossing = {BASELINE: Truth(2, 0.08, 1), ARM: Truth(1.9, 0.06, 1), OTHER: Truth(1.8, 0.085, 1)}
    found = analysed(ladder(crossing, SIZES[:3], sigma=0.001))
    closing, growing = found.of(ARM), found.of(OTHER)
    assert closing.gaps[-1].value < 0 < closing.forecast.gap and closing.slope_low > 0
    assert closing.forecast.turned > 0.95 and closing.forecast.better < 0.05
    assert growing.forecast.turned < 0.01 and growing.forecast.better > 0.99


def test_intervals_widen_with_the_reach():
    levels = ladder()
    near, far = (analysed(levels, target(size)) for size in (5_000_000, 1_000_000_000))
    for before, after in zip(
        near.arms, sorted(far.arms, key=lambda arm: near.arms.index(near.of(arm.design))), strict=True
    ):
        assert after.forecast.high - after.forecast.low > before.forecast.high - before.forecast.low
        if after.gaps:
            assert after.forecast.gap_high - after.forecast.gap_low > before.forecast.gap_high - before.forecast.gap_low
    assert near.reach.factor == pytest.approx((5 / 3) ** 2) and not near.notes
    assert far.reach.tenfolds == pytest.approx(np.log10((1000 / 3) ** 2)) and far.reach.spanned < far.reach.tenfolds
    assert "farther than the 3.0 that the levels span" in far.notes[0]


def test_a_law_that_breaks_is_not_trusted():
    levels = ladder()
    last = levels[-1].frame
    broken = last["design"] == ARM
    last["parallel"] = last["parallel"].where(~broken, 1.3 * last["parallel"])
    found = analysed(levels)
    arm = found.of(ARM)
    assert set(arm.selfcheck.unmet) == {"loss", "gap"}
    assert arm.untrusted[0].startswith(f"its loss at {levels[-1].name} was predicted as ")
    assert arm.selfcheck.loss.measured == pytest.approx(arm.points[-1].loss) and not arm.selfcheck.gap.inside
    assert not found.arms[0].untrusted


def test_the_check_does_not_look_at_what_it_predicts(four):
    levels = ladder()
    last = levels[-1].frame
    last["parallel"] *= 1.05
    moved = analysed(levels)
    for before, after in zip(four.arms, moved.arms, strict=True):
        assert after.selfcheck.loss.predicted == pytest.approx(before.selfcheck.loss.predicted, rel=2e-3)
        assert after.selfcheck.loss.measured == pytest.approx(1.05 * before.selfcheck.loss.measured)


def test_the_order_of_levels_and_rows_does_not_matter(four):
    levels = [replace(level, frame=level.frame.sample(frac=1, random_state=1)) for level in reversed(ladder())]
    again = analysed(levels)
    assert asdict(again)["arms"][0]["forecast"] == pytest.approx(asdict(four)["arms"][0]["forecast"])
    assert asdict(analysed(ladder())) == asdict(four)


def test_a_design_on_too_few_levels_has_no_law():
    levels = ladder()
    for level in levels[:2]:
        level.frame.drop(level.frame.index[level.frame["design"] == OTHER], inplace=True)
    found = analysed(levels)
    assert found.of(OTHER) is None
    assert found.missing == ((OTHER, "it stands on 2 of 4 levels, and a law takes 3"),)
    levels = ladder()
    levels[1].frame.drop(levels[1].frame.index[levels[1].frame["design"] == OTHER], inplace=True)
    assert [gap.level for gap in analysed(levels).of(OTHER).gaps] == [levels[i].name for i in (0, 2, 3)]


def test_levels_may_name_another_baseline_and_have_one_seed_somewhere():
    levels = ladder()
    for level in levels:
        level.frame["role"] = (
            level.frame["role"].map({"baseline": "arm", "arm": "arm"}).where(level.frame["design"] != OTHER, "baseline")
        )
    frame = levels[0].frame
    frame.drop(frame.index[frame["seed"] > 0], inplace=True)
    found = analysed(levels)
    assert [arm.design for arm in found.arms] == [BASELINE, ARM, OTHER]
    others = found.levels[1:]
    assert found.levels[0].df == sum(step.df for step in others) == 18
    assert min(s.sigma for s in others) < found.levels[0].sigma < max(s.sigma for s in others)
    assert found.of(ARM).gaps[0].effect.reason and found.of(ARM).gaps[0].value < 0


def test_another_ratio_of_tokens_and_three_levels_are_noted():
    found = analysed(ladder(sizes=SIZES[:FEWEST_LEVELS]), Target(1_000_000, 1e9))
    assert "reads 1e+03 tokens per parameter and the levels 20 to 20" in found.notes[0]
    assert found.notes[-1] == "3 levels cannot tell the floor of a law, so the intervals allow for any"
    assert not found.arms[0].law.identified and found.arms[0].law.E == 0 and found.arms[0].E[1] > 1


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5), st.floats(1e-6, 1e6), st.integers(1, 10**9))
def test_a_target_is_of_another_kind_beyond_twice_the_levels_ratios(ratios: list[float], own: float, size: int) -> None:
    """Whatever the sizes are."""
    steps = [Step(str(i), size * 10**i, r * size * 10**i, 1.0, 0.0, 1) for i, r in enumerate(ratios)]
    other = other_ratio(steps, Target(size, own * size))
    if not min(abs(own / r - f) < 1e-6 for r in ratios for f in (OTHER_RATIO, 1 / OTHER_RATIO)):
        assert bool(other) == (own > OTHER_RATIO * max(ratios) or own < min(ratios) / OTHER_RATIO)
    assert not other or f"{own:.3g} tokens per parameter" in other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"levels": a["levels"][:2]}, "levels: a ladder has at least 3, found 2"),
        (lambda a: a | {"levels": [*a["levels"][:3], a["levels"][0]]}, "levels: two have the same compute"),
        (lambda a: a | {"baseline": "absent"}, "baseline: absent has reached no rung of level 100,000"),
        (lambda a: a | {"metric": "loss"}, "metric: 'loss' is not one of parallel, reconstruct, continue"),
        (lambda a: a | {"target": Target(0, 1e9)}, "target: takes positive parameters and tokens"),
        (
            lambda a: a | {"levels": [replace(a["levels"][0], parameters=0), *a["levels"][1:]]},
            "100,000 has 0 parameters",
        ),
        (lambda a: a | {"levels": ladder(seeds=1)}, "levels: no design has two seeds on any level"),
        (lambda a: a | {"levels": [Level("none", 5, to_frame([])), *a["levels"]]}, "has reached no rung of level none"),
    ],
)
def test_what_is_no_ladder_is_refused(change, message):
    told = {"levels": ladder(), "baseline": BASELINE, "metric": "parallel", "target": target()}
    with pytest.raises(UsageError, match=message):
        analyse_ladder(**change(told))
