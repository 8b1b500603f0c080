"""A Qwen3 transformer in one short file.

Notable choices:
- the architecture of Qwen3 (RMSNorm before each part, QK-norm, rotary positions, grouped-query attention, SwiGLU,
  no biases) with Hugging Face's names, so that its weights load and `transformers` is the reference in the tests;
- a row holds several sequences (`Rows`), and attention stays inside each;
- positions are an input, so that windows restart and latents may stand spread out;
- one code path for causal and bidirectional attention, with and without packing.

Shapes: R rows, T positions of a row, D width, H query heads, G key-value heads, E head width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_space.errors import UsageError

__all__ = ["Layers", "Rows", "Shape", "Transformer"]


@dataclass(frozen=True)
class Shape:
    """Size of one transformer. `layers` 0 leaves embedding and final norm."""

    layers: int = 2
    width: int = 128
    heads: int = 4
    kv_heads: int = 4
    head_width: int = 32
    feedforward: int = 256
    rope_base: float = 1e6
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if min(self.width, self.heads, self.kv_heads, self.head_width, self.feedforward) < 1 or self.layers < 0:
            raise UsageError(f"shape: {self} has a size below 1")
        if self.heads % self.kv_heads:
            raise UsageError(f"kv_heads: {self.kv_heads} does not divide heads {self.heads}")
        if self.head_width % 2:
            raise UsageError(f"head_width: {self.head_width} is odd; rotary positions turn pairs")


@dataclass
class Rows:
    """Which position of a row belongs to which sequence, and where it stands in it.

    segment_RT: the sequence's number, -1 for padding; attention stays inside one segment.
    position_RT: rotary position.
    alone: every row is one segment without padding, so that no mask is needed (known where rows are packed,
        since asking the tensor would stall a GPU and break a compiled graph).
    """

    segment_RT: Tensor
    position_RT: Tensor
    alone: bool

    def mask(self, causal: bool) -> Tensor | None:
        """What may be attended, (R, 1, T, T), True where it may; None where `causal` alone says it all.

        Padding sees padding, so that no row of the softmax is empty.
        """
        if self.alone:
            return None
        same_RTT = self.segment_RT[:, :, None] == self.segment_RT[:, None, :]
        return (same_RTT.tril() if causal else same_RTT)[:, None]


def _rotary(position_RT: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles, each (R, 1, T, E), in float32 as in Qwen3."""
    exponent = torch.arange(0, shape.head_width, 2, device=position_RT.device) / shape.head_width
    frequency = 1 / shape.rope_base**exponent  # rounded as in Qwen3: `base**-exponent` is 2e-5 off at position 16,000
    angle = position_RT[:, None, :, None].float() * frequency
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Scaled dot-product attention in the dtype of `v`, on the CPU in float32 or better.

    There the fused kernel's backward pass is 3 to 6 times slower in bfloat16 than in float32 (docs/log.md).
    """
    dtype = torch.promote_types(v.dtype, torch.float32) if v.device.type == "cpu" else v.dtype
    grouped = q.shape[1] != k.shape[1]
    with torch.autocast(v.device.type, enabled=False):
        return F.scaled_dot_product_attention(
            q.to(dtype), k.to(dtype), v.to(dtype), attn_mask=mask, is_causal=causal and mask is None, enable_gqa=grouped
        )


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

    def forward(self, x_RTD: Tensor, mask: Tensor | None, causal: bool, cos: Tensor, sin: Tensor) -> Tensor:
        rows, length, _ = x_RTD.shape
        heads = (rows, length, -1, self.shape.head_width)
        q = self.q_norm(self.q_proj(x_RTD).view(heads)).transpose(1, 2)  # (R, H, T, E)
        k = self.k_norm(self.k_proj(x_RTD).view(heads)).transpose(1, 2)  # (R, G, T, E)
        v = self.v_proj(x_RTD).view(heads).transpose(1, 2)  # (R, G, T, E)
        y = _attend(_rotate(q, cos, sin), _rotate(k, cos, sin), v, mask, causal)
        return self.o_proj(y.transpose(1, 2).flatten(2))


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

    def forward(self, x_RTD: Tensor, mask: Tensor | None, causal: bool, cos: Tensor, sin: Tensor) -> Tensor:
        x_RTD = x_RTD + self.self_attn(self.input_layernorm(x_RTD), mask, causal, cos, sin)
        return x_RTD + self.mlp(self.post_attention_layernorm(x_RTD))

    def silence(self) -> None:
        """Start as the identity: both residual outputs at zero."""
        nn.init.zeros_(self.self_attn.o_proj.weight)
        nn.init.zeros_(self.mlp.down_proj.weight)


class Layers(nn.ModuleList):
    """Transformer layers over rows of segments; the part that encoder, decoder and attention adapters share."""

    def __init__(self, shape: Shape, layers: int) -> None:
        super().__init__(Block(shape) for _ in range(layers))
        self.shape = shape

    def forward(self, x_RTD: Tensor, rows: Rows, causal: bool) -> Tensor:
        if len(self) == 0:
            return x_RTD
        mask = rows.mask(causal)
        cos, sin = _rotary(rows.position_RT, self.shape)
        for block in self:
            x_RTD = block(x_RTD, mask, causal, cos, sin)
        return x_RTD


class Transformer(nn.Module):
    """Embedding, layers and final norm; state-dict keys are those of Hugging Face's `Qwen3Model`."""

    def __init__(self, shape: Shape, vocab: int, layers: int | None = None) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, shape.width)
        self.layers = Layers(shape, shape.layers if layers is None else layers)
        self.norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)

    def forward(self, x_RTD: Tensor, rows: Rows, causal: bool = True) -> Tensor:
        """Input embeddings (R, T, D) to final hidden states (R, T, D)."""
        return self.norm(self.layers(x_RTD, rows, causal))
