"""A checkpoint is whole or not there, a damaged one is never taken for a good one, and any number of ranks reads it."""

import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.processes import torchrun
from tests.trainer.shards import tree
from trainer import checkpoint
from trainer.checkpoint import CorruptCheckpoint

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
tensors = st.builds(
    lambda shape, dtype: torch.arange(int(torch.tensor(shape).prod()), dtype=torch.float32).reshape(shape).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]),
)
trees = st.recursive(
    plain | tensors,
    lambda t: (
        st.lists(t, max_size=3) | st.tuples(t, t) | st.dictionaries(st.text(max_size=5) | st.integers(), t, max_size=3)
    ),
    max_leaves=12,
)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


@given(tree=st.dictionaries(st.text(max_size=5), trees, max_size=4))
def test_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("checkpoint") / "step-000000001"
    checkpoint.write(tree, path)
    assert equal(checkpoint.read(path), tree)
    assert list(path.parent.iterdir()) == [path]


def test_two_tensors_by_one_path_are_two(tmp_path: Path) -> None:
    """A key may hold a slash, and a number is written as its digits are."""
    numbers = {1: torch.tensor(2), "1": torch.tensor(3)}
    state = {"a": {"b": torch.zeros(1)}, "a/b": torch.ones(1), "": numbers}
    checkpoint.write(state, tmp_path / "step-000000001")
    assert equal(checkpoint.read(tmp_path / "step-000000001"), state)


def test_parts_are_read_alone_and_tensors_into_others(tmp_path: Path) -> None:
    path, weight = tmp_path / "step-000000001", torch.rand(3, 2)
    state = {"a": {"w": weight}, "b": torch.rand(2)}
    checkpoint.write(state, path)
    assert equal(checkpoint.read(path, "a"), {"a": state["a"]})
    stored, room = checkpoint.outline(path)["a"]["w"], torch.zeros(3, 2)
    assert (stored.shape, stored.dtype) == (room.shape, room.dtype)
    checkpoint.fill([(stored, room)])
    assert torch.equal(room, weight)


def some_state(value: float = 1.0) -> dict[str, Any]:
    return {"state_dict": {"w": torch.full((40, 5), value)}, "step": 7}


@given(data=st.data())
def test_any_damage_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A file cut short, a bit flipped, or a file gone."""
    path = tmp_path_factory.mktemp("damage") / "step-000000007"
    checkpoint.write(some_state(), path)
    file = data.draw(st.sampled_from(sorted(path.iterdir())))
    content = bytearray(file.read_bytes())
    kind = data.draw(st.sampled_from(["cut", "flip", "gone"]))
    if kind == "cut":
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    if kind == "flip":
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.unlink() if kind == "gone" else file.write_bytes(content)
    with pytest.raises(CorruptCheckpoint, match=str(path)):
        checkpoint.read(path)
    step, faults = checkpoint.newest(path.parent, until=7)
    assert step is None and len(faults) == 1 and str(path) in faults[0]


def test_the_one_before_is_used_and_the_damage_reported(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        checkpoint.write(some_state(step), checkpoint.path_of(tmp_path, step))
    assert checkpoint.steps(tmp_path) == [5, 10, 15]
    newest = next(checkpoint.path_of(tmp_path, 15).glob("shard-*"))
    newest.write_bytes(newest.read_bytes()[:100])
    step, faults = checkpoint.newest(tmp_path, until=20)
    assert step == 10 and len(faults) == 1 and str(newest) in faults[0]
    assert checkpoint.newest(tmp_path, until=9) == (5, [])
    assert checkpoint.newest(tmp_path, until=4) == (None, [])
    checkpoint.write(some_state(16.0), checkpoint.path_of(tmp_path, 15))  # over the damaged one
    assert equal(checkpoint.read(checkpoint.path_of(tmp_path, 15)), some_state(16.0))


def test_what_a_killed_process_left_is_no_checkpoint(tmp_path: Path) -> None:
    path = checkpoint.path_of(tmp_path, 3)
    checkpoint.write(some_state(), path)
    path.rename(path.with_name(f"{path.name}.part"))
    assert checkpoint.steps(tmp_path) == [] and checkpoint.newest(tmp_path, until=9) == (None, [])
    checkpoint.write(some_state(2.0), path)
    assert list(tmp_path.iterdir()) == [path] and equal(checkpoint.read(path), some_state(2.0))


def test_full_disk_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    """A limit on file size in a child process: writing past it fails as on a full disk."""
    old, new = checkpoint.path_of(tmp_path, 1), checkpoint.path_of(tmp_path, 2)
    checkpoint.write(some_state(), old)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            checkpoint.write({"w": torch.zeros(100_000)}, new)
        except OSError:
            os._exit(17)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
    assert sorted(tmp_path.iterdir()) == [old]
    assert equal(checkpoint.read(old), some_state())


def test_nothing_but_plain_values_and_tensors(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="/a/0"):
        checkpoint.write({"a": [object()]}, tmp_path / "step-000000001")
    assert list(tmp_path.iterdir()) == []


RANKS = 3


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What three ranks have written after one process (see `tests.trainer.shards`, which makes assertions too)."""
    home = tmp_path_factory.mktemp("ranks")
    checkpoint.write(tree(), checkpoint.path_of(home, 1))
    torchrun(RANKS, "tests.trainer.shards", home)
    return home


@pytest.mark.slow
def test_ranks_write_their_own_parts_and_any_number_reads_them(ranks: Path) -> None:
    """Three have read what one had written, too: `shards` compares."""
    path = checkpoint.path_of(ranks, 2)
    assert equal(checkpoint.read(path), tree())
    shards = sorted(path.glob("shard-*"))
    assert len(shards) == RANKS
    assert [len(load_file(file)["/sharded/(9, 2, 2) torch.float32"]) for file in shards] == [3, 3, 3]


@pytest.mark.slow
def test_a_disk_that_is_full_for_one_rank_is_so_for_all(ranks: Path) -> None:
    assert sorted(ranks.iterdir()) == [checkpoint.path_of(ranks, 1), checkpoint.path_of(ranks, 2)]
