"""Pooling: how the hidden states of one block become one latent (paper section 1).

A pooling sees all blocks of a batch at once. It is a class here and an entry in `POOLINGS`; that is all it
takes to add one.

Shapes: T encoder positions of the batch, L latents, N ratio, D encoder width.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["POOLINGS", "Blocks", "Pooling"]


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
        self.out_width = width

    @abstractmethod
    def forward(self, hidden_TD: Tensor, blocks: Blocks) -> Tensor:
        """Hidden states (T, D) to latents (L, out_width)."""


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


POOLINGS: dict[str, type[Pooling]] = {"mean": Mean, "concat": Concat, "eos": Eos}
