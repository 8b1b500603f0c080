"""A Qwen3 transformer in one short file.

Notable choices:
- the architecture of Qwen3 (RMSNorm before each part, QK-norm, rotary positions, grouped-query attention, SwiGLU,
  no biases) with Hugging Face's names, so that its weights load and `transformers` is the reference in the tests;
- a row holds several sequences (`Rows`), and attention stays inside each;
- positions are an input, so that windows restart and latents may stand spread out;
- one code path for causal and bidirectional attention. Rows of one segment need no mask, which is what flash kernels
  ask for. Rows of several take a block-sparse mask on a GPU; on a CPU their segments are gathered into groups of
  similar length (`Groups`), so that hardly anything is computed that a mask would hide.

Shapes: R rows, T positions of a row, N segments, S slots of all groups, B tiles of a row, D width, H query heads,
G key-value heads, E head width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.utils.checkpoint import checkpoint

from search_space.errors import UsageError
from search_space.packing import alike, ranges

__all__ = ["Groups", "Layers", "Rows", "Shape", "Transformer"]


@dataclass(frozen=True)
class Shape:
    """Size of one transformer. `layers` 0 leaves embedding and final norm.

    tied_head: a decoder's head is its embedding; else a matrix of its own. An encoder has no head either way.
    """

    layers: int = 2
    width: int = 128
    heads: int = 4
    kv_heads: int = 4
    head_width: int = 32
    feedforward: int = 256
    rope_base: float = 1e6
    norm_eps: float = 1e-6
    tied_head: bool = True

    def __post_init__(self) -> None:
        if min(self.width, self.heads, self.kv_heads, self.head_width, self.feedforward) < 1 or self.layers < 0:
            raise UsageError(f"shape: {self} has a size below 1")
        if self.heads % self.kv_heads:
            raise UsageError(f"kv_heads: {self.kv_heads} does not divide heads {self.heads}")
        if self.head_width % 2:
            raise UsageError(f"head_width: {self.head_width} is odd; rotary positions turn pairs")


@dataclass
class Groups:
    """The segments of packed rows in batches of similar length, each padded to its longest.

    shapes: segments and length of each batch, and whether that is the length of all of them.
    source_S: where in the flattened rows the element of a slot stands; where a segment is shorter, its first again.
    filled_S: whether a slot holds an element of its own.
    slot_T: which slot each position of the flattened rows has, S for padding.
    """

    shapes: tuple[tuple[int, int, bool], ...]
    source_S: Tensor
    filled_S: Tensor
    slot_T: Tensor

    @classmethod
    def of(cls, first_N: NDArray[np.int64], length_N: NDArray[np.int64], places: int) -> "Groups":
        """Of segments that begin at `first_N` of `places` places; there is one, and none is empty."""
        order = np.argsort(-length_N, kind="stable")
        first_N, length_N = first_N[order], length_N[order]
        count = alike(length_N)
        stop = np.cumsum(count)
        longest = length_N[stop - count]
        padded_N = np.repeat(longest, count)
        source = np.repeat(first_N, padded_N)
        at = ranges(0, padded_N)
        filled = at < np.repeat(length_N, padded_N)
        source += at * filled
        slot = np.full(places, len(source))
        slot[source[filled]] = np.flatnonzero(filled)
        full = longest == length_N[stop - 1]
        shapes = tuple(zip(count.tolist(), longest.tolist(), full.tolist(), strict=True))
        return cls(shapes, *map(torch.from_numpy, (source, filled, slot)))


@dataclass
class Rows:
    """Which position of a row belongs to which sequence, and where it stands in it.

    segment_RT: the sequence's number, each in one stretch of one row, -1 for padding; attention stays inside.
    position_RT: rotary position.
    alone: every row is one segment without padding, so that no mask is needed (known where rows are packed,
        since asking the tensor would stall a GPU and break a compiled graph).
    groups: the segments once more, for attention on a CPU; without them it takes a dense mask.
    """

    segment_RT: Tensor
    position_RT: Tensor
    alone: bool
    groups: Groups | None = None

    def mask(self, causal: bool) -> Tensor | None:
        """What may be attended, (R, 1, T, T), True where it may; None where `causal` alone says it all.

        Padding sees padding, so that no row of the softmax is empty.
        """
        if self.alone:
            return None
        same_RTT = self.segment_RT[:, :, None] == self.segment_RT[:, None, :]
        return (same_RTT.tril() if causal else same_RTT)[:, None]

    def end_to_end(self) -> "Rows":
        """All rows as one. A kernel is then compiled for any number of rows at once, and tiles cross their ends."""
        return Rows(self.segment_RT.reshape(1, -1), self.position_RT.reshape(1, -1), alone=False)


def takes_block_mask(device: torch.device, head_width: int) -> bool:
    """Whether packed rows attend by `flex_attention`, which skips what is hidden; by groups or a dense mask else.

    Its GPU kernels begin at head width 16; its CPU kernel has no backward pass.
    """
    return device.type == "cuda" and head_width >= 16


Mask = Tensor | BlockMask | Groups | None
_TILE = 128  # positions of a tile of a `BlockMask`, torch's default


def _block_mask(segment_T: Tensor, causal: bool) -> BlockMask:
    """Which tiles of the attention matrix are hidden, partly visible or wholly visible.

    What `create_block_mask` finds by looking at all T * T places (5 GB for two rows of 16,384) follows from the
    first and last segment of each tile, since a segment's positions are contiguous.
    """
    length = len(segment_T)
    run_T = F.pad(segment_T[1:] != segment_T[:-1], (1, 0)).cumsum(0)  # segments by numbers that rise
    run_T = F.pad(run_T, (0, -length % _TILE), value=2**30)  # a number of its own: a cut tile is not whole
    first_B, last_B = run_T[::_TILE], run_T[_TILE - 1 :: _TILE]
    some_BB = (first_B[:, None] <= last_B) & (last_B[:, None] >= first_B)
    whole_BB = (first_B[:, None] == last_B) & (last_B[:, None] == first_B)
    if causal:
        some_BB, whole_BB = some_BB.tril(), whole_BB.tril(-1)

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        # Not by `run_T`: inductor finds no kernel for a captured tensor that the same graph pads.
        same = segment_T[query] == segment_T[key]
        return same & (query >= key) if causal else same

    return BlockMask.from_kv_blocks(
        *_listed(some_BB & ~whole_BB), *_listed(whole_BB), _TILE, visible, seq_lengths=(length, length)
    )


def _listed(tile_BB: Tensor) -> tuple[Tensor, Tensor]:
    """How many tiles each row of tiles has (1, 1, B), and which: those first, in order (1, 1, B, B)."""
    tile_11BB = tile_BB[None, None].int()
    return tile_11BB.sum(-1, dtype=torch.int32), tile_11BB.argsort(stable=True, descending=True).int()


@cache
def _compiled_flex_attention() -> Callable[..., Any]:
    """Compiled when first called, since `torch.compile` alone imports for seconds.

    Each shape of heads takes up to two graphs per mask, in training and in evaluation: more than torch's 8.
    """
    import torch._dynamo

    config: Any = torch._dynamo.config
    config.recompile_limit = max(64, config.recompile_limit)
    return torch.compile(flex_attention, fullgraph=True, dynamic=True)


def _rotary(position_RT: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles, each (R, T, 1, E), in float32 as in Qwen3."""
    exponent = torch.arange(0, shape.head_width, 2, device=position_RT.device) / shape.head_width
    frequency = 1 / shape.rope_base**exponent  # rounded as in Qwen3: `base**-exponent` is 2e-5 off at position 16,000
    angle = position_RT[:, :, None, None].float() * frequency
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | BlockMask | None, causal: bool) -> Tensor:
    """Scaled dot-product attention in the dtype of `v`, on the CPU in float32 or better; (R, T, H or G, E) each.

    There the fused kernel's backward pass is 3 to 6 times slower in bfloat16 than in float32 (docs/log.md).
    """
    dtype = torch.promote_types(v.dtype, torch.float32) if v.device.type == "cpu" else v.dtype
    q, k, v = (x.to(dtype).transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    with torch.autocast(v.device.type, enabled=False):
        if isinstance(mask, BlockMask):
            fused = v.device.type == "cuda" and not torch.compiler.is_compiling()
            flex = _compiled_flex_attention() if fused else flex_attention
            return flex(q, k, v, block_mask=mask, enable_gqa=grouped).transpose(1, 2)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal and mask is None, enable_gqa=grouped
        ).transpose(1, 2)


def _attend_by_groups(q: Tensor, k: Tensor, v: Tensor, groups: Groups, causal: bool) -> Tensor:
    """The same within each segment. A causal mask hides what pads a segment behind it; padding of rows gets zeros."""
    sizes = [segments * length for segments, length, _ in groups.shapes]
    parts = [x.flatten(0, 1).index_select(0, groups.source_S).split(sizes) for x in (q, k, v)]
    out = []
    for (segments, length, full), filled, *qkv in zip(groups.shapes, groups.filled_S.split(sizes), *parts, strict=True):
        mask = None if causal or full else filled.view(segments, 1, 1, length)
        out.append(_attend(*(x.unflatten(0, (segments, length)) for x in qkv), mask, causal).flatten(0, 1))
    out.append(out[0].new_zeros(1, *out[0].shape[1:]))
    return torch.cat(out).index_select(0, groups.slot_T).view(q.shape)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        d, e = shape.width, shape.head_width
        self.q_proj = nn.Linear(d, shape.heads * e, bias=False)
        self.k_proj = nn.Linear(d, shape.kv_heads * e, bias=False)
        self.v_proj = nn.Linear(d, shape.kv_heads * e, bias=False)
        self.o_proj = nn.Linear(shape.heads * e, d, bias=False)
        self.q_norm = nn.RMSNorm(e, eps=shape.norm_eps)
        self.k_norm = nn.RMSNorm(e, eps=shape.norm_eps)

    def forward(self, x_RTD: Tensor, mask: Mask, causal: bool, cos: Tensor, sin: Tensor) -> Tensor:
        heads = (*x_RTD.shape[:2], -1, self.shape.head_width)
        q = _rotate(self.q_norm(self.q_proj(x_RTD).view(heads)), cos, sin)  # (R, T, H, E)
        k = _rotate(self.k_norm(self.k_proj(x_RTD).view(heads)), cos, sin)  # (R, T, G, E)
        v = self.v_proj(x_RTD).view(heads)  # (R, T, G, E)
        y = _attend_by_groups(q, k, v, mask, causal) if isinstance(mask, Groups) else _attend(q, k, v, mask, causal)
        return self.o_proj(y.flatten(2))


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.feedforward, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.feedforward, bias=False)
        self.down_proj = nn.Linear(shape.feedforward, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.mlp = FeedForward(shape)

    def forward(self, x_RTD: Tensor, mask: Mask, causal: bool, cos: Tensor, sin: Tensor) -> Tensor:
        x_RTD = x_RTD + self.self_attn(self.input_layernorm(x_RTD), mask, causal, cos, sin)
        return x_RTD + self.mlp(self.post_attention_layernorm(x_RTD))

    def silence(self) -> None:
        """Start as the identity: both residual outputs at zero."""
        nn.init.zeros_(self.self_attn.o_proj.weight)
        nn.init.zeros_(self.mlp.down_proj.weight)


_checkpoint = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


class Layers(nn.ModuleList):
    """Transformer layers over rows of segments; the part that encoder, decoder and attention adapters share.

    checkpointed: keep each block's input alone for the backward pass, and compute the rest of the block again there.
    """

    def __init__(self, shape: Shape, layers: int) -> None:
        super().__init__(Block(shape) for _ in range(layers))
        self.shape = shape
        self.checkpointed = False

    def forward(self, x_RTD: Tensor, rows: Rows, causal: bool) -> Tensor:
        if len(self) == 0:
            return x_RTD
        shape = x_RTD.shape
        if takes_block_mask(x_RTD.device, self.shape.head_width) and not rows.alone:
            x_RTD, rows = x_RTD.reshape(1, -1, shape[-1]), rows.end_to_end()
            mask = _block_mask(rows.segment_RT[0], causal)
        elif rows.groups is not None and not torch.compiler.is_compiling():
            mask = rows.groups  # not in a compiled graph, which would be another one for each number of groups
        else:
            mask = rows.mask(causal)
        cos, sin = _rotary(rows.position_RT, self.shape)
        for block in self:
            run = partial(_checkpoint, block) if self.checkpointed and torch.is_grad_enabled() else block
            x_RTD = run(x_RTD, mask, causal, cos, sin)
        return x_RTD.view(shape)


class Transformer(nn.Module):
    """Embedding, layers, final norm and, with `head`, the head of a language model.

    State-dict keys are those of Hugging Face's `Qwen3Model`, and `lm_head.weight` where the head is not tied.
    """

    def __init__(self, shape: Shape, vocab: int, head: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(vocab, shape.width)
        self.layers = Layers(shape, shape.layers)
        self.norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.head = head
        self.lm_head = nn.Linear(shape.width, vocab, bias=False) if head and not shape.tied_head else None

    def forward(self, x_RTD: Tensor, rows: Rows, causal: bool = True) -> Tensor:
        """Input embeddings (R, T, D) to final hidden states (R, T, D)."""
        return self.norm(self.layers(x_RTD, rows, causal))

    @property
    def head_weight(self) -> Tensor:
        """What maps final hidden states to logits (V, D)."""
        assert self.head, "an encoder has no head"
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Final hidden states (..., D) to logits (..., V)."""
        return F.linear(hidden, self.head_weight)
