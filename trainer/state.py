"""The state of model and optimizer as whole tensors by name, whichever way they are spread over ranks.

Every rank takes part; what comes out is on the CPU, on the first rank only, since only that one writes.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

__all__ = ["load_module", "load_optimizer", "of_module", "of_optimizer"]


def of_module(module: nn.Module) -> dict[str, Tensor]:
    """Name to weight; a weight with two names has the first."""
    return {name: _whole(weight) for name, weight in module.named_parameters()}


@torch.no_grad()
def load_module(module: nn.Module, saved: dict[str, Tensor]) -> None:
    """Raises `ValueError` where names or shapes differ."""
    weights = dict(module.named_parameters())
    _same_names(set(weights), set(saved))
    for name, weight in weights.items():
        if weight.shape != saved[name].shape:
            raise ValueError(f"{name}: {tuple(saved[name].shape)} does not fit {tuple(weight.shape)}")
        weight.copy_(_spread(saved[name], weight))


def of_optimizer(optimizer: Optimizer, module: nn.Module) -> dict[str, Any]:
    """`state`: name of the weight to what is kept of it; `groups`: settings of each group and its weights' names."""
    names: dict[Tensor, str] = {weight: name for name, weight in module.named_parameters()}
    groups = [{**g, "params": [names[p] for p in g["params"]]} for g in optimizer.param_groups]
    states = {names[p]: {k: _whole(v) for k, v in kept.items()} for p, kept in optimizer.state.items()}
    return {"state": states, "groups": groups}


@torch.no_grad()
def load_optimizer(optimizer: Optimizer, module: nn.Module, saved: dict[str, Any]) -> None:
    """Raises `ValueError` where the groups hold other weights."""
    weights = dict(module.named_parameters())
    for group, old in zip(optimizer.param_groups, saved["groups"], strict=True):
        _same_names({n for n, p in weights.items() if any(p is q for q in group["params"])}, set(old["params"]))
        group.update({key: value for key, value in old.items() if key != "params"})
    for name, kept in saved["state"].items():
        weight = weights[name]
        optimizer.state[weight] = {k: _spread(v, weight) for k, v in kept.items()}


def _whole(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    whole = value.detach().full_tensor() if isinstance(value, DTensor) else value.detach()
    if dist.is_initialized() and dist.get_rank() > 0:
        return torch.empty(0)
    return whole.cpu()


def _spread(value: Any, like: Tensor) -> Any:
    """`value` as `like` is spread, on its device; a number in a tensor, such as a count of steps, stays as it is."""
    if not isinstance(value, Tensor) or value.shape != like.shape:
        return value.clone() if isinstance(value, Tensor) else value
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return value.to(like.device).clone()


def _same_names(here: set[str], there: set[str]) -> None:
    if here != there:
        one = sorted(here ^ there)[0]
        raise ValueError(f"{one} is {'not saved' if one in here else 'not in the model'}")
