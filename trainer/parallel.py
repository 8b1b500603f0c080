"""How the training of one trial is spread over devices: plain data, importable without Lightning."""

from dataclasses import dataclass
from typing import Literal

import torch

from search_space.errors import UsageError

__all__ = ["Parallel"]


@dataclass(frozen=True)
class Parallel:
    """Nothing of it changes what is computed but for the order of sums.

    strategy: one process, data parallel, or fully sharded (FSDP2). devices: per node. nodes: of a cluster.
    accumulate: batches into which a rank divides its share of a step.
    recompute: activations in the backward pass, instead of keeping them.
    loaders: worker processes that lay out batches; with 0 a thread does.
    patience: seconds without a batch after which a loader counts as stalled.
    """

    strategy: Literal["one", "ddp", "fsdp"] = "one"
    devices: int = 1
    nodes: int = 1
    accumulate: int = 1
    recompute: bool = False
    loaders: int = 0
    patience: float = 600.0

    def check(self) -> None:
        """Raise `UsageError` for the first field that cannot be."""
        limits = {"devices": 1, "nodes": 1, "accumulate": 1, "loaders": 0}
        for name, least in limits.items():
            if getattr(self, name) < least:
                raise UsageError(f"parallel.{name}: {getattr(self, name)} is not at least {least}")
        if self.strategy == "one" and self.ranks > 1:
            raise UsageError(f"parallel.strategy: one process cannot use {self.ranks} devices; choose ddp or fsdp")
        if not self.patience > 0:
            raise UsageError(f"parallel.patience: {self.patience} is not above 0")
        if torch.cuda.is_available() and self.devices > torch.cuda.device_count():
            raise UsageError(f"parallel.devices: {self.devices} of {torch.cuda.device_count()} that this machine has")

    @property
    def ranks(self) -> int:
        return self.devices * self.nodes
