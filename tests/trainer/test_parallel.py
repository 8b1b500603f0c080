"""The same training on one process, by data parallel, fully sharded, and started by torchrun."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from search_space.errors import UsageError
from tests.processes import torchrun
from tests.trainer.ranks import LAST, spec
from tests.trainer.test_pretrain import assert_same, weights
from trainer import checkpoint
from trainer.corpus import Corpus
from trainer.parallel import Parallel
from trainer.pretrain import pretrain
from trainer.trial import RungResult


@pytest.fixture(scope="module")
def two_ranks(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks of torchrun have trained (see `tests.trainer.ranks`)."""
    home = tmp_path_factory.mktemp("ranks")
    torchrun(2, "tests.trainer.ranks", corpus.folder, home)
    return home


def result_of(folder: Path) -> RungResult:
    return RungResult.load(RungResult.path(folder, LAST))


def assert_close(folder: Path, result: RungResult, other_folder: Path, other: RungResult) -> None:
    """But for the order of sums, which Muon's bfloat16 iteration enlarges."""
    assert (result.step, result.tokens) == (other.step, other.tokens)
    for task, losses in other.heldout.documents.items():
        assert result.heldout.documents[task] == pytest.approx(losses, rel=1e-3)
    assert [loss for _, loss, _ in result.curve] == pytest.approx([loss for _, loss, _ in other.curve], rel=1e-3)
    a, b = weights(folder), weights(other_folder)
    assert a.keys() == b.keys() and all(a[k].shape == b[k].shape for k in a)


@pytest.fixture(scope="module")
def alone(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RungResult]:
    folder = tmp_path_factory.mktemp("alone")
    return folder, pretrain(spec(corpus.folder), folder, LAST)


@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulation_changes_only_the_order_of_sums(
    corpus: Corpus, alone: tuple[Path, RungResult], tmp_path: Path, accumulate: int
) -> None:
    result = pretrain(spec(corpus.folder), tmp_path, LAST, parallel=Parallel(accumulate=accumulate))
    assert_close(tmp_path, result, *alone)


@pytest.mark.parametrize("loaders", [1, 2])
def test_loader_processes_change_nothing(
    corpus: Corpus, alone: tuple[Path, RungResult], tmp_path: Path, loaders: int
) -> None:
    result = pretrain(spec(corpus.folder), tmp_path, LAST, parallel=Parallel(loaders=loaders))
    assert_same(tmp_path, result, *alone)


def test_recomputed_activations_change_nothing(corpus: Corpus, alone: tuple[Path, RungResult], tmp_path: Path) -> None:
    result = pretrain(spec(corpus.folder), tmp_path, LAST, parallel=Parallel(recompute=True))
    assert_same(tmp_path, result, *alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sharded", "parallel"])
def test_two_ranks_train_as_one_process(alone: tuple[Path, RungResult], two_ranks: Path, name: str) -> None:
    assert_close(two_ranks / name, result_of(two_ranks / name), *alone)


@pytest.mark.slow
def test_stopped_ranks_go_on_bit_for_bit(two_ranks: Path) -> None:
    stopped, whole = two_ranks / "stopped", two_ranks / "sharded"
    assert_same(stopped, result_of(stopped), whole, result_of(whole))


@pytest.mark.slow
def test_one_process_goes_on_from_two_sharded_ranks(corpus: Corpus, two_ranks: Path, tmp_path: Path) -> None:
    """Another number of ranks and another strategy read the same checkpoint, and on from the same step."""
    folder, whole = two_ranks / "sharded", result_of(two_ranks / "sharded")
    shutil.copytree(checkpoint.path_of(folder, 10), checkpoint.path_of(tmp_path, 10))
    result = pretrain(spec(corpus.folder), tmp_path, LAST)
    assert_close(tmp_path, result, folder, whole)
    assert result.curve[:10] == whole.curve[:10]  # what two ranks had trained
    states = [checkpoint.read(checkpoint.path_of(f, 12))["optimizer_states"][0] for f in (folder, tmp_path)]
    assert states[0]["groups"] == states[1]["groups"]
    for name, kept in states[0]["state"].items():
        assert kept.keys() == states[1]["state"][name].keys()
        assert all(torch.is_tensor(v) for v in kept.values())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("devices", 0, r"^parallel\.devices: 0 is not at least 1"),
        ("accumulate", 0, r"^parallel\.accumulate: 0"),
        ("loaders", -1, r"^parallel\.loaders: -1"),
        ("patience", 0.0, r"^parallel\.patience: 0"),
        ("nodes", 2, r"^parallel\.strategy: one process cannot use 2 devices; choose ddp or fsdp"),
    ],
)
def test_what_cannot_be_is_refused(field: str, value: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(Parallel(), **{field: value}).check()
