"""One learning rate for all sizes: how rates and initial scales follow from the size of a weight and the depth it
stands in.

The base is the default size, width 128 and 2 layers in each transformer, where the rule changes nothing. A weight is
compared with its namesake in the same design at the base size, so that encoder, adapter and decoder of different
sizes each get their own factors, and so do attention and feed-forward where they grow unlike the width. The forward
pass stays Qwen3's: a multiplier of the literature is folded into the initial scale and the rate of the weight it stands
by, as the updates of Muon and AdamW do not depend on the scale of a gradient.

With n = inputs over the base's, f = outputs per input over the base's, l = layers over the base's:

| weight                | initial scale | rate of AdamW | rate of Muon |
|-----------------------|---------------|---------------|--------------|
| linear layer          | 1             | 1/n           | sqrt(f)      |
| o_proj, down_proj     | 1/l           | 1/(n l)       | sqrt(f)/l    |
| embedding, norm, bias | 1             | 1             |              |
| norm of a tied head   | 1/sqrt(n)     | 1/n           |              |
| untied head           | 1/sqrt(n)     | 1/n           |              |

Initial scales are factors to those of `Compressor`, where linear layers start at 1/sqrt(inputs) and the head at logits
of unit variance. The rate of Muon is that of its update: what torch's Muon has of sqrt(f) already is left to it. Weight
decay times rate, which is the decay per step, stays the base's, and so does AdamW's eps. Vocabulary, width of a head
and depth of an adapter are taken as given.

Sources: muP for AdamW and the width (arXiv 2203.03466, table 8, which is the one for tied embeddings); the spectral
condition for Muon and the width (arXiv 2310.17813, condition 1; torch's `adjust_lr_fn` has sqrt(max(1, outputs /
inputs)) of it); CompleteP for the depth (arXiv 2505.01618, table 1 with alpha = 1), which divides what a layer adds to
the residual stream by the number of layers.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from search_space.axes.base import BASE
from search_space.compressor import Compressor
from search_space.transformer import Layers, Shape

__all__ = ["Factors", "Scaling", "factors", "rescale"]

Scaling = Literal["none", "mup"]

_LAYER = re.compile(r"\.layers\.\d+\.")
_RESIDUAL = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


@dataclass(frozen=True)
class Factors:
    """Of one weight, relative to the base size: of its initial scale and of its rates."""

    initial: float = 1.0
    adamw: float = 1.0
    muon: float = 1.0


def factors(model: Compressor, scaling: Scaling) -> dict[str, Factors]:
    """The factors of each weight, by its name."""
    own = _weights(model)
    if scaling == "none":
        return dict.fromkeys(own, Factors())
    base = _weights(_at_base_size(model))
    tied = model.size.decoder.tied_head
    return {name: _factors(name, weight, base[_LAYER.sub(".layers.0.", name)], tied) for name, weight in own.items()}


def rescale(model: Compressor, scaling: Scaling) -> None:
    """Bring the initial weights to the rule's scales; for a model that `Compressor` has just initialised."""
    scales = factors(model, scaling)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if scales[name].initial != 1:
                weight.mul_(scales[name].initial)


@dataclass(frozen=True)
class _Weight:
    """What the rule asks of a weight. depth: layers of the transformer it stands in, 1 outside of any."""

    shape: torch.Size
    linear: bool
    depth: int


def _weights(model: Compressor) -> dict[str, _Weight]:
    linear = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    depth = {f"{name}.": len(m) for name, m in model.named_modules() if isinstance(m, Layers)}
    return {
        name: _Weight(weight.shape, name in linear, next((d for p, d in depth.items() if name.startswith(p)), 1))
        for name, weight in model.named_parameters()
    }


def _at_base_size(model: Compressor) -> Compressor:
    """The same design with transformers of the default shape, without data."""
    shape = Shape(tied_head=model.size.decoder.tied_head)
    size = replace(model.size, encoder=shape, decoder=shape)
    with torch.device("meta"), torch.random.fork_rng(devices=()):
        return Compressor(model.design.but(encoder=BASE, decoder=BASE), size)


def _factors(name: str, own: _Weight, base: _Weight, tied_head: bool) -> Factors:
    if name == ("decoder.norm.weight" if tied_head else "decoder.lm_head.weight"):
        inputs = own.shape[-1] / base.shape[-1]
        return Factors(initial=inputs**-0.5, adamw=1 / inputs)
    if not own.linear:
        return Factors()
    inputs = own.shape[1] / base.shape[1]
    depth = own.depth / base.depth if name.endswith(_RESIDUAL) else 1.0
    spectral = _spectral(own.shape) / _spectral(base.shape)
    return Factors(initial=1 / depth, adamw=1 / (inputs * depth), muon=spectral / depth)


def _spectral(shape: torch.Size) -> float:
    """The spectral condition's factor over the one that torch's Muon has."""
    ratio = shape[0] / shape[1]
    return math.sqrt(ratio / max(1.0, ratio))
