"""The state of model and optimizer by name, as it is spread over ranks."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.checkpoint import Stored, fill

__all__ = ["load_module", "load_optimizer", "of_module", "of_optimizer"]


def of_module(module: nn.Module) -> dict[str, Tensor]:
    """Name to weight; a weight with two names has the first."""
    return dict(module.named_parameters())


def load_module(module: nn.Module, saved: dict[str, Stored]) -> None:
    """Raises `ValueError` where names or shapes differ."""
    weights = dict(module.named_parameters())
    _same_names(set(weights), set(saved))
    for name, weight in weights.items():
        if weight.shape != saved[name].shape:
            raise ValueError(f"{name}: {tuple(saved[name].shape)} does not fit {tuple(weight.shape)}")
    fill((saved[name], weight) for name, weight in weights.items())


def of_optimizer(optimizer: Optimizer, module: nn.Module) -> dict[str, Any]:
    """`state`: name of the weight to what is kept of it; `groups`: settings of each group and its weights' names."""
    names: dict[Tensor, str] = {weight: name for name, weight in module.named_parameters()}
    groups = [{**g, "params": [names[p] for p in g["params"]]} for g in optimizer.param_groups]
    return {"state": {names[p]: dict(kept) for p, kept in optimizer.state.items()}, "groups": groups}


def load_optimizer(optimizer: Optimizer, module: nn.Module, saved: dict[str, Any]) -> None:
    """Raises `ValueError` where the groups hold other weights."""
    weights = dict(module.named_parameters())
    for group, old in zip(optimizer.param_groups, saved["groups"], strict=True):
        _same_names({n for n, p in weights.items() if any(p is q for q in group["params"])}, set(old["params"]))
        group.update({key: value for key, value in old.items() if key != "params"})
    wanted: list[tuple[Stored, Tensor]] = []
    for name, kept in saved["state"].items():
        state = optimizer.state[weights[name]] = {k: _room(v, weights[name]) for k, v in kept.items()}
        wanted += [(v, state[k]) for k, v in kept.items() if isinstance(v, Stored)]
    fill(wanted)


def _room(value: Any, weight: Tensor) -> Any:
    """For what is stored of `weight`: spread as it is, on its device; a count of steps is a tensor of its own."""
    if not isinstance(value, Stored):
        return value
    if value.shape == weight.shape:
        return torch.empty_like(weight, dtype=value.dtype, requires_grad=False)
    return torch.empty(value.shape, dtype=value.dtype)


def _same_names(here: set[str], there: set[str]) -> None:
    if here != there:
        one = sorted(here ^ there)[0]
        raise ValueError(f"{one} is {'not saved' if one in here else 'not in the model'}")
