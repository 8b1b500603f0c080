"""A checkpoint is either whole or not there, and a damaged one is never taken for a good one."""

import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
    path = tmp_path_factory.mktemp("checkpoint") / "step-000000001.safetensors"
    checkpoint.write(tree, path)
    assert equal(checkpoint.read(path), tree)
    assert list(path.parent.iterdir()) == [path]


def some_state(value: float = 1.0) -> dict[str, Any]:
    return {"state_dict": {"w": torch.full((40, 5), value)}, "step": 7}


@given(data=st.data())
def test_any_damage_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("damage") / "step-000000007.safetensors"
    checkpoint.write(some_state(), path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        found = checkpoint.read(path)
    except CorruptCheckpoint as error:
        assert str(path) in str(error)
    else:  # a flipped bit in the header's white space is no damage
        assert equal(found, some_state())


def test_the_one_before_is_used_and_the_damage_reported(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        checkpoint.write(some_state(step), tmp_path / f"step-{step:09d}.safetensors")
    newest = tmp_path / "step-000000015.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    path, faults = checkpoint.newest(tmp_path, until=20)
    assert path is not None and checkpoint.step_of(path) == 10
    assert len(faults) == 1 and str(newest) in faults[0]
    assert checkpoint.newest(tmp_path, until=9)[0] == tmp_path / "step-000000005.safetensors"
    assert checkpoint.newest(tmp_path, until=4) == (None, [])


def test_full_disk_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    """A limit on file size in a child process: writing past it fails as on a full disk."""
    old, new = tmp_path / "step-000000001.safetensors", tmp_path / "step-000000002.safetensors"
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
        checkpoint.write({"a": [object()]}, tmp_path / "step-000000001.safetensors")
    assert list(tmp_path.iterdir()) == []
