"""What a design costs, from its layout and its shapes alone.

FLOPs are those of the matrix products (two per multiply-add), counted over every position the layout holds, padding
and masked attention included, as a profiler would count them. Norms, activations and look-ups are left out.

Shapes: R rows, T positions of a row, L latents, N ratio, P scored positions.
"""

from dataclasses import dataclass

import numpy as np
from torch import nn

from search_space.compressor import Size
from search_space.design import Design
from search_space.layout import Batch, Sample, Specials, lay_out
from search_space.memory import Optimizer, Part, Precision, skeleton, training_memory
from search_space.transformer import Layers, Rows, Shape

__all__ = ["Cost", "Products", "cost", "forward_flops", "parameters", "products"]

_BACKWARD = 2  # a backward pass costs two forward passes
_BFLOAT16 = 2  # bytes
_SPECIALS = Specials(0, 1, 2, 3, 4)  # lengths are all that matters here


@dataclass(frozen=True)
class Cost:
    """parameters: trained numbers, shared embeddings once.
    train_flops: per raw token of a training step, forward and backward.
    prefill_flops: per raw token of a wrapped context, to encode it and let the decoder read its latents.
    kv_bytes: per raw token of a wrapped context, what the decoder then keeps in its key-value cache, in bfloat16.
    memory: peak bytes of a training step (see `search_space.memory`).
    """

    parameters: int
    train_flops: float
    prefill_flops: float
    kv_bytes: float
    memory: int


def cost(
    design: Design,
    size: Size,
    span: int,
    spans: int = 1,
    interleaved: bool = False,
    precision: Precision = "32-true",
    optimizer: Optimizer = "muon",
    checkpointed: bool = False,
) -> Cost:
    """Costs of `design` on training batches of `spans` spans of `span` tokens and on a context of one such span.

    A batch wraps its spans and has them reconstructed; `interleaved` wraps their first halves and scores the rest.
    `checkpointed` layers compute their forward pass twice, which is in the memory and not in the FLOPs (those are the
    model's).
    """
    size, tokens = size.of(design), np.zeros(span, np.int64)
    task, cuts = ("continue", (span // 2,)) if interleaved else ("reconstruct", ())
    training = lay_out([Sample(tokens, cuts, task, 0)] * spans, design, _SPECIALS, size.positions)
    reading = lay_out([Sample(tokens, (), "continue", 0)], design, _SPECIALS, size.positions)
    return Cost(
        parameters=parameters(design, size),
        train_flops=(1 + _BACKWARD) * forward_flops(design, size, training) / (span * spans),
        prefill_flops=forward_flops(design, size, reading) / span,
        kv_bytes=_kv_bytes(size.decoder, reading.rows) / span,
        memory=training_memory(design, size, training, precision, optimizer, checkpointed),
    )


def parameters(design: Design, size: Size) -> int:
    """Trained numbers, shared embeddings once; counted on the model itself, built without memory."""
    return skeleton(design, size).parameters


def _kv_bytes(shape: Shape, rows: Rows) -> int:
    """Keys and values of all positions of `rows`, in bfloat16: of a wrapped context those of latents and tags."""
    return 2 * _BFLOAT16 * shape.layers * shape.kv_heads * shape.head_width * rows.segment_RT.numel()


def forward_flops(design: Design, size: Size, batch: Batch) -> float:
    """FLOPs of one forward pass over `batch`."""
    return sum(part.flops for part in products(design, size, batch).values())


@dataclass(frozen=True)
class Products:
    """FLOPs of matrix products in a forward pass. weights: with weights. layers: of these, those of transformer layers.
    pairs: of attention, between activations."""

    weights: float = 0.0
    layers: float = 0.0
    pairs: float = 0.0

    @property
    def flops(self) -> float:
        return self.weights + self.pairs

    def __add__(self, other: "Products") -> "Products":
        return Products(self.weights + other.weights, self.layers + other.layers, self.pairs + other.pairs)

    def __mul__(self, times: float) -> "Products":
        return Products(self.weights * times, self.layers * times, self.pairs * times)


def products(design: Design, size: Size, batch: Batch) -> dict[Part, Products]:
    """The forward pass over `batch` by the part that computes it; the pooling goes with the adapter."""
    size = size.of(design)
    layers, pairs = _layers(batch.rows, size.decoder, size.decoder.layers)
    head = 2.0 * len(batch.place_P) * size.decoder.width * size.vocab
    parts: dict[Part, Products] = {"decoder": Products(layers + head, layers, pairs)}
    if batch.encoder is None:
        return parts
    layers, pairs = _layers(batch.encoder.rows, size.encoder, size.encoder.layers)
    parts["encoder"] = Products(layers, layers, pairs)
    model = skeleton(design, size).model
    linear = sum(m.weight.numel() for m in model.adapter.modules() if isinstance(m, nn.Linear))
    weights = len(batch.encoder.blocks.mask_LN) * (model.pooling.flops() + 2.0 * linear)
    own = [part.shape for part in model.adapter.modules() if isinstance(part, Layers)]
    spans = batch.encoder.spans
    of = [_layers(spans.rows, shape, design.depth) for shape in own] if spans is not None else []
    layers, pairs = sum(x for x, _ in of), sum(x for _, x in of)
    return parts | {"adapter": Products(weights + layers, layers, pairs)}


def _layers(rows: Rows, shape: Shape, layers: int) -> tuple[float, float]:
    """Transformer layers over rows: projections with feed-forward, and attention over segments as they are grouped."""
    r, t = rows.segment_RT.shape
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    projections = 2 * shape.width * (2 * queries + 2 * keys)
    feedforward = 2 * 3 * shape.width * shape.feedforward
    pairs = r * t * t if rows.groups is None else sum(n * length**2 for n, length, _ in rows.groups.shapes)
    return float(layers * r * t * (projections + feedforward)), float(layers * 2 * 2 * pairs * queries)
