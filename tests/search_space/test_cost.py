"""The cost model against PyTorch's own counter, on the real forward pass."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from search_space.compressor import Compressor, Size
from search_space.cost import cost, forward_flops
from search_space.design import Design
from search_space.layout import Sample, Specials, lay_out
from search_space.transformer import Shape

SHAPE = Shape(layers=2, width=32, heads=4, kv_heads=2, head_width=16, feedforward=48)
SIZE = Size(
    vocab=300, encoder=SHAPE, decoder=Shape(layers=3, width=32, heads=2, kv_heads=1, head_width=8, feedforward=80)
)
NAMES = [
    "mean-w32-causal-mlp-O0-n8",
    "concat-w32-bidirectional-attn_mlp-O8-n4-l2",
    "eos-w16-causal-mlp_attn-O4-n8-l3",
    "mean-w8-causal-mlp-O0-n8-encoderless",
    "uncompressed",
    "blind",
]


def samples() -> list[Sample]:
    rng = np.random.default_rng(0)
    return [
        Sample(rng.integers(5, 300, 64), (), "reconstruct", 0),
        Sample(rng.integers(5, 300, 37), (), "parallel", 1),
        Sample(rng.integers(5, 300, 90), (40,), "continue", 2),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_flops_are_those_that_torch_counts(name: str) -> None:
    design = Design.parse(name)
    model = Compressor(design, SIZE)
    batch = lay_out(samples(), design, Specials(0, 1, 2, 3, 4), SIZE.positions)
    # The counter knows attention only as the matrix products of the plain implementation.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(batch)
    assert forward_flops(design, SIZE, batch) == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_counted_without_building(name: str) -> None:
    design = Design.parse(name)
    real = sum(p.numel() for p in Compressor(design, SIZE).parameters())
    with torch.device("meta"):
        assert cost(design, SIZE, 64).parameters == real


def test_a_higher_ratio_reads_cheaper() -> None:
    at = [cost(Design(ratio=n, window=64), SIZE, 256).prefill_flops for n in (4, 8, 16)]
    assert at[0] > at[1] > at[2]
