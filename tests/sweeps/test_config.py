from dataclasses import replace
from pathlib import Path

import pytest

from search_space.errors import UsageError
from sweeps.config import differences, dump, load, presets
from tests.search_space.cases import PUBLISHED
from tests.sweeps.virtual import MINI, config


@pytest.mark.parametrize("preset", presets())
def test_presets_are_good_and_resolve_to_themselves(preset: str, tmp_path: Path) -> None:
    first = load(preset)
    assert first.name == preset
    path = tmp_path / "again.yaml"
    path.write_text(dump(first))
    assert load(str(path)) == first
    assert differences(dump(first), path.read_text()) == []


def test_overrides_reach_every_level() -> None:
    found = config(
        "seeds=3",
        "space.window=[4,64]",
        "recipe.steps=30",
        "size.encoder.layers=3",
        "baseline=mean-w64-causal-mlp-O8-n4",
    )
    assert (found.seeds, found.space.window, found.recipe.steps, found.size.encoder.layers) == (3, [4, 64], 30, 3)
    assert differences(dump(config()), dump(found)) == [
        "baseline", "recipe.steps", "seeds", "size.encoder.layers", "space.window",
    ]  # fmt: skip


def test_demo_has_what_it_promises() -> None:
    demo = load("demo")
    assert demo.trials >= 12
    plan = demo.planned()
    assert sum(planned.role == "baseline" for planned in plan) >= 3
    assert {d.control for d, *_ in plan} == {"none", "uncompressed", "blind", "encoderless"}
    changed = {axis for d, _, role, _ in plan if role == "arm" for axis, v in d.params().items()
               if v != plan[0][0].params()[axis]}  # fmt: skip
    assert {"pooling", "ratio", "window", "overlap", "mask", "adapter"} <= changed


def test_section5_lists_every_published_design() -> None:
    section5 = load("section5")
    assert section5.space.designs == PUBLISHED
    plan = section5.planned()
    assert {d.name for d, *_ in plan} >= set(PUBLISHED) and len(plan) == section5.trials == 5 + 3 + 19


def test_what_was_left_out_is_new() -> None:
    left_out = set(load("unpublished").space.designs)
    assert left_out & set(PUBLISHED) == {load("unpublished").baseline}
    assert len(left_out) + 4 + 3 == load("unpublished").trials == len(load("unpublished").planned())


def test_the_full_scale_family_has_its_shapes() -> None:
    config = load("fullscale")
    shapes = {(d.ratio, s.encoder.width, s.decoder.width, s.decoder.tied_head)
              for d in config.space.members() for s in [config.model_size().of(d)]}  # fmt: skip
    assert shapes == {
        (n, *s) for n in (4, 8, 16) for s in ((1024, 2560, True), (1024, 4096, False), (2560, 2560, True))
    }


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["spcae.window=[4]"], ["spcae", "Did you mean: 'space'"]),
        (["space.windw=[4]"], ["space.windw", "Did you mean: 'window'"]),
        (["space.window=64"], ["space.window", "a list"]),
        (["space.window=[a]"], ["space.window[0]", "Integer"]),
        (["space.window=[4,18]"], ["space.window", "18 is not a multiple of ratio 4", "16 or 20"]),
        (["space.positions=[base,spread]"], ["space", "one design at this size", "spread"]),
        (["space.encoder=[base,d64]"], ["embeddings", "differ", "-enc_d64"]),
        (["space.encoder=[base,k3]"], ["kv_heads", "does not divide"]),
        (["space.designs=[mean-w4-causal-mlp-O0]"], ["space.window", "4 is not a multiple", "mean-w16-causal-mlp-O0"]),
        (["space.window=[]"], ["space.window", "no choices"]),
        (["space.window=[4,4]"], ["space.window", "repeats"]),
        (["space.pooling=[mean,max]"], ["space.pooling", "'max'", "mean, concat, eos"]),
        (["space.mask=[sideways]"], ["space.mask", "causal, bidirectional"]),
        (["space.adapter=[none]"], ["space.adapter", "mlp, attn_mlp, mlp_attn"]),
        (["space.ratio=[1]"], ["space.ratio", "at least 2"]),
        (["space.overlap=[-1]"], ["space.overlap", "at least 0"]),
        (["space.window=[4,64]"], ["baseline", "window 16 is not one of 4, 64"]),
        (["baseline=best"], ["design", "'best'", "such as"]),
        (["controls=[blnd]"], ["controls", "uncompressed, blind, encoderless"]),
        (["sampler=bayes"], ["sampler", "tpe", "random", "grid", "nsga2"]),
        (["sampler=nsga2"], ["sampler", "objectives=[loss,prefill]", "tpe, random, grid"]),
        (["pruner=hyperband"], ["pruner", "none", "median", "halving", "wilcoxon", "cutoff"]),
        (["objectives=[loss,prefill]"], ["pruner", "halving", "none"]),
        (["timeout=0"], ["timeout", "above 0"]),
        (["objectives=[prefill]"], ["objectives", "[loss, prefill]"]),
        (["objectives=[loss,speed]"], ["objectives", "speed", "prefill"]),
        (["keep=0"], ["keep", "at least 1"]),
        (["factor=1"], ["factor", "at least 2"]),
        (["replicates=0"], ["replicates", "at least 1"]),
        (["limits.memory=0"], ["limits.memory", "above 0"]),
        (["limits.seconds=nan"], ["limits.seconds", "above 0"]),
        (["limits.hours=3"], ["limits", "hours"]),
        (["seeds=0"], ["seeds", "at least 1"]),
        (["seeds=many"], ["seeds", "Integer"]),
        (["trials=-3"], ["trials", "at least 1"]),
        (["recipe.rungs=[0.5]"], ["recipe.rungs", "end at 1"]),
        (["corpus.vocab=10"], ["corpus.vocab", "below 261"]),
        (["size.positions=packed"], ["size.positions", "spread"]),
        (["size.encoder.kv_heads=3"], ["kv_heads", "does not divide"]),
        (["size.encoder.width=64"], ["embeddings", "differ", "size.embeddings=separate"]),
        (["name=a/b"], ["name", "folder"]),
        (["seeds"], ["override", "key=value"]),
        (["recipe.rungs=[0.5"], ["YAML"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_with_the_field_and_the_choices(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        config(*overrides)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_unknown_preset_and_broken_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'nothere' is neither a preset .*demo"):
        load("nothere")
    broken = tmp_path / "broken.yaml"
    broken.write_text(MINI.read_text() + "\nspace: [\n")
    with pytest.raises(UsageError, match="YAML"):
        load(str(broken))


def test_rates_train_once_more_what_is_planned() -> None:
    plain, chosen = load("demo", ["trials=100"]), load("demo", ["trials=100", "rates=[0.5,2]"])
    judged = {planned.design for planned in plain.planned() if planned.role != "control"}
    more = chosen.planned()[len(plain.planned()) :]
    assert chosen.planned()[: len(plain.planned())] == plain.planned()
    assert len(more) == 2 * len(judged) and {(p.design, p.rate) for p in more} == {
        (design, rate) for design in judged for rate in (0.5, 2.0)
    }
    assert {(p.seed, p.role) for p in more} == {(0, "rate")}
    assert chosen.recipe_at(1.0) == chosen.recipe
    assert chosen.recipe_at(2.0).optim.muon_rate == 2 * chosen.recipe.optim.muon_rate
    assert replace(chosen.recipe_at(2.0), optim=chosen.recipe.optim) == chosen.recipe
