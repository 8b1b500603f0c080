import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_space.design import Design
from search_space.errors import UsageError
from search_space.space import Space

SPACE = Space(
    pooling=["mean", "eos"],
    ratio=[4, 8],
    window=[8, 32],
    overlap=[0, 16],
    mask=["causal", "bidirectional"],
    adapter=["mlp", "attn_mlp"],
    depth=[1, 2],
)


def test_designs_are_distinct_and_inside() -> None:
    designs = list(SPACE.designs())
    assert len(designs) == len(set(designs)) == len({d.name for d in designs})
    assert all(SPACE.without(d) is None for d in designs)


@given(seed=st.integers(0, 10**6))
def test_choosing_asks_only_what_matters_and_stays_inside(seed: int) -> None:
    rng, asked = random.Random(seed), {}

    def pick(axis: str, choices: list[Any]) -> Any:
        asked[axis] = rng.choice(choices)
        return asked[axis]

    design = SPACE.choose(pick)
    assert design in set(SPACE.designs())
    assert ("overlap" in asked) == (design.window > design.ratio)
    assert ("depth" in asked) == (design.adapter != "mlp")
    assert all(getattr(design, axis) == value for axis, value in asked.items())


def test_neighbours_differ_in_one_choice() -> None:
    base = Design.parse("mean-w32-causal-mlp-O0-n8")
    found = SPACE.neighbours(base)
    assert [d.name for d in found] == [
        "eos-w32-causal-mlp-O0-n8",
        "mean-w32-causal-mlp-O0-n4",
        "mean-w8-causal-mlp-O0-n8",
        "mean-w32-causal-mlp-O16-n8",
        "mean-w32-bidirectional-mlp-O0-n8",
        "mean-w32-causal-attn_mlp-O0-n8",
    ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("concat-w32-causal-mlp-O0-n8", "pooling concat is not one of mean, eos"),
        ("mean-w32-causal-mlp-O4-n8", "overlap 4"),
        ("mean-w32-causal-attn_mlp-O0-n8-l3", "depth 3"),
    ],
)
def test_outside_says_why(name: str, reason: str) -> None:
    assert reason in (SPACE.without(Design.parse(name)) or "")


def test_a_space_that_cannot_be_built_is_refused() -> None:
    with pytest.raises(UsageError, match=r"space\.window: 8 is not a multiple of ratio 16"):
        Space(ratio=[16], window=[8]).check()
