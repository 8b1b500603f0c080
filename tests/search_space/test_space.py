import random
from functools import partial
from typing import Any

import optuna
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
    designs = list(SPACE.members())
    assert len(designs) == len(set(designs)) == len({d.name for d in designs})
    assert all(SPACE.without(d) is None for d in designs)


@given(seed=st.integers(0, 10**6))
def test_choosing_asks_only_what_matters_and_stays_inside(seed: int) -> None:
    rng, asked = random.Random(seed), {}

    def pick(axis: str, choices: list[Any]) -> Any:
        asked[axis] = rng.choice(choices)
        return asked[axis]

    design = SPACE.choose(pick)
    assert design in set(SPACE.members())
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


@pytest.mark.parametrize(("space", "says"), [
    (Space(ratio=[16], window=[8]), "space.window: 8 is not a multiple of ratio 16; nearest possible: 16"),
    (Space(ratio=[4, 16], window=[16, 18]), "space.window: 18 is not a multiple of ratio 4 or 16; nearest"),
    (Space(ratio=[4, 32], window=[8, 16]), "space.ratio: no window of 8, 16 is a multiple of 32"),
    (Space(pooling=["mean", "max"]), "space.pooling: 'max' is not one of mean, "),
    (Space(encoder=["base", "l0"]), "space.encoder: 'l0' has no layers"),
    (Space(designs=["mean-w18-causal-mlp-O0"]), "space.window: 18 is not a multiple of ratio 16; nearest .*: mean-"),
    (Space(designs=["blind"]), "space.designs: blind is a control; list it in controls="),
    (Space(designs=["mean-w16-causal-mlp-O0"] * 2), "space.designs: .* repeats a choice"),
    (Space(mask=[]), "space.mask: no choices"),
])  # fmt: skip
def test_a_space_that_cannot_be_built_is_refused(space: Space, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        space.check()


# --- what fits what -------------------------------------------------------------------------------------------------

SEVERAL = Space(pooling=["mean", "conv"], ratio=[4, 8, 32], window=[4, 8, 32, 64], overlap=[0, 8])


def test_a_window_is_asked_for_among_those_that_fit_the_ratio() -> None:
    """W = N at several ratios; the same question always has the same choices, as Optuna wants it."""
    SEVERAL.check()
    designs = set(SEVERAL.members())
    assert {(d.ratio, d.window) for d in designs} == {
        (4, 4), (4, 8), (4, 32), (4, 64), (8, 8), (8, 32), (8, 64), (32, 32), (32, 64),
    }  # fmt: skip
    questions: dict[str, list[Any]] = {}

    def pick(rng: random.Random, question: str, choices: list[Any]) -> Any:
        assert questions.setdefault(question, choices) == choices
        return rng.choice(choices)

    chosen = {SEVERAL.choose(partial(pick, random.Random(seed))) for seed in range(1000)}
    assert chosen == designs
    assert {q: c for q, c in questions.items() if "window" in q} == {
        "window": [4, 8, 32, 64], "window at ratio 8": [8, 32, 64], "window at ratio 32": [32, 64],
    }  # fmt: skip


def test_optuna_takes_the_questions() -> None:
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=3))
    for _ in range(12):
        trial = study.ask()
        study.tell(trial, len(SEVERAL.choose(trial.suggest_categorical).name))


@given(data=st.data())
def test_answers_lead_back_to_the_design(data: st.DataObject) -> None:
    """What is enqueued for a design makes the sampler choose it."""
    listed = Space(designs=[d.name for d in SPACE.members()])
    for space in (SPACE, SEVERAL, listed):
        design = data.draw(st.sampled_from(list(space.members())))
        answers = space.answers(design)
        assert space.choose(lambda question, choices, a=answers: a.pop(question)) == design
        assert not answers


def test_a_list_of_designs_is_a_space() -> None:
    names = ["mean-w16-causal-mlp-O0", "eos-w16-causal-mlp-O0", "mean-w64-causal-mlp-O16-n8"]
    space = Space(designs=names)
    space.check()
    assert [d.name for d in space.members()] == names
    assert [d.name for d in space.neighbours(Design.parse(names[1]))] == [names[0], names[2]]
    assert space.without(Design.parse(names[2])) is None
    assert "space.designs" in (space.without(Design()) or "")


def test_a_neighbour_that_cannot_be_is_left_out() -> None:
    base = Design.parse("mean-w8-causal-mlp-O0-n8")
    assert [d.name for d in SEVERAL.neighbours(base)] == [
        "conv-w8-causal-mlp-O0-n8", "mean-w8-causal-mlp-O0-n4", "mean-w32-causal-mlp-O0-n8",
        "mean-w64-causal-mlp-O0-n8",
    ]  # fmt: skip
