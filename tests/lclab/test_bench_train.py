"""What `lclab bench train` compares computes the same, and its ratios are those of what it measured."""

import json
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lclab.__main__ import app
from lclab.bench.loop import Loop, Work
from lclab.bench.timing import Ratio
from lclab.bench.train import lightning, loading, stepping
from search_space.cost import forward_flops
from search_space.design import Design
from tests.sweeps.virtual import MINI
from tests.tiny import RECIPE, SIZE
from trainer.corpus import Corpus

BASELINE = "mean-w32-causal-mlp-O0-n8"


def work(corpus: Corpus, design: str = BASELINE, precision: Any = "32-true") -> Work:
    return Work(Design.parse(design), SIZE, replace(RECIPE, precision=precision), corpus, steps=3, rounds=2)


def quiet(what: str) -> None:
    pass


def assert_sane(found: Ratio) -> None:
    assert 0 < found.low <= found.high and isfinite(found.high) and isfinite(found.value)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_pretrain_and_the_bare_loop_take_the_same_steps(corpus: Corpus, precision: str, kind: Any) -> None:
    """Whatever Lightning does around a step, it changes nothing of it."""
    measured = work(corpus, precision=precision)
    optim = replace(measured.recipe.optim, kind=kind)
    found = lightning(replace(measured, recipe=replace(measured.recipe, optim=optim)), quiet)
    assert found.loss[0] == pytest.approx(found.loss[1], rel=1e-6)  # a mean of equal numbers, taken twice
    for ratio in (found.ratio, found.noise):
        assert 0 < ratio.low <= ratio.value <= ratio.high and isfinite(ratio.high)


@pytest.mark.parametrize("design", [BASELINE, "eos-w32-bidirectional-mlp-O8-n8", "concat-w16-causal-mlp-O8-n4"])
def test_the_published_loop_takes_the_same_steps(corpus: Corpus, design: str) -> None:
    found = stepping(work(corpus, design), quiet)
    assert found.plain and found.plain.loss[0] == pytest.approx(found.plain.loss[1], rel=1e-4)
    assert_sane(found.plain.faster)
    assert found.plain.faster.value == pytest.approx(found.plain.published / found.plain.ours)


@pytest.mark.parametrize(
    "design",
    [
        Design.parse("conv-w32-causal-mlp-O0-n8"),
        Design.parse("mean-w32-causal-attn_mlp-O0-n8"),
        Design.parse(BASELINE).but(control="blind"),
    ],
    ids=lambda design: design.name,
)
def test_what_the_published_loop_does_not_know_is_left_out(corpus: Corpus, design: Design) -> None:
    found = stepping(replace(work(corpus), design=design), quiet)
    assert found.plain is None and found.tokens > 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_floor_is_of_the_steps_own_products(corpus: Corpus, precision: str) -> None:
    measured = work(corpus, precision=precision)
    found, batches = stepping(measured, quiet), measured.batches(3)
    floor, size = found.floor, measured.size
    assert floor.flops == pytest.approx(sum(forward_flops(measured.design, size, b) for b in batches))  # 3 of 3 steps
    assert floor.share.value == pytest.approx(floor.flops / floor.rate / found.seconds)
    positions, inputs, outputs = floor.shape
    assert inputs == size.decoder.width and outputs in (size.vocab, size.decoder.feedforward)
    encoder = batches[0].encoder
    assert encoder and positions in (len(batches[0].target_P), batches[0].token_RT.numel(), encoder.token_RT.numel())
    assert found.tokens == pytest.approx(measured.samples().raw_tokens(3) / 3 / found.seconds)


def test_the_loader_is_measured_in_a_thread_and_in_a_process(corpus: Corpus) -> None:
    found = loading(work(corpus), quiet)
    assert [loader.workers for loader in found] == [0, 1]
    for loader in found:
        assert_sane(loader.faster)
        assert loader.batches > 0
    # Both are compared with the same steps.
    thread, process = found
    assert thread.faster.value / process.faster.value == pytest.approx(thread.batches / process.batches)


def test_a_loop_trains(corpus: Corpus) -> None:
    measured = work(corpus)
    loop, batches = Loop(measured, measured.design, measured.size), measured.batches(3)
    for _ in range(4):
        for batch in batches:
            loop.ours(batch)
    assert len(loop.losses) == 12 and loop.loss(9) < loop.loss(0, 3)


def test_steps_are_at_the_recipes_last_span(corpus: Corpus) -> None:
    measured = work(corpus)
    samples = [sample for step in range(measured.total) for sample in measured.samples()(step)]
    assert max(len(s.tokens) for s in samples if s.task != "continue") == RECIPE.curriculum[-1].span


def test_bench_train_prints_what_it_measured(corpus: Corpus, tmp_path: Path) -> None:
    command = ["bench", "train", str(MINI), f"corpus.source={corpus.folder}", "--steps", "2", "--rounds", "1"]
    done = CliRunner().invoke(app, [*command, "--home", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {"stepping", "loading", "lightning", "precision", "device", "design"} <= found.keys()
    assert found["stepping"]["plain"]["faster"]["value"] > 0 and len(found["loading"]) == 2
    shown = CliRunner().invoke(app, [*command, "--home", str(tmp_path)])
    assert all(words in shown.output for words in ("plain published loop", "matmul floor", "loader", "Lightning"))


def test_bench_rates_prints_every_size_and_goes_on_where_it_was(corpus: Corpus, tmp_path: Path) -> None:
    recipe = ["recipe.steps=2", "recipe.rungs=[1.0]", "recipe.documents=2", f"corpus.source={corpus.folder}"]
    command = ["bench", "rates", str(MINI), *recipe, "--size", "32x1", "--size", "32x2", "--home", str(tmp_path)]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))["rates"]
    shapes = [(row["size"]["decoder"]["width"], row["size"]["decoder"]["layers"]) for row in found]
    assert shapes == [(32, 1), (32, 2)]
    assert all(len(row["losses"]) == 5 and all(loss > 0 for loss in row["losses"].values()) for row in found)

    results = sorted(tmp_path.glob("rates/*/*/rung-1.json"))
    before = [path.stat().st_mtime_ns for path in results]
    assert len(results) == 10 and CliRunner().invoke(app, command).exit_code == 0
    assert [path.stat().st_mtime_ns for path in results] == before
    CliRunner().invoke(app, [*command, "recipe.parallel=0.25"])
    assert len(list(tmp_path.glob("rates/*"))) == 2, "another recipe belongs in another folder"
