"""Pooling: how the hidden states of one block become one latent (paper section 1).

A pooling sees all blocks of a batch at once. It is a class here and an entry in `POOLINGS`; that is all it
takes to add one.

Shapes: T encoder positions of the batch, L latents, N ratio, D encoder width, H heads.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_space.axes.axis import Choice, Values, has_encoder

__all__ = ["AXIS", "POOLINGS", "Blocks", "Pooling"]


@dataclass
class Blocks:
    """Where each latent reads.

    tokens_LN: positions in the flattened encoder rows; a short last block points at position 0 where `mask_LN`
        is False.
    mask_LN: which of the N slots hold a token.
    markers_L: the latent's marker token, for poolings with `markers`; else empty.
    """

    tokens_LN: Tensor
    mask_LN: Tensor
    markers_L: Tensor


class Pooling(nn.Module, ABC):
    """Base: `markers` says whether the encoder appends one marker token per latent to each window."""

    markers: bool = False

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.ratio, self.out_width = ratio, width

    @abstractmethod
    def forward(self, hidden_TD: Tensor, blocks: Blocks) -> Tensor:
        """Hidden states (T, D) to latents (L, out_width)."""

    def flops(self) -> int:
        """Of its matrix products, per latent; 0 for a pooling without weights."""
        return 0


class Mean(Pooling):
    """The average of what the block has."""

    def forward(self, hidden_TD: Tensor, blocks: Blocks) -> Tensor:
        hidden_LND = hidden_TD[blocks.tokens_LN] * blocks.mask_LN[:, :, None]
        return hidden_LND.sum(1) / blocks.mask_LN.sum(1)[:, None].to(hidden_TD.dtype)


class Concat(Pooling):
    """The block flattened to N * D; a short last block is padded with zeros."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__(width, ratio)
        self.out_width = width * ratio

    def forward(self, hidden_TD: Tensor, blocks: Blocks) -> Tensor:
        hidden_LND = hidden_TD[blocks.tokens_LN] * blocks.mask_LN[:, :, None]
        return hidden_LND.flatten(1)


class Eos(Pooling):
    """The state of a marker token, one per latent, placed at the end of the window after any right overlap."""

    markers = True

    def forward(self, hidden_TD: Tensor, blocks: Blocks) -> Tensor:
        return torch.index_select(hidden_TD, 0, blocks.markers_L)


class Attention(Pooling):
    """A learned query per latent attends over the block (as Set Transformer pools, arXiv 1810.00825, section 3.2).

    The query is a constant, so query and key projection appear only as their product, one score per head. The width is
    split among up to eight heads.
    """

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__(width, ratio)
        self.heads = gcd(width, 8)
        self.score = nn.Linear(width, self.heads, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, hidden_TD: Tensor, blocks: Blocks) -> Tensor:
        hidden_LND = hidden_TD[blocks.tokens_LN]
        score_LNH = self.score(hidden_LND).masked_fill(~blocks.mask_LN[:, :, None], float("-inf"))
        value_LNHE = self.value(hidden_LND).unflatten(-1, (self.heads, -1))
        pooled_LHE = torch.einsum("lnh,lnhe->lhe", score_LNH.softmax(1).to(value_LNHE.dtype), value_LNHE)
        return self.out(pooled_LHE.flatten(1))

    def flops(self) -> int:
        d = self.out_width
        return 2 * (self.ratio * (d * self.heads + d * d + d) + d * d)


class Conv(Pooling):
    """A hierarchy of strided convolutions inside the block, as in ConvNets: each halves what is left of it.

    The strides are the prime factors of N, kernels are as wide as their stride, GELU stands between levels. A short
    last block is padded with zeros.
    """

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__(width, ratio)
        self.strides = _prime_factors(ratio)
        self.levels = nn.ModuleList(nn.Linear(stride * width, width) for stride in self.strides)

    def forward(self, hidden_TD: Tensor, blocks: Blocks) -> Tensor:
        x_LND = hidden_TD[blocks.tokens_LN] * blocks.mask_LN[:, :, None]
        for i, (stride, level) in enumerate(zip(self.strides, self.levels, strict=True)):
            # A kernel as wide as its stride is a matrix product over neighbours, much faster than nn.Conv1d.
            x_LND = level((F.gelu(x_LND) if i else x_LND).unflatten(1, (-1, stride)).flatten(2))
        return x_LND.flatten(1)

    def flops(self) -> int:
        left, total = self.ratio, 0
        for stride in self.strides:
            left //= stride
            total += 2 * left * stride * self.out_width**2
        return total


def _prime_factors(n: int) -> list[int]:
    """Ascending."""
    factor = next((f for f in range(2, n + 1) if n % f == 0), 1)
    return [factor, *_prime_factors(n // factor)] if n > 1 else []


POOLINGS: dict[str, type[Pooling]] = {"mean": Mean, "concat": Concat, "eos": Eos, "attention": Attention, "conv": Conv}


class PoolingAxis(Choice):
    name, default = "pooling", "mean"
    asked = "where anything is compressed"
    pattern = r"(?P<pooling>[a-z]+)"

    def choices(self) -> tuple[str, ...]:
        return tuple(POOLINGS)

    def idle(self, beside: Values) -> bool:
        return not has_encoder(beside)

    def write(self, value: str) -> str:
        return value


AXIS = PoolingAxis()
