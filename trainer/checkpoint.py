"""Checkpoints as safetensors: plain tensors and JSON, written atomically, checked when read, never unpickled.

Lightning hands over one nested dictionary. Its tensors go to safetensors under their path; everything else goes to
JSON in the file's header, with a checksum over the tensors' bytes.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from safetensors.torch import load, save
from torch import Tensor

__all__ = ["CorruptCheckpoint", "SafetensorsIO", "newest", "read", "step_of", "write"]

_SUFFIX = ".safetensors"


class CorruptCheckpoint(RuntimeError):
    """The file is truncated, altered or not one of ours; the message says which and why."""


class SafetensorsIO(CheckpointIO):
    """Lightning's plugin over `write` and `read`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Write to a temporary name, flush to disk, rename: the file is either whole or not there."""
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_take_tensors(checkpoint, tensors))
    metadata = {"tree": tree, "sha256": _checksum(tree, tensors)}
    scratch = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with scratch.open("wb") as stream:
            stream.write(save(tensors, metadata))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)  # the rename itself must survive a power cut
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read(path: Path) -> dict[str, Any]:
    """The dictionary that was written. Raises `CorruptCheckpoint`."""
    try:
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata, tensors = header["__metadata__"], load(data)
        tree, checksum = metadata["tree"], metadata["sha256"]
    except Exception as error:  # whatever a damaged file makes the parser say
        raise CorruptCheckpoint(f"{path} cannot be read: {error}") from error
    if _checksum(tree, tensors) != checksum:
        raise CorruptCheckpoint(f"{path} differs from its checksum")
    return _put_tensors(json.loads(tree), tensors)


def step_of(path: Path) -> int:
    """The step in a checkpoint's file name, `step-000600.safetensors`."""
    return int(path.name.removesuffix(_SUFFIX).rpartition("-")[2])


def newest(folder: Path, until: int) -> tuple[Path | None, list[str]]:
    """The newest checkpoint up to step `until` that reads well, and what was wrong with newer ones."""
    faults: list[str] = []
    usable = (p for p in folder.glob(f"step-*{_SUFFIX}") if step_of(p) <= until)
    for path in sorted(usable, key=step_of, reverse=True):
        try:
            read(path)
        except CorruptCheckpoint as error:
            faults.append(str(error))
            continue
        return path, faults
    return None, faults


def _checksum(tree: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(tree.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _take_tensors(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """`value` as JSON, its tensors moved to `tensors`. Dictionaries become pairs, since JSON keys are strings only."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"tensor": path}
    if isinstance(value, dict):
        return {"dict": [[k, _take_tensors(v, tensors, f"{path}/{k}")] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_take_tensors(v, tensors, f"{path}/{i}") for i, v in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint holds tensors and plain values only; {path} is a {type(value).__name__}")


def _put_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {k: _put_tensors(v, tensors) for k, v in content}
    items = [_put_tensors(v, tensors) for v in content]
    return items if kind == "list" else tuple(items)
