"""The levels of a ladder: ordinary sweeps over the sweep's best designs, each of a size and a budget of its own."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from search_space.design import Design
from search_space.errors import UsageError
from search_space.space import Space
from search_space.transformer import Shape
from sweeps.config import Limits, SweepConfig, dump, load
from sweeps.home import Home
from sweeps.ladder import _scaled, levels_of, note_levels, plan_ladder, read_levels
from sweeps.run import _refuse_changes
from tests.sweeps.promotable import ARM, BASELINE, SWEEP, home_of, made_up_ladder, made_up_sweep
from trainer.corpus import Corpus

NAME = SWEEP.name


@pytest.fixture(scope="module")
def home(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = home_of(tmp_path_factory.mktemp("ladder"), corpus)
    made_up_sweep(home, corpus)
    return home


def test_levels_are_sweeps_over_the_best_and_the_baseline(home: Home) -> None:
    plan = plan_ladder(home, NAME, top=1, seeds=4, sizes=(2, 0.5, 1, 1.0))
    assert plan.designs == [BASELINE, ARM] and [level.name[-3:] for level in plan.levels] == ["0.5", "r-1", "r-2"]
    for level in plan.levels:
        trials = [(str(p.design.name), p.seed, p.role) for p in level.planned()]
        assert trials == [(BASELINE, seed, "baseline") for seed in range(4)] + [(ARM, s, "arm") for s in range(4)]
        assert (level.metric, level.baseline, level.pruner) == (SWEEP.metric, BASELINE, "none")


def test_steps_grow_with_the_square_and_widths_with_the_factor(home: Home) -> None:
    half, one, two = plan_ladder(home, NAME).levels
    assert (half.recipe.steps, one.recipe.steps, two.recipe.steps) == (12, 48, 192)
    assert one.size == SWEEP.size and one.recipe == SWEEP.recipe
    widths = [level.size.decoder.width for level in (half, one, two)]
    assert widths == [16, 32, 64] and [level.size.encoder.heads for level in (half, one, two)] == [1, 2, 4]
    costs = [level.cost(Design.parse(BASELINE)).parameters for level in (half, one, two)]
    assert costs[0] < costs[1] < costs[2]


@given(
    st.builds(
        lambda kv, groups, width, inner: Shape(2, 8 * width, kv * groups, kv, 16, 8 * inner),
        st.integers(1, 8), st.integers(1, 4), st.integers(4, 200), st.integers(4, 600),
    ),
    st.floats(0.1, 8),
)  # fmt: skip
def test_every_factor_gives_a_shape_that_can_be(shape: Shape, factor: float) -> None:
    scaled = _scaled(shape, factor)
    assert scaled.heads % scaled.kv_heads == 0 and scaled.width % 8 == scaled.feedforward % 8 == 0
    assert (scaled.layers, scaled.head_width) == (shape.layers, shape.head_width)
    assert scaled.width == pytest.approx(factor * shape.width, abs=8)
    assert scaled.heads == pytest.approx(factor * shape.heads, abs=1)
    assert _scaled(shape, 1.0) == shape


def test_limits_of_the_sweep_do_not_end_a_larger_level(corpus: Corpus, tmp_path: Path) -> None:
    home = home_of(tmp_path, corpus)
    made_up_sweep(home, corpus, replace(SWEEP, limits=Limits(memory=1.0, seconds=1e6)))
    assert all(level.limits == Limits() for level in plan_ladder(home, NAME).levels)


def test_levels_can_be_saved_and_read(home: Home, tmp_path: Path) -> None:
    for level in plan_ladder(home, NAME).levels:
        (tmp_path / "level.yaml").write_text(dump(level))
        assert load(str(tmp_path / "level.yaml")) == level


def test_levels_read_the_text_of_their_sweep(corpus: Corpus, tmp_path: Path) -> None:
    """Whatever has become of its source since."""
    home = home_of(tmp_path, corpus)
    made_up_sweep(home, corpus)
    plan = plan_ladder(home, NAME)
    assert levels_of(home, NAME) == [] and read_levels(home, NAME) == []
    note_levels(home, NAME, plan)
    assert levels_of(home, NAME) == [level.name for level in plan.levels] and read_levels(home, NAME) == []
    for level in plan.levels:
        assert home.sweep(level.name).corpus.read_text() == home.sweep(NAME).corpus.read_text()
    assert home.sweeps() == [NAME], "a level that was not begun is no sweep yet"
    note_levels(home, NAME, plan_ladder(home, NAME, sizes=(1, 2, 4)))
    assert [name.rpartition("-")[2] for name in levels_of(home, NAME)] == ["0.5", "1", "2", "4"]


def test_levels_with_a_table_are_read(corpus: Corpus, tmp_path: Path) -> None:
    home = home_of(tmp_path, corpus)
    made_up_sweep(home, corpus)
    made_up_ladder(home, corpus)
    levels = read_levels(home, NAME)
    assert [level.name for level in levels] == levels_of(home, NAME)
    for level, planned in zip(levels, plan_ladder(home, NAME).levels, strict=True):
        assert level.parameters == planned.cost(Design.parse(BASELINE)).parameters
        assert set(level.frame["design"]) == {BASELINE, ARM} and level.frame["seed"].nunique() == 3


def test_a_ladder_gets_more_seeds_and_forgets_none(corpus: Corpus, tmp_path: Path) -> None:
    home = home_of(tmp_path, corpus)
    made_up_sweep(home, corpus)
    before = plan_ladder(home, NAME, seeds=3).levels

    def train(level: SweepConfig) -> list[FrozenTrial]:
        return made_up_sweep(home, corpus, level).trials()

    def known(trials: list[FrozenTrial]) -> list[tuple[int, object, object]]:
        return [(t.number, t.user_attrs, t.intermediate_values) for t in trials]

    ended = [train(level) for level in before]
    for wanted, seeds in ((2, 3), (4, 4)):
        for level, old in zip(plan_ladder(home, NAME, seeds=wanted).levels, ended, strict=True):
            assert level.seeds == level.replicates == seeds
            _refuse_changes(home.sweep(level.name), level)
            trials = train(level)
            assert known(trials[: len(old)]) == known(old) and all(t.state == TrialState.COMPLETE for t in trials)
            runs = Counter((t.user_attrs["design"], t.user_attrs["seed"]) for t in trials)
            assert runs == Counter((design, seed) for design in (BASELINE, ARM) for seed in range(seeds))
    with pytest.raises(UsageError, match=r"^replicates: sweep 'small.ladder-0.5' exists with another value"):
        _refuse_changes(home.sweep(before[0].name), before[0])


def test_other_designs_want_another_ladder(corpus: Corpus, tmp_path: Path) -> None:
    home, third = home_of(tmp_path, corpus), "mean-w16-bidirectional-mlp-O0-n4"
    made_up_sweep(home, corpus, replace(SWEEP, trials=11, space=Space(designs=[BASELINE, ARM, third])))
    first = plan_ladder(home, NAME, designs=[ARM])
    note_levels(home, NAME, first)
    for level in first.levels:
        made_up_sweep(home, corpus, level)
    said = f"designs: small.ladder-0.5 was begun without {third}, with {BASELINE}, {ARM}; go on with these by --design,"
    with pytest.raises(UsageError, match=f"^{re.escape(said)} or begin another ladder with --name"):
        plan_ladder(home, NAME, designs=[third])
    second = plan_ladder(home, NAME, designs=[third, ARM], name="second")
    note_levels(home, NAME, second)
    assert levels_of(home, NAME) == [f"{NAME}.second-{factor}" for factor in ("0.5", "1", "2")]
    note_levels(home, NAME, plan_ladder(home, NAME, designs=[ARM]))
    assert levels_of(home, NAME) == [level.name for level in first.levels]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": (1, 2)}, "sizes: .* are not 3 or more different factors above 0"),
        ({"sizes": (1, 2, 2)}, "sizes: .* are not 3 or more different factors above 0"),
        ({"sizes": (0, 1, 2)}, "sizes: .* are not 3 or more different factors above 0"),
        ({"sizes": (1, 2, float("nan"))}, "sizes: .* are not 3 or more different factors above 0"),
        ({"sizes": (1, 2, float("inf"))}, "sizes: .* are not 3 or more different factors above 0"),
        ({"seeds": 1}, "seeds: 1 is not at least 2"),
        ({"top": 0}, "top: 0 is not at least 1"),
        ({"designs": ["mean-w4-causal-mlp-O0-n4"]}, "designs: mean-w4-causal-mlp-O0-n4 is not one of the sweep's: "),
        ({"sweep": "other"}, "sweep: 'other' is not in"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, object], message: str, home: Home) -> None:
    with pytest.raises(UsageError, match=message):
        plan_ladder(**{"home": home, "sweep": NAME} | change)  # ty: ignore[invalid-argument-type]
    assert levels_of(home, NAME) == []
