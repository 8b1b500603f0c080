"""A plan's stages: what each trains, what it begins with, what it reads, and exact resume after anything."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from search_space.errors import UsageError
from tests.processes import torchrun
from tests.trainer.staged import STEPS, plan, stop_after
from tests.trainer.test_pretrain import cut_short, weights
from trainer import checkpoint
from trainer.corpus import Corpus
from trainer.parallel import Parallel
from trainer.stages import Outcome, check_corpus, outcome_of, read_state, run_stages, stage_folder, stage_specs
from trainer.stream import TrainingSamples
from trainer.trial import Interrupted, RungResult

STAGES = ("adapter", "encoder", "all", "sft")


def folders(run: Path) -> list[Path]:
    return [run / "stages" / f"{number}-{name}" for number, name in enumerate(STAGES)]


def assert_same_run(run: Path, other: Path) -> None:
    """Every stage's result and last weights bit for bit, but for the time it took."""
    for one, two in zip(folders(run), folders(other), strict=True):
        a, b = (replace(RungResult.load(RungResult.path(f, 1)), seconds=0.0, recovered=[]) for f in (one, two))
        assert a == b
        mine, theirs = weights(one), weights(two)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.fixture(scope="module")
def whole(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("plan")
    run_stages(plan(corpus.folder), run)
    return run


def test_a_stage_trains_its_parts_alone_and_begins_where_the_last_one_ended(whole: Path) -> None:
    ends = [weights(folder) for folder in folders(whole)]
    for before, after, name in zip(ends, ends[1:], STAGES[1:], strict=False):
        moved = {key.split(".")[1] for key in before if not torch.equal(before[key], after[key])}
        assert moved == {"encoder": {"adapter", "encoder"}}.get(name, {"adapter", "encoder", "decoder"})
    first = checkpoint.read(checkpoint.path_of(folders(whole)[0], 4))["state_dict"]
    assert {key.split(".")[1] for key in first if not torch.equal(first[key], ends[0][key])} == {"adapter"}


def test_frozen_parts_have_no_optimizer_state(whole: Path) -> None:
    state = checkpoint.read(checkpoint.path_of(folders(whole)[0], STEPS))["optimizer_states"][0]
    assert {name.split(".")[1] for name in state["state"]} == {"adapter"}


def test_rates_fall_to_the_lowest_of_all_and_evaluations_come_on_time(whole: Path) -> None:
    for folder in folders(whole):
        result = RungResult.load(RungResult.path(folder, 1))
        assert [e.step for e in result.evaluations] == [2, 4, 6]
        assert result.evaluations[-1].loss == pytest.approx(result.heldout.loss)
        groups = checkpoint.read(checkpoint.path_of(folder, STEPS))["optimizer_states"][0]["groups"]
        assert {round(group["lr"], 12) for group in groups} == {1e-4}
        assert {group["initial_lr"] for group in groups} <= {3e-3, 1e-3}


def test_stages_read_on_and_nothing_twice(corpus: Corpus) -> None:
    p = plan(corpus.folder)
    p = replace(p, stages=[replace(stage, pieces=24) for stage in p.stages])
    read: Counter[tuple[int, int, int]] = Counter()
    tokens = 0
    for stage, spec in zip(p.stages, stage_specs(p, corpus), strict=True):
        samples = TrainingSamples(corpus, spec.recipe, spec.seed, spec.read)
        pieces = [piece for step in range(stage.steps) for piece in samples.pieces(step)]
        read.update((piece.document, piece.start, piece.epoch) for piece in pieces)
        assert samples.raw_tokens(stage.steps) == sum(piece.length for piece in pieces)
        tokens += samples.raw_tokens(stage.steps)
    assert set(read.values()) == {1}
    straight = TrainingSamples(corpus, p.recipe(p.stages[0]), p.seed)
    assert tokens == straight.raw_tokens(len(p.stages) * STEPS)  # as one stream
    assert tokens > corpus.train.lengths.sum(), "more than an epoch, or this shows too little"


@pytest.mark.parametrize("steps", [1, STEPS - 1, STEPS + 2, 3 * STEPS + 5])
def test_stopped_and_continued_equals_uninterrupted(corpus: Corpus, whole: Path, tmp_path: Path, steps: int) -> None:
    with pytest.raises(Interrupted):
        run_stages(plan(corpus.folder), tmp_path, stop_after(steps))
    assert sum(stage.step for stage in read_state(plan(corpus.folder), tmp_path)) <= steps
    run_stages(plan(corpus.folder), tmp_path)
    assert_same_run(tmp_path, whole)


def test_a_damaged_end_is_trained_again_before_the_next_stage(corpus: Corpus, whole: Path, tmp_path: Path) -> None:
    p = plan(corpus.folder)
    with pytest.raises(Interrupted):
        run_stages(p, tmp_path, stop_after(STEPS + 1))
    cut_short(checkpoint.path_of(folders(tmp_path)[0], STEPS))
    shutil.rmtree(folders(tmp_path)[1])
    run_stages(p, tmp_path)
    assert_same_run(tmp_path, whole)
    assert RungResult.load(RungResult.path(folders(tmp_path)[0], 1)).recovered


def test_two_ranks_compute_what_one_process_does(corpus: Corpus, whole: Path, two_ranks: Path) -> None:
    for one, two in zip(folders(whole), folders(two_ranks / "whole"), strict=True):
        a, b = (RungResult.load(RungResult.path(f, 1)) for f in (one, two))
        assert (a.step, a.tokens) == (b.step, b.tokens)
        assert a.heldout.loss == pytest.approx(b.heldout.loss, rel=1e-4)
        assert [loss for _, loss, _ in a.curve] == pytest.approx([loss for _, loss, _ in b.curve], rel=1e-4)


@pytest.mark.slow
def test_ranks_that_were_stopped_go_on_bit_for_bit(two_ranks: Path) -> None:
    assert_same_run(two_ranks / "stopped", two_ranks / "whole")


@pytest.mark.slow
def test_one_process_goes_on_where_two_ranks_stopped(
    corpus: Corpus, whole: Path, two_ranks: Path, tmp_path: Path
) -> None:
    """In the midst of the third stage."""
    sources = folders(two_ranks / "whole")
    for folder, source in zip(folders(tmp_path)[:2], sources[:2], strict=True):
        shutil.copytree(source, folder)
    shutil.copytree(checkpoint.path_of(sources[2], 4), checkpoint.path_of(folders(tmp_path)[2], 4))
    run_stages(plan(corpus.folder), tmp_path)
    for one, two in zip(folders(tmp_path), folders(whole), strict=True):
        a, b = (RungResult.load(RungResult.path(f, 1)) for f in (one, two))
        assert a.tokens == b.tokens and a.heldout.loss == pytest.approx(b.heldout.loss, rel=1e-4)


@pytest.fixture(scope="module")
def two_ranks(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two FSDP ranks of torchrun have trained (see `tests.trainer.staged`)."""
    home = tmp_path_factory.mktemp("ranks")
    torchrun(2, "tests.trainer.staged", corpus.folder, home)
    return home


def test_another_tokenizer_and_too_few_embeddings_are_refused(corpus: Corpus) -> None:
    p = plan(corpus.folder)
    assert check_corpus(replace(p, tokenizer=corpus.manifest["tokenizer"])).folder == corpus.folder
    with pytest.raises(UsageError, match=r"^corpus: the tokenizer of .* has SHA-256 .*, and the plan's abc"):
        check_corpus(replace(p, tokenizer="abc"))
    with pytest.raises(UsageError, match=r"^corpus: the plan has none"):
        check_corpus(replace(p, corpus=""))
    with pytest.raises(UsageError, match=r"^size\.vocab: 200 rows are fewer than the 300"):
        check_corpus(replace(p, size=replace(p.size, vocab=200)))
    with pytest.raises(UsageError, match=r"^parallel\.accumulate: "):
        check_corpus(replace(p, parallel=Parallel(accumulate=100)))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.0, 99.0, "inside"), (98.0, 99.0, "below"), (0.0, 0.1, "above"), (None, None, "no prediction")],
)
def test_the_prediction_is_scored(
    corpus: Corpus, whole: Path, low: float | None, high: float | None, verdict: str
) -> None:
    p = replace(
        plan(corpus.folder), evidence={"prediction": low is not None and {"loss": 1.0, "low": low, "high": high}}
    )
    results = [RungResult.load(RungResult.path(folder, 1)) for folder in folders(whole)]
    found = outcome_of(p, results)
    assert found.verdict == verdict and found.loss == results[-1].heldout.loss["continue"]
    assert isinstance(found, Outcome) and found.low == low


def test_folders_are_numbered(corpus: Corpus) -> None:
    p = plan(corpus.folder)
    assert [stage_folder(Path("x"), k, s) for k, s in enumerate(p.stages)] == folders(Path("x"))
