import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_space.errors import UsageError
from trainer.recipe import Recipe, Stage


@given(steps=st.integers(4, 2000), decay=st.floats(0.0, 1.0), middle=st.floats(0.3, 0.7))
def test_every_rung_is_annealed_and_the_rate_returns(steps: int, decay: float, middle: float) -> None:
    recipe = Recipe(steps=steps, rungs=[middle, 1.0], decay=decay, warmup=0.0)
    rates = [recipe.rate_at(s) for s in range(steps)]
    assert all(recipe.floor - 1e-12 <= r <= 1 for r in rates)
    first, last = recipe.rung_steps()
    assert rates[first - 1] == pytest.approx(recipe.floor)
    assert rates[last - 1] == pytest.approx(recipe.floor)
    constant = [r for r in rates[: first - max(1, round(decay * first))]]
    assert all(r == 1 for r in constant)


def test_warm_up_rises_to_the_peak() -> None:
    recipe = Recipe(steps=100, warmup=0.1)
    assert [recipe.rate_at(s) for s in range(10)] == pytest.approx([(s + 1) / 10 for s in range(10)])


def test_curriculum_changes_where_it_says() -> None:
    recipe = Recipe(steps=10, curriculum=[Stage(0.4, 8), Stage(1.0, 32)])
    assert [recipe.span_at(s) for s in range(10)] == [8] * 4 + [32] * 6


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"steps": 0}, "recipe.steps"),
        ({"decay": 1.5}, "recipe.decay"),
        ({"parallel": float("nan")}, "recipe.parallel"),
        ({"clip": 0.0}, "recipe.clip"),
        ({"rungs": [0.5]}, "recipe.rungs"),
        ({"rungs": [0.9, 0.5, 1.0]}, "recipe.rungs"),
        ({"steps": 1, "rungs": [0.5, 1.0]}, "recipe.rungs"),
        ({"curriculum": [Stage(1.0, 0)]}, "recipe.curriculum"),
        ({"checkpoint_every": 0}, "recipe.checkpoint_every"),
    ],
)
def test_what_cannot_be_is_named(change: dict[str, object], field: str) -> None:
    with pytest.raises(UsageError, match=field):
        Recipe(**change).check()  # ty: ignore[invalid-argument-type]
