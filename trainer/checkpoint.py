"""Checkpoints: a folder for a step, with a safetensors file of every rank and a list of what there is.

    step-000000600/checkpoint.json    everything but tensors, a checksum of each file, and one of itself
                   shard-00001-...    the first rank's part of the tensors, as torch's distributed checkpoints have it
                   shard-00002-...    the second one's

No rank holds more than its own part. The folder is written under another name, flushed to disk and renamed when every
rank is done: it is either whole or not there. Any number of ranks reads it again. Nothing is ever unpickled.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from search_space.files import flush, write_text
from trainer.together import first, share, together

__all__ = ["CorruptCheckpoint", "Stored", "fill", "newest", "outline", "path_of", "read", "steps", "write"]

_LIST = "checkpoint.json"
_NAME = "step-"


class CorruptCheckpoint(RuntimeError):
    """The folder is incomplete, altered or not one of ours; the message says which and why."""


@dataclass(frozen=True)
class Stored:
    """A tensor that stands in the checkpoint at `path`."""

    path: Path
    key: str
    shape: torch.Size
    dtype: torch.dtype


def path_of(folder: Path, step: int) -> Path:
    """Of the checkpoint of a step in a trial's folder."""
    return folder / f"{_NAME}{step:09d}"


def steps(folder: Path) -> list[int]:
    """Of which `folder` has checkpoints, the newest last."""
    return sorted(int(path.name.removeprefix(_NAME)) for path in folder.glob(f"{_NAME}*") if not path.suffix)


def write(tree: dict[str, Any], path: Path) -> None:
    """Write nested dictionaries, lists and tuples of tensors and plain values; every rank calls it.

    A sharded tensor is written by the ranks that have it, one that all have by one of them; plain values are the first
    rank's. Raises on all ranks what one of them raises, such as `OSError` where the disk is full; a checkpoint that
    stood there is then as it was.
    """
    tensors: dict[str, Tensor] = {}
    plain = _take_tensors(tree, tensors)
    scratch = path.with_name(f"{path.name}.part")
    try:
        first(lambda: (shutil.rmtree(scratch, ignore_errors=True), scratch.mkdir()))
        _save(tensors, scratch)
        files = {name: digest for found in together(lambda: _own_files(scratch)) for name, digest in found}
        first(lambda: _commit(plain, files, scratch, path))
    finally:
        if share()[0] == 0:
            shutil.rmtree(scratch, ignore_errors=True)


def outline(path: Path) -> dict[str, Any]:
    """What was written, with `Stored` in place of tensors. Raises `CorruptCheckpoint`."""
    return _put_tensors(_content(path)["tree"], lambda *found: Stored(path, *found))


def fill(wanted: Iterable[tuple[Stored, Tensor]]) -> None:
    """Copy tensors of one checkpoint, or the parts of them that this rank has, into others of the same shape."""
    pairs = list(wanted)
    if not pairs:
        return
    reader = dcp.HuggingFaceStorageReader(str(pairs[0][0].path))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load({stored.key: tensor.detach() for stored, tensor in pairs}, storage_reader=reader, no_dist=True)


def read(path: Path, *parts: str) -> dict[str, Any]:
    """What was written, or of its first level those `parts`, with whole tensors on the CPU.

    Raises `CorruptCheckpoint`.
    """
    _verify(path, 0, 1)
    tree, wanted = _content(path)["tree"], []
    if parts:
        tree = {"dict": [pair for pair in tree["dict"] if pair[0] in parts]}

    def room(key: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        tensor = torch.empty(shape, dtype=dtype)
        wanted.append((Stored(path, key, shape, dtype), tensor))
        return tensor

    found = _put_tensors(tree, room)
    fill(wanted)
    return found


def newest(folder: Path, until: int) -> tuple[int | None, list[str]]:
    """The newest step up to `until` with a good checkpoint, and what is wrong with newer ones.

    Where there are several ranks each calls it, checks some of the files, and is told the same.
    """
    faults: list[str] = []
    for step in reversed(first(lambda: steps(folder))):
        if step > until:
            continue
        path = path_of(folder, step)
        wrong = [fault for fault in together(partial(_fault, path)) if fault]
        if not wrong:
            return step, faults
        faults.append(wrong[0])
    return None, faults


def _save(tensors: dict[str, Tensor], folder: Path) -> None:
    """Every rank its own part, flushed to disk."""
    if not tensors:
        return
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            dcp.save(tensors, storage_writer=writer, no_dist=share()[1] == 1)
    except CheckpointException as error:  # of which no `except Exception` would hear
        raise next(iter(error.failures.values()))[0] from error


def _own_files(folder: Path) -> list[tuple[str, str]]:
    """Name and checksum of what this rank has written."""
    return [(file.name, _checksum(file)) for file in folder.glob(f"shard-{share()[0] + 1:05d}-*")]


def _commit(tree: Any, files: dict[str, str], scratch: Path, path: Path) -> None:
    content = json.dumps({"tree": tree, "files": files})
    write_text(scratch / _LIST, f"{hashlib.sha256(content.encode()).hexdigest()}\n{content}")
    shutil.rmtree(path, ignore_errors=True)  # a damaged one: a good one would have been gone on from
    scratch.rename(path)
    flush(path.parent)


def _content(path: Path) -> dict[str, Any]:
    try:
        checksum, _, content = (path / _LIST).read_text().partition("\n")
    except (OSError, ValueError) as error:
        raise CorruptCheckpoint(f"{path} cannot be read: {error}") from error
    if hashlib.sha256(content.encode()).hexdigest() != checksum:
        raise CorruptCheckpoint(f"{path / _LIST} differs from its checksum")
    return json.loads(content)


def _verify(path: Path, rank: int, ranks: int) -> None:
    """Raise `CorruptCheckpoint` where one of this rank's share of the files is not what was written."""
    for name, checksum in sorted(_content(path)["files"].items())[rank::ranks]:
        try:
            found = _checksum(path / name)
        except OSError as error:
            raise CorruptCheckpoint(f"{path / name} cannot be read: {error}") from error
        if found != checksum:
            raise CorruptCheckpoint(f"{path / name} differs from its checksum")


def _fault(path: Path) -> str:
    try:
        _verify(path, *share())
    except CorruptCheckpoint as error:
        return str(error)
    return ""


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _take_tensors(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """`value` as JSON, its tensors moved to `tensors`. Dictionaries become pairs, since JSON keys are strings only."""
    if isinstance(value, Tensor):
        while path in tensors:  # a key may hold a slash, and 1 is written as "1" is
            path += "'"
        tensors[path] = value.detach() if isinstance(value, DTensor) else value.detach().contiguous()
        return {"tensor": [path, list(value.shape), str(value.dtype).removeprefix("torch.")]}
    if isinstance(value, dict):
        return {"dict": [[k, _take_tensors(v, tensors, f"{path}/{k}")] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_take_tensors(v, tensors, f"{path}/{i}") for i, v in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint holds tensors and plain values only; {path} is a {type(value).__name__}")


def _put_tensors(value: Any, tensor: Callable[[str, torch.Size, torch.dtype], Any]) -> Any:
    """The reverse, with what `tensor` makes of key, shape and dtype."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        key, shape, dtype = content
        return tensor(key, torch.Size(shape), getattr(torch, dtype))
    if kind == "dict":
        return {k: _put_tensors(v, tensor) for k, v in content}
    items = [_put_tensors(v, tensor) for v in content]
    return items if kind == "list" else tuple(items)
