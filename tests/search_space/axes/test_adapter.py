"""Adapters: published sizes, and attention that mixes the latents of one span only."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from search_space.axes.adapter import ADAPTERS, LatentRows
from search_space.design import Design
from search_space.layout import lay_out
from search_space.transformer import Block, Shape
from tests.search_space.cases import SPECIALS, make, randomise

ENCODER = Shape(layers=1, width=16, heads=2, kv_heads=1, head_width=8, feedforward=24)
DECODER = replace(ENCODER, width=24, kv_heads=2, feedforward=40)
QWEN3_06B = Shape(layers=28, width=1024, heads=16, kv_heads=8, head_width=128, feedforward=3072)


def spans(lengths: list[int], adapter: str) -> LatentRows | None:
    """The layout of spans with so many latents."""
    samples = [make("reconstruct", 2 * count, document=i) for i, count in enumerate(lengths)]
    encoder = lay_out(samples, Design(ratio=2, window=4, adapter=adapter), SPECIALS, "spread").encoder
    assert encoder is not None
    return encoder.spans


@pytest.mark.parametrize(
    ("name", "pooled", "decoder", "depth", "millions"),
    [
        ("mlp", 1024, 1024, 0, 2.10),
        ("attn_mlp", 1024, 1024, 1, 17.83),
        ("mlp_attn", 1024, 1024, 1, 17.83),
        ("mlp", 16 * 1024, 1024, 0, 17.84),
    ],
)
def test_published_sizes(name: str, pooled: int, decoder: int, depth: int, millions: float) -> None:
    with torch.device("meta"):
        adapter = ADAPTERS[name](pooled, QWEN3_06B, replace(QWEN3_06B, width=decoder), depth)
    assert round(sum(p.numel() for p in adapter.parameters()) / 1e6, 2) == millions


def test_size_of_the_released_adapter() -> None:
    with torch.device("meta"):
        adapter = ADAPTERS["mlp"](1024, QWEN3_06B, replace(QWEN3_06B, width=2560), 0)
    assert sum(p.numel() for p in adapter.parameters()) == 9_181_184
    assert set(adapter.state_dict()) == {"norm.weight", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("depth", [1, 2])
def test_contract(name: str, depth: int) -> None:
    """Decoder width out; a latent moves the latents of its span where there is attention, else only itself."""
    adapter = ADAPTERS[name](16, ENCODER, DECODER, depth)
    randomise(adapter)
    lengths = [3, 1, 5, 2]
    layout = spans(lengths, name)
    assert (layout is not None) == adapter.attention
    of_span = np.repeat(np.arange(4), lengths)
    pooled = torch.randn(11, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = adapter(pooled, layout)
        assert before.shape == (11, DECODER.width)
        for latent in range(11):
            changed = pooled.clone()
            changed[latent] += 1
            moved = (adapter(changed, layout) != before).any(-1).numpy()
            expected = of_span == of_span[latent] if adapter.attention else np.arange(11) == latent
            assert (moved == expected).all(), f"latent {latent} moved {moved.nonzero()[0]}"


@pytest.mark.parametrize("name", ["attn_mlp", "mlp_attn"])
def test_attention_knows_the_order(name: str) -> None:
    """Reversing a span's latents is not only a reversal: they have positions."""
    adapter = ADAPTERS[name](16, ENCODER, DECODER, 1)
    randomise(adapter)
    layout, pooled = spans([6], name), torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (adapter(pooled, layout) - adapter(pooled.flip(0), layout).flip(0)).abs().max() > 1e-3


def test_silenced_attention_leaves_the_mlp() -> None:
    plain = ADAPTERS["mlp"](16, ENCODER, DECODER, 0)
    randomise(plain)
    pooled = torch.randn(4, 16)
    for name in ("attn_mlp", "mlp_attn"):
        adapter = ADAPTERS[name](16, ENCODER, DECODER, 2)
        adapter.load_state_dict(plain.state_dict(), strict=False)
        for module in adapter.modules():
            if isinstance(module, Block):
                module.silence()
        torch.testing.assert_close(adapter(pooled, spans([3, 1], name)), plain(pooled, None))
