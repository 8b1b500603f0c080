"""Positions: where a latent stands for the decoder.

`consecutive` counts elements as published. `spread` puts latent j of a span at the position of its block's first token,
j * N, and lets reconstruction start again at the span's own positions; eos markers take the position of their block's
end. Small models learn to use latents much sooner with it (docs/log.md).
"""

from typing import Literal

from search_space.axes.axis import Choice
from search_space.axes.base import BASE, OfSize

__all__ = ["AXIS", "Positions"]

Positions = Literal["spread", "consecutive"]


class PositionsAxis(OfSize, Choice):
    name = "positions"
    pattern = r"(?:-(?P<positions>spread|consecutive))?"

    def choices(self) -> tuple[str, ...]:
        return (BASE, "spread", "consecutive")


AXIS = PositionsAxis()
