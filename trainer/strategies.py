"""The strategies of Lightning that train a trial: one process, data parallel, fully sharded.

Whatever the strategy, a checkpoint holds tensors by name (see `state`), so that a run may go on with another strategy
and another number of ranks.
"""

import atexit
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer

from search_space.compressor import Compressor
from search_space.transformer import Block
from trainer import state
from trainer.checkpoint import outline, write
from trainer.meeting import meeting_place
from trainer.parallel import Parallel

__all__ = ["lightning_strategy", "meet", "rest", "shard"]


def shard(model: Compressor, mesh: DeviceMesh) -> None:
    """FSDP2: one group per transformer block, one for the rest. Does nothing to a model that is sharded already."""
    if isinstance(model, FSDPModule):
        return
    for block in [m for m in model.modules() if isinstance(m, Block)]:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for method in ("loss", "scores"):  # what is called in place of `forward`
        register_fsdp_forward_method(model, method)


def rest(model: Compressor) -> None:
    """Give back what a forward pass without a backward pass leaves gathered, so that weights are the sharded ones."""
    if isinstance(model, FSDPModule):
        model.reshard()


def lightning_strategy(parallel: Parallel, device: torch.device | None = None) -> Strategy:
    """The strategy, for this process's `device` where a launcher has chosen it, else for Lightning to place."""
    if parallel.strategy == "one":
        return _One(device or torch.device("cuda:0" if torch.cuda.is_available() else "cpu"))
    strategy = _Ddp() if parallel.strategy == "ddp" else _Sharded(parallel.ranks)
    strategy.placed = device
    if "RANK" in os.environ:  # torchrun and Ray Train start the processes themselves
        meet(parallel, device)
        strategy.cluster_environment = _Started()
    else:
        strategy.cluster_environment = LightningEnvironment()
    return strategy


def meet(parallel: Parallel, device: torch.device | None = None) -> None:
    """Connect the ranks that a launcher has started, where nobody has yet: they read checkpoints together.

    device: of this rank, where the launcher has chosen it; else it is the one of its number on the machine.
    """
    if parallel.strategy == "one" or "RANK" not in os.environ:
        return
    if torch.cuda.is_available():  # what ranks tell each other goes through it
        torch.cuda.set_device(device or int(os.environ.get("LOCAL_RANK", 0)))
    if dist.is_initialized():
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    store = meeting_place()
    if store is None:
        dist.init_process_group(backend)
    else:
        rank, ranks = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
        dist.init_process_group(backend, store=store, rank=rank, world_size=ranks)
    atexit.register(_part)


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


class _Started(TorchElasticEnvironment):
    """Processes that somebody else has started, and who says so as torchrun does."""

    @property
    def creates_processes_externally(self) -> bool:
        return True


class _NamedState:
    """Checkpoints of tensors by name, of every rank its own part."""

    lightning_module: Any
    optimizers: list[Optimizer]
    lightning_restore_optimizer = True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return state.of_module(self.lightning_module)

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        state.load_module(self.lightning_module, checkpoint["state_dict"])

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return state.of_optimizer(optimizer, self.lightning_module)

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            state.load_optimizer(optimizer, self.lightning_module, saved)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        write(checkpoint, Path(filepath))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return outline(Path(checkpoint_path))


class _One(_NamedState, SingleDeviceStrategy):
    """One process."""


class _Placed:
    """A strategy of many processes, whose device somebody else may have chosen."""

    placed: torch.device | None = None

    @property
    def root_device(self) -> torch.device:
        return self.placed or super().root_device  # ty: ignore[missing-attribute]


class _Ddp(_NamedState, _Placed, DDPStrategy):
    """The model on every rank, gradients averaged."""


class _Sharded(_NamedState, _Placed, ModelParallelStrategy):
    """Weights, gradients and optimizer in parts (FSDP2)."""

    def __init__(self, ranks: int) -> None:
        super().__init__(data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False)
