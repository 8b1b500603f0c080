"""What a design costs, from its layout and its shapes alone.

FLOPs are those of the matrix products (two per multiply-add), counted over every position the layout holds, padding
and masked attention included, as a profiler would count them. Norms, activations and look-ups are left out.

Shapes: R rows, T positions of a row, L latents, N ratio, P scored positions.
"""

from dataclasses import dataclass

import numpy as np
import torch

from search_space.compressor import Compressor, Size
from search_space.design import Design
from search_space.layout import Batch, Sample, Specials, lay_out
from search_space.transformer import Rows, Shape

__all__ = ["Cost", "cost", "forward_flops", "parameters"]

_BACKWARD = 2  # a backward pass costs two forward passes
_SPECIALS = Specials(0, 1, 2, 3, 4)  # lengths are all that matters here


@dataclass(frozen=True)
class Cost:
    """parameters: trained numbers, shared embeddings once.
    train_flops: per raw token of a reconstructed span, forward and backward.
    prefill_flops: per raw token of a wrapped context, to encode it and let the decoder read its latents.
    """

    parameters: int
    train_flops: float
    prefill_flops: float


def cost(design: Design, size: Size, span: int) -> Cost:
    """Costs of `design` on spans of `span` tokens."""
    tokens = np.zeros(span, np.int64)
    training = lay_out([Sample(tokens, (), "reconstruct", 0)], design, _SPECIALS, size.positions)
    reading = lay_out([Sample(tokens, (), "continue", 0)], design, _SPECIALS, size.positions)
    return Cost(
        parameters=parameters(design, size),
        train_flops=(1 + _BACKWARD) * forward_flops(design, size, training) / span,
        prefill_flops=forward_flops(design, size, reading) / span,
    )


def parameters(design: Design, size: Size) -> int:
    """Counted on the model itself, built without memory."""
    with torch.device("meta"):
        return sum(p.numel() for p in Compressor(design, size).parameters())


def forward_flops(design: Design, size: Size, batch: Batch) -> float:
    """FLOPs of one forward pass over `batch`."""
    flops = _layers(batch.rows, size.decoder, size.decoder.layers, size.decoder.width)
    flops += 2 * len(batch.place_P) * size.decoder.width * size.vocab
    if batch.encoder is None:
        return flops
    layers = 0 if design.control == "encoderless" else size.encoder.layers
    flops += _layers(batch.encoder.rows, size.encoder, layers, size.encoder.width)
    pooled = size.encoder.width * (design.ratio if design.pooling == "concat" else 1)
    latents = len(batch.encoder.blocks.mask_LN)
    flops += 2 * latents * size.decoder.width * (pooled + size.decoder.width)
    if batch.encoder.spans is not None:
        shape, width = (size.encoder, pooled) if design.adapter == "attn_mlp" else (size.decoder, size.decoder.width)
        flops += _layers(batch.encoder.spans.rows, shape, design.depth, width)
    return flops


def _layers(rows: Rows, shape: Shape, layers: int, width: int) -> float:
    """Transformer layers over rows: projections, feed-forward, and attention over the whole row."""
    r, t = rows.segment_RT.shape
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    projections = 2 * width * (2 * queries + 2 * keys)
    feedforward = 2 * 3 * width * shape.feedforward
    attention = 2 * 2 * t * queries
    return float(layers * r * t * (projections + feedforward + attention))
