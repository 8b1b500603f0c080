"""Checkpoints of several ranks, for `torchrun -m tests.trainer.shards HOME`.

Shapes are those that do not divide: fewer rows than ranks, one more than they share, none, and a number.
"""

import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from trainer import checkpoint

SHAPES = [(1,), (2, 3), (4, 5), (7,), (9, 2, 2), (0, 4)]
DTYPES = [torch.float32, torch.bfloat16, torch.int64]


def tree(scale: int = 1) -> dict[str, Any]:
    """Whole tensors by shape and type, and plain values."""

    def filled(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        count = int(torch.tensor(shape).prod())
        return (torch.arange(count) * scale + 1).reshape(shape).to(dtype)

    sharded = {f"{shape} {dtype}": filled(shape, dtype) for shape in SHAPES for dtype in DTYPES}
    return {"sharded": sharded, "same": [torch.tensor(3.0), torch.arange(6.0)], "big": torch.zeros(scale, 999), "n": 7}


def spread(whole: dict[str, Any], mesh: DeviceMesh) -> dict[str, Any]:
    parts = {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in whole["sharded"].items()}
    return whole | {"sharded": parts, "big": distribute_tensor(whole["big"], mesh, [Shard(0)])}


def main(home: Path) -> None:
    mesh, rank = init_device_mesh("cpu", (int(os.environ["WORLD_SIZE"]),)), int(os.environ["RANK"])
    checkpoint.write(spread(tree(), mesh), checkpoint.path_of(home, 2))

    outline, room = checkpoint.outline(checkpoint.path_of(home, 1)), spread(tree(0), mesh)  # of one process
    checkpoint.fill((stored, room["sharded"][name]) for name, stored in outline["sharded"].items())
    for name, tensor in spread(tree(), mesh)["sharded"].items():
        assert torch.equal(tensor.to_local(), room["sharded"][name].to_local()), name

    if rank == 1:  # its disk is full
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    with pytest.raises(OSError, match="File too large"):  # on all of them
        checkpoint.write(spread(tree(3000), mesh), checkpoint.path_of(home, 3))

    damaged = sorted(checkpoint.path_of(home, 2).glob("shard-*"))[-1]  # which the last rank looks at
    if rank == 0:
        content = damaged.read_bytes()
        damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    dist.barrier()
    step, faults = checkpoint.newest(home, until=9)
    assert step == 1 and len(faults) == 1 and damaged.name in faults[0], (step, faults)
    dist.barrier()
    if rank == 0:
        damaged.write_bytes(content)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
