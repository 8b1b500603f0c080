"""The optimizer: Muon for the matrices of the layers and AdamW for everything else, or AdamW alone.

Both are torch's own. They are joined so that Lightning sees one optimizer: one step count, one clipping, one
schedule, one state to save.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import AdamW, Muon, Optimizer

from search_space.compressor import Compressor, matrices
from search_space.errors import UsageError
from trainer.scaling import Scaling, factors

__all__ = ["MuonAdamW", "OptimConfig", "PartConfig", "ShardedMuon", "build", "freeze"]


@dataclass(frozen=True)
class PartConfig:
    """What one part of the compressor has of its own; None is what all have. A weight of rate 0 is frozen."""

    muon_rate: float | None = None
    adamw_rate: float | None = None
    weight_decay: float | None = None


@dataclass(frozen=True)
class OptimConfig:
    """kind: `muon` trains the weights of linear layers by Muon and the rest by AdamW, `adamw` all by AdamW.
    muon_rate, adamw_rate: peak rates; beta1, beta2, eps: of AdamW.
    weight_decay: of the weights of linear layers alone; norms, biases, embeddings and an untied head have none.
    clip: largest norm of all gradients together.
    scaling: `mup` carries rates and initial scales from the base size to others (see `trainer.scaling`); `none` takes
        the rates as they are.
    encoder, adapter, decoder: where a part differs. The pooling goes with the adapter, a tied embedding with the
        decoder.
    """

    kind: Literal["muon", "adamw"] = "muon"
    muon_rate: float = 0.01
    adamw_rate: float = 0.006
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip: float = 1.0
    scaling: Scaling = "mup"
    encoder: PartConfig = field(default_factory=PartConfig)
    adapter: PartConfig = field(default_factory=PartConfig)
    decoder: PartConfig = field(default_factory=PartConfig)

    def check(self) -> None:
        """Raise `UsageError` for the first field that cannot be."""
        for name in ("muon_rate", "adamw_rate", "eps", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"recipe.optim.{name}: {getattr(self, name)} is not a number above 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"recipe.optim.{name}: {getattr(self, name)} is not from 0 to below 1")
        not_below_0 = {"weight_decay": self.weight_decay}
        for part in ("encoder", "adapter", "decoder"):
            not_below_0 |= {f"{part}.{name}": value for name, value in vars(getattr(self, part)).items()}
        for name, value in not_below_0.items():
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(f"recipe.optim.{name}: {value} is not a number of at least 0")

    def times(self, factor: float) -> "OptimConfig":
        """All peak rates, also those of parts, times `factor`."""
        rates = ("muon_rate", "adamw_rate")
        parts = {name: getattr(self, name) for name in ("encoder", "adapter", "decoder")}
        own = {
            name: replace(part, **{r: getattr(part, r) * factor for r in rates if getattr(part, r) is not None})
            for name, part in parts.items()
        }
        return replace(self, **{r: getattr(self, r) * factor for r in rates}, **own)

    def of(self, part: Literal["encoder", "adapter", "decoder"]) -> PartConfig:
        """The peak rates and the weight decay of a part, none of them None."""
        own = vars(getattr(self, part))
        return PartConfig(**{name: getattr(self, name) if own[name] is None else own[name] for name in own})


class ShardedMuon(Muon):
    """Torch's Muon, which takes DTensors but rounds in their shards: here each sharded matrix is gathered for the
    orthogonalisation, so that a sharded step equals the unsharded one. Momentum stays sharded."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if not any(isinstance(weight, DTensor) for group in self.param_groups for weight in group["params"]):
            return super().step(closure)
        assert closure is None, "a sharded step takes no closure"
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step_sharded(weight, weight.grad, group)

    def _step_sharded(self, weight: DTensor, gradient: DTensor, group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        buffer = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(gradient))
        buffer.lerp_(gradient, 1 - momentum)
        update = gradient.lerp(buffer, momentum)
        assert isinstance(update, DTensor)
        whole = nn.Parameter(torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device))
        whole.grad = update.full_tensor()
        Muon([whole], group["lr"], weight_decay=0.0, momentum=0.0, nesterov=False).step()  # from 0 to the update
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(distribute_tensor(whole.detach(), weight.device_mesh, weight.placements, src_data_rank=None))


class MuonAdamW(Optimizer):
    """Steps both parts; parameter groups and state are the union of theirs."""

    def __init__(self, muon: Muon, adamw: AdamW) -> None:
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._muon, self._adamw = muon, adamw
        self._share()

    def _share(self) -> None:
        """Let the parts work on this optimizer's groups and state, also after either was replaced by loading."""
        split = len(self._muon.param_groups)
        self._muon.param_groups, self._adamw.param_groups = self.param_groups[:split], self.param_groups[split:]
        self._muon.state = self._adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._muon.step()
        self._adamw.step()
        return loss


def freeze(model: Compressor, config: OptimConfig) -> None:
    """Let the weights of rate 0 ask for no gradient; to be done before the model is spread over ranks.

    Raises `UsageError` where nothing is left to train.
    """
    for _, weight, rate, _, _ in _rates(model, config):
        weight.requires_grad_(rate > 0)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise UsageError(f"recipe.optim: every rate of {model.design.name} is 0, which leaves nothing to train")


def build(model: Compressor, config: OptimConfig) -> Optimizer:
    """The optimizer of `config` for the weights that are not frozen, one group per rate and weight decay."""
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for by_muon, weight, rate, factor, decay in _rates(model, config):
        if weight.requires_grad:
            # A step decays by rate times weight decay, which the rule leaves as it is.
            groups.setdefault((by_muon, rate * factor, decay / factor), []).append(weight)
    muon, adamw = (
        [{"params": weights, "lr": rate, "weight_decay": d} for (m, rate, d), weights in groups.items() if m is by_muon]
        for by_muon in (True, False)
    )
    optimizers: list[Any] = [ShardedMuon(muon)] if muon else []
    optimizers += [AdamW(adamw, betas=(config.beta1, config.beta2), eps=config.eps)] if adamw else []
    return MuonAdamW(*optimizers) if len(optimizers) == 2 else optimizers[0]


def _rates(model: Compressor, config: OptimConfig) -> Iterator[tuple[bool, nn.Parameter, float, float, float]]:
    """Of each weight: whether Muon trains it, the weight, its part's rate, the factor of the rule, weight decay."""
    scale = factors(model, config.scaling)
    linear = {id(w) for w in matrices(model)}
    for name, weight in model.named_parameters():
        part, is_linear = config.of(_part(name)), id(weight) in linear
        by_muon = is_linear and config.kind == "muon"
        rate, factor = (part.muon_rate, scale[name].muon) if by_muon else (part.adamw_rate, scale[name].adamw)
        assert rate is not None and part.weight_decay is not None
        yield by_muon, weight, rate, factor, part.weight_decay if is_linear else 0.0


def _part(name: str) -> Literal["encoder", "adapter", "decoder"]:
    """Which part a weight belongs to, by its name in `Compressor`."""
    top, _, rest = name.partition(".")
    if top == "phase":
        return _part(rest)
    return "encoder" if top == "encoder" else "decoder" if top == "decoder" else "adapter"
