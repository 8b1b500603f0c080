"""Training a trial: exact resume after anything, and an honest end when it cannot go on."""

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from search_space.design import Design
from tests.tiny import RECIPE, SIZE
from trainer import checkpoint
from trainer.corpus import Corpus
from trainer.optim import OptimConfig
from trainer.parallel import Parallel
from trainer.pretrain import pretrain
from trainer.recipe import Recipe
from trainer.trial import Diverged, Interrupted, RungResult, Stalled, TrialSpec

LAST = len(RECIPE.rungs)


def spec(corpus: Corpus, name: str = "mean-w32-causal-mlp-O0-n8", recipe: Recipe = RECIPE, seed: int = 0) -> TrialSpec:
    return TrialSpec(Design.parse(name), SIZE, recipe, seed, str(corpus.folder))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    step, _ = checkpoint.newest(folder, until=10**9)
    assert step is not None
    return checkpoint.read(checkpoint.path_of(folder, step), "state_dict")["state_dict"]


def cut_short(path: Path) -> None:
    """Damage a checkpoint: the last bytes of a file of it are missing."""
    shard = max(path.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-50])


def assert_same(folder: Path, result: RungResult, other_folder: Path, other: RungResult) -> None:
    """Bit for bit, but for the time it took and what had to be recovered."""
    neutral = {"seconds": 0.0, "recovered": []}
    assert replace(result, **neutral) == replace(other, **neutral)
    a, b = weights(folder), weights(other_folder)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def whole(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RungResult]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, pretrain(spec(corpus), folder, LAST)


def test_rung_by_rung_equals_straight_through(corpus: Corpus, whole: tuple[Path, RungResult], tmp_path: Path) -> None:
    first = pretrain(spec(corpus), tmp_path, 1)
    assert first.step == RECIPE.rung_steps()[0]
    assert_same(tmp_path, pretrain(spec(corpus), tmp_path, LAST), *whole)


@pytest.mark.parametrize(("at", "loaders"), [(1, 0), (5, 2), (6, 0), (11, 1)])
def test_stopped_and_continued_equals_uninterrupted(
    corpus: Corpus, whole: tuple[Path, RungResult], tmp_path: Path, at: int, loaders: int
) -> None:
    """Also with another number of loader processes."""
    with pytest.raises(Interrupted, match=str(at)):
        pretrain(spec(corpus), tmp_path, LAST, progress=lambda step, tokens: step < at)
    continued = pretrain(spec(corpus), tmp_path, LAST, parallel=Parallel(loaders=loaders))
    assert_same(tmp_path, continued, *whole)


def test_a_rung_that_was_reached_is_read_not_trained(corpus: Corpus, whole: tuple[Path, RungResult]) -> None:
    folder, result = whole
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert pretrain(spec(corpus), folder, LAST) == result
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_killed_between_checkpoint_and_result(corpus: Corpus, whole: tuple[Path, RungResult], tmp_path: Path) -> None:
    folder = tmp_path / "trial"
    shutil.copytree(whole[0], folder)
    RungResult.path(folder, LAST).unlink()
    assert_same(folder, pretrain(spec(corpus), folder, LAST), *whole)


def test_checkpoint_ahead_of_the_rung_is_not_its_result(
    corpus: Corpus, whole: tuple[Path, RungResult], tmp_path: Path
) -> None:
    """Rung 1 is asked for, and all that is left are checkpoints of rung 2."""
    folder = tmp_path / "trial"
    shutil.copytree(whole[0], folder)
    RungResult.path(folder, LAST).unlink()
    fresh = pretrain(spec(corpus), tmp_path / "fresh", 1)
    assert replace(pretrain(spec(corpus), folder, 1), seconds=0.0) == replace(fresh, seconds=0.0)


def test_truncated_checkpoint_is_passed_over_and_recorded(
    corpus: Corpus, whole: tuple[Path, RungResult], tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        pretrain(spec(corpus), tmp_path, LAST, progress=lambda step, tokens: step < 9)
    newest = checkpoint.path_of(tmp_path, checkpoint.steps(tmp_path)[-1])
    cut_short(newest)
    result = pretrain(spec(corpus), tmp_path, LAST)
    assert len(result.recovered) == 1 and newest.name in result.recovered[0]
    assert_same(tmp_path, result, *whole)


@pytest.mark.slow
def test_sigkill_and_continue_equals_uninterrupted(
    corpus: Corpus, whole: tuple[Path, RungResult], tmp_path: Path
) -> None:
    """The process is killed as soon as its second checkpoint is there."""
    code = (
        "import sys, time; from pathlib import Path; from trainer.corpus import Corpus\n"
        "from tests.trainer.test_pretrain import LAST, spec; from trainer.pretrain import pretrain\n"
        "slow = lambda step, tokens: time.sleep(0.2) or True\n"
        "pretrain(spec(Corpus(Path(sys.argv[1]))), Path(sys.argv[2]), LAST, slow)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(corpus.folder), str(tmp_path)])
    while not checkpoint.path_of(tmp_path, 4).exists():
        assert child.poll() is None, "ended before it could be killed"
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not RungResult.path(tmp_path, LAST).exists()
    assert_same(tmp_path, pretrain(spec(corpus), tmp_path, LAST), *whole)


def test_divergence_has_a_reason_and_no_result(corpus: Corpus, tmp_path: Path) -> None:
    wild = replace(RECIPE, optim=OptimConfig(muon_rate=1e30, adamw_rate=1e30, clip=1e30), precision="32-true")
    with pytest.raises(Diverged, match="loss is"):
        pretrain(spec(corpus, recipe=wild), tmp_path, LAST)
    assert not list(tmp_path.glob("rung-*.json"))


def test_a_stall_has_a_reason_and_what_was_trained_stays(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        pretrain(spec(corpus), tmp_path, LAST, progress=lambda step, tokens: step < 3)
    with pytest.raises(Stalled, match="no batch for"):
        pretrain(spec(corpus), tmp_path, LAST, parallel=Parallel(patience=1e-9))
    assert checkpoint.steps(tmp_path) == [2, 3]


@pytest.mark.slow
def test_out_of_memory_has_a_reason(corpus: Corpus, tmp_path: Path) -> None:
    """The process may not have more address space than it has, and 300 MB."""
    code = (
        "import resource, sys, torch; from dataclasses import replace; from pathlib import Path\n"
        "from tests.trainer.test_pretrain import LAST, spec; from tests.tiny import RECIPE\n"
        "from trainer.corpus import Corpus; from trainer.pretrain import pretrain\n"
        "from trainer.trial import OutOfMemory\n"
        "corpus, folder = Corpus(Path(sys.argv[1])), Path(sys.argv[2])\n"
        "torch.set_num_threads(1); pretrain(spec(corpus), folder / 'warm', 1)\n"
        "now = 4096 * int(Path('/proc/self/statm').read_text().split()[0])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (now + 300 * 2**20,) * 2)\n"
        "try: pretrain(spec(corpus, recipe=replace(RECIPE, pieces=150)), folder / 'large', LAST)\n"
        "except OutOfMemory as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(corpus.folder), str(tmp_path)]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.stdout.startswith("out of memory after step "), child.stderr[-2000:]
    assert not list(tmp_path.glob("large/rung-*.json"))


def test_the_published_format_trains_on_text_and_chats(two_sources: Corpus, tmp_path: Path) -> None:
    recipe = replace(
        RECIPE, format="published", piece=1024, pieces=2, continuation=0.8, mixture={"a": 1.0, "b": 2.0}, documents=4
    )
    size = replace(SIZE, positions="consecutive", phase_std=0.0)
    trial = replace(spec(two_sources, recipe=recipe), size=size)
    result = pretrain(trial, tmp_path, LAST)
    losses = [loss for _, loss, _ in result.curve]
    assert losses[-1] < losses[0]
    assert [first for first, _ in result.heldout.distance["continue"]] == [0, 1, 4, 16, 64, 256]


@pytest.mark.parametrize("name", ["concat-w16-bidirectional-attn_mlp-O8-n4", "eos-w32-causal-mlp_attn-O0-n8", "blind"])
def test_every_kind_of_design_trains(corpus: Corpus, tmp_path: Path, name: str) -> None:
    result = pretrain(spec(corpus, name), tmp_path, LAST)
    losses = [loss for _, loss, _ in result.curve]
    assert losses[-1] < losses[0]
    assert result.tokens == result.curve[-1][0]
    for task, documents in result.heldout.documents.items():
        assert sum(documents) / len(documents) == pytest.approx(result.heldout.loss[task])


def test_seeds_differ_and_repeat(corpus: Corpus, whole: tuple[Path, RungResult], tmp_path: Path) -> None:
    assert_same(tmp_path / "again", pretrain(spec(corpus), tmp_path / "again", LAST), *whole)
    other = pretrain(spec(corpus, seed=1), tmp_path / "other", LAST)
    assert other.heldout.loss != whole[1].heldout.loss


def test_two_newest_checkpoints_are_kept(whole: tuple[Path, RungResult]) -> None:
    assert len(checkpoint.steps(whole[0])) == 2
