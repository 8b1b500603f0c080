import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_space.errors import UsageError
from trainer.optim import OptimConfig
from trainer.recipe import Lesson, Recipe


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


@given(
    steps=st.integers(20, 2000),
    warmup=st.floats(0.0, 0.2),
    decay=st.floats(0.05, 1.0),
    floor=st.floats(0.0, 0.5),
    decay_shape=st.sampled_from(["linear", "cosine"]),
    middle=st.floats(0.3, 0.7),
)
def test_the_rate_is_continuous_but_for_its_return(steps: int, middle: float, **fields: Any) -> None:
    recipe = Recipe(steps=steps, rungs=[middle, 1.0], **fields)
    rates = [recipe.rate_at(s) for s in range(steps)]
    first, last = recipe.rung_steps()
    assert rates[first - 1] <= recipe.floor + 1e-9 and rates[last - 1] == pytest.approx(recipe.floor)
    for start, end in ((0, first), (first, last)):
        # The cosine is steepest, by pi / 2, where the line has its slope.
        decay = max(1, round(recipe.decay * (end - start)))
        slope = (1 - recipe.floor) / decay * math.pi / 2
        allowed = max(slope, 1 / max(1, round(recipe.warmup * steps))) + 1e-9
        assert all(abs(a - b) <= allowed for a, b in pairwise(rates[start:end]))
        rising = rates[start : end - decay]
        assert rising == sorted(rising)
    if recipe.decay < 0.9 and first >= recipe.warmup * steps:
        assert rates[first] == 1


@given(step=st.integers(0, 9_999))
def test_one_rung_can_be_the_published_cosine(step: int) -> None:
    """500 steps of warm-up, then a cosine to a tenth at 10,000 (paper section 2)."""
    recipe = Recipe(steps=10_000, rungs=[1.0], warmup=0.05, decay=0.95, decay_shape="cosine", floor=0.1)
    done = (step + 1 - 500) / 9_500
    cosine = 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2
    assert recipe.rate_at(step) == pytest.approx((step + 1) / 500 if done < 0 else cosine)


def test_curriculum_changes_where_it_says() -> None:
    recipe = Recipe(steps=10, curriculum=[Lesson(0.4, 8), Lesson(1.0, 32)])
    assert [recipe.span_at(s) for s in range(10)] == [8] * 4 + [32] * 6


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"steps": 0}, "recipe.steps"),
        ({"decay": 1.5}, "recipe.decay"),
        ({"parallel": float("nan")}, "recipe.parallel"),
        ({"optim": OptimConfig(clip=0.0)}, "recipe.optim.clip"),
        ({"rungs": [0.5]}, "recipe.rungs"),
        ({"rungs": [0.9, 0.5, 1.0]}, "recipe.rungs"),
        ({"steps": 1, "rungs": [0.5, 1.0]}, "recipe.rungs"),
        ({"curriculum": [Lesson(1.0, 0)]}, "recipe.curriculum"),
        ({"checkpoint_every": 0}, "recipe.checkpoint_every"),
    ],
)
def test_what_cannot_be_is_named(change: dict[str, object], field: str) -> None:
    with pytest.raises(UsageError, match=field):
        Recipe(**change).check()  # ty: ignore[invalid-argument-type]
