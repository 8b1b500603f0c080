"""A plan as a file: what is written is read, what cannot be is named in a line, and its stages' recipes."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from search_space.compressor import Compressor
from search_space.design import Design
from search_space.errors import UsageError
from tests.trainer.staged import plan as staged
from trainer.optim import OptimConfig, build, freeze
from trainer.parallel import Parallel
from trainer.plan import PARTS, Plan, Rates, Stage, dump, load
from trainer.recipe import Recipe

PLAN = staged(Path("/data/corpus"), Parallel("fsdp", devices=4, nodes=2))
RATE = st.floats(1e-9, 1)
STAGE = st.builds(
    lambda name, rates, steps, share, pieces, mixture: Stage(
        name, Rates(*rates), steps, round(share * steps), 10**11, 10**10, pieces, share, mixture
    ),
    st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True),
    st.tuples(RATE, st.just(0.0) | RATE, st.just(0.0) | RATE),
    st.integers(1, 50_000),
    st.floats(0, 1),
    st.integers(1, 10_000),
    st.dictionaries(st.sampled_from(["web", "code", "1", "on", "über uns"]), st.floats(0.01, 100)),
)
TEXT = st.text(st.characters(exclude_characters="$", exclude_categories=("Cs",)))  # OmegaConf reads ${...}
EVIDENCE = st.dictionaries(
    st.sampled_from(["loss", "status", "reasons", "1e3", "none"]),
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT | st.lists(TEXT),
)


def read(text: str, folder: Path, *overrides: str) -> Plan:
    file = folder / "plan.yaml"
    file.write_text(text, encoding="utf-8")
    return load(file, overrides)


@settings(max_examples=25, deadline=None)
@given(st.lists(STAGE, min_size=1, max_size=5, unique_by=lambda stage: stage.name), EVIDENCE, st.data())
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, stages: list[Stage], evidence: dict[str, Any], data: st.DataObject
) -> None:
    written = replace(
        PLAN,
        stages=stages,
        evidence=evidence,
        lowest=data.draw(st.floats(0, 1e-3)),
        optim=OptimConfig(kind=data.draw(st.sampled_from(["adamw", "muon"])), muon_rate=data.draw(RATE)),
        seed=data.draw(st.integers(0, 2**63)),
    )
    assert read(dump(written), tmp_path_factory.mktemp("plan")) == written


def test_overrides_are_of_the_file(tmp_path: Path) -> None:
    found = read(dump(PLAN), tmp_path, "parallel.nodes=3", "stages.1.steps=9", "corpus=/elsewhere")
    assert (found.parallel.ranks, found.stages[1].steps, found.corpus) == (12, 9, "/elsewhere")
    assert found.stages[0] == PLAN.stages[0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages=[]", "stages: there is none; a plan has at least one"),
        ("stages.1.name=adapter", "stages: the name 'adapter' stands twice"),
        ("name='a b'", "name: 'a b' cannot name a folder"),
        ("name=.hidden", "name: '.hidden' cannot name a folder"),
        ("batch=0", "batch: 0 is not at least 1"),
        ("length=-1", "length: -1 is not at least 1"),
        ("documents=0", "documents: 0 is not at least 1"),
        ("evaluate_every=0", "evaluate_every: 0 is not at least 1"),
        ("checkpoint_every=0", "checkpoint_every: 0 is not at least 1"),
        ("lowest=-1e-6", "lowest: -1e-06 is not a rate of at least 0"),
        ("lowest=.nan", "lowest: nan is not a rate of at least 0"),
        ("metric=training", "metric: .*'training'.*reconstruct"),
        ("format=books", "format: .*'books'.*published"),
        ("stages.0.name=a/b", r"stages\[0\].name: 'a/b' cannot name a folder"),
        ("stages.0.name=''", r"stages\[0\].name: '' cannot name a folder"),
        ("stages.2.steps=0", r"stages\[2\].steps: 0 is not at least 1"),
        ("stages.2.pieces=0", r"stages\[2\].pieces: 0 is not at least 1"),
        ("stages.2.warmup=7", r"stages\[2\].warmup: 7 is not between 0 and its 6 steps"),
        ("stages.3.reconstruct=1.5", r"stages\[3\].reconstruct: 1.5 is not between 0 and 1"),
        ("stages.3.reconstruct=.nan", r"stages\[3\].reconstruct: nan is not between 0 and 1"),
        ("stages.0.rates.adapter=0", r"stages\[0\].rates: all are 0, which leaves nothing to train"),
        ("stages.0.rates.adapter=-1", r"stages\[0\]: .*adapter.muon_rate: -1.0 is not a number of at least 0"),
        ("stages.0.mixture={web: 0}", r"stages\[0\]: recipe.mixture: .* has a share that is not above 0"),
        ("decay.encoder=-1", r"encoder.weight_decay: -1.0 is not a number of at least 0"),
        ("optim.clip=0", "optim.clip: 0.0 is not a number above 0"),
        ("parallel.accumulate=0", "parallel.accumulate: 0 is not at least 1"),
        ("design=mean", "'mean'"),
        ("size.embeddings=tied size.encoder.width=64", "embeddings: encoder width 64 and decoder width 32 differ"),
        ("rate=1", "Key 'rate' not in 'Plan'"),
        ("batch=many", "Value 'many' .* could not be converted to Integer"),
        ("batch", "override: 'batch' is not key=value"),
        ("batch: 1", "override: 'batch: 1' is not key=value"),
    ],
)
def test_what_cannot_be_is_named_in_a_line(override: str, message: str, tmp_path: Path) -> None:
    several = override.split() if override.startswith("size") else [override]
    with pytest.raises(UsageError, match=message) as refused:
        read(dump(PLAN), tmp_path, *several)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "name: .* has missing mandatory value"),
        ("- a\n- b\n", "plan.yaml: "),
        ("just words", "Key 'just words' not in 'Plan'"),
        ("name: [", "plan.yaml: not readable as YAML"),
        ("name: a\n", "design: .* has missing mandatory value"),
        ("\x00", "plan.yaml: not readable as YAML"),
    ],
)
def test_what_is_no_plan_is_refused_in_a_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        read(text, tmp_path)
    assert len(str(refused.value).splitlines()) == 1


def test_a_plan_that_is_missing_or_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UsageError, match="not readable as YAML"):
            load(path)


@given(STAGE, st.floats(1e-8, 1e-2), st.sampled_from(PARTS))
def test_rates_rise_to_the_peak_and_fall_by_a_cosine_to_the_lowest(stage: Stage, lowest: float, part: str) -> None:
    peak = getattr(stage.rates, part) or 1e-3
    recipe = replace(PLAN, lowest=lowest).recipe(stage)
    recipe.check()
    end, least = stage.steps, min(lowest, peak)
    for step in {0, stage.warmup // 2, max(0, stage.warmup - 1), (stage.warmup + end) // 2, end - 1} - {end}:
        done = (
            max(0.0, (step + 1 - stage.warmup) / (end - stage.warmup)) if stage.warmup < end else float(step == end - 1)
        )
        falling = least + (peak - least) * (1 + math.cos(math.pi * done)) / 2
        rising = peak * (step + 1) / max(1, stage.warmup)
        assert peak * recipe.rate_at(step, peak) == pytest.approx(min(rising, falling), rel=1e-6)
    assert peak * recipe.rate_at(end - 1, peak) == pytest.approx(least) or stage.warmup == end


def groups(recipe: Recipe) -> dict[str, set[float]]:
    """Peak rates of what the optimizer trains, by part."""
    model = Compressor(Design.parse(PLAN.design), PLAN.size)
    freeze(model, recipe.optim)
    names = {id(weight): name for name, weight in model.named_parameters()}
    found: dict[str, set[float]] = {}
    for group in build(model, recipe.optim).param_groups:
        for weight in group["params"]:
            top = names[id(weight)].split(".")[0]
            found.setdefault(top if top in PARTS else "adapter", set()).add(group["lr"])
    return found


def test_a_stage_trains_its_parts_at_its_rates() -> None:
    for stage in PLAN.stages:
        wanted = {part: {getattr(stage.rates, part)} for part in PARTS if getattr(stage.rates, part)}
        assert groups(PLAN.recipe(stage)) == wanted


def test_muon_keeps_the_proportion_to_adamw() -> None:
    plan = replace(PLAN, optim=OptimConfig(kind="muon", muon_rate=0.02, adamw_rate=0.005, scaling="none"))
    assert groups(plan.recipe(PLAN.stages[2])) == {
        "adapter": {3e-3, 3e-3 / 4},
        "encoder": {1e-3, 1e-3 / 4},
        "decoder": {1e-3, 1e-3 / 4},
    }


def test_a_recipe_has_the_text_of_its_stage() -> None:
    stage = replace(PLAN.stages[3], mixture={"web": 3.0, "code": 1.0})
    recipe = PLAN.recipe(stage)
    assert (recipe.steps, recipe.piece, recipe.pieces, recipe.format) == (6, 256, 12, "published")
    assert recipe.mixture == {"web": 3.0, "code": 1.0} and recipe.continuation == 0.5 and recipe.rung_steps() == [6]
    assert [getattr(recipe.optim, part).weight_decay for part in PARTS] == [0.01, 0.01, 0.0]
    assert (recipe.evaluate_every, recipe.checkpoint_every, recipe.documents) == (2, 2, 4)


def test_a_file_is_readable() -> None:
    """By any YAML parser, with nothing that depends on Python."""
    assert OmegaConf.to_container(OmegaConf.create(dump(PLAN)))["stages"][0]["name"] == "adapter"  # ty: ignore
