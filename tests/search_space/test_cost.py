"""The cost model against PyTorch's own counter, on the real forward and backward pass."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from search_space.axes.adapter import ADAPTERS
from search_space.axes.pooling import POOLINGS
from search_space.compressor import Compressor, Size
from search_space.cost import cost, forward_flops, parameters
from search_space.design import Design
from search_space.layout import Batch, Sample, Specials, lay_out
from search_space.transformer import Shape
from tests.search_space.cases import SHARED, tiny_designs

SHAPE = Shape(layers=2, width=32, heads=4, kv_heads=2, head_width=16, feedforward=48)
SIZE = Size(
    vocab=300, encoder=SHAPE, decoder=Shape(layers=3, width=32, heads=2, kv_heads=1, head_width=8, feedforward=80)
)
APART = replace(SIZE, decoder=replace(SIZE.decoder, width=40, tied_head=False), embeddings="separate")
SPECIALS = Specials(0, 1, 2, 3, 4)
CONTROLS = ["mean-w8-causal-mlp-O0-n8-encoderless", "uncompressed", "blind"]
NAMES = [
    f"{pooling}-{layout}"
    for pooling in POOLINGS
    for layout in ("w32-causal-mlp-O0-n8", "w48-bidirectional-attn_mlp-O8-n12-l2", "w16-causal-mlp_attn-O4-n8-l3")
] + CONTROLS


def samples() -> list[Sample]:
    rng = np.random.default_rng(0)
    return [
        Sample(rng.integers(5, 300, 64), (), "reconstruct", 0),
        Sample(rng.integers(5, 300, 37), (), "parallel", 1),
        Sample(rng.integers(5, 300, 90), (40,), "continue", 2),
    ]


def counted(model: Compressor, batch: Batch, backward: bool = False) -> int:
    # The counter knows attention only as the matrix products of the plain implementation.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits_PV = model(batch)
        if backward:
            logits_PV.sum().backward()
    return counter.get_total_flops()


def test_every_adapter_is_counted() -> None:
    assert {Design.parse(name).adapter for name in NAMES} == set(ADAPTERS)


@pytest.mark.parametrize("size", [SIZE, APART], ids=["tied", "apart"])
@pytest.mark.parametrize("name", NAMES)
def test_flops_are_those_that_torch_counts(name: str, size: Size) -> None:
    design = Design.parse(name)
    batch = lay_out(samples(), design, SPECIALS, size.positions)
    assert forward_flops(design, size, batch) == pytest.approx(counted(Compressor(design, size), batch), rel=0.01)


@pytest.mark.parametrize("interleaved", [False, True])
def test_training_flops_are_those_of_both_passes(interleaved: bool) -> None:
    design = Design.parse("attention-w32-bidirectional-attn_mlp-O8-n8-enc_l1")
    task, cuts = ("continue", (32,)) if interleaved else ("reconstruct", ())
    batch = lay_out([Sample(np.zeros(64, np.int64), cuts, task, 0)] * 3, design, SPECIALS, SIZE.positions)
    of_torch = counted(Compressor(design, SIZE), batch, backward=True) / (3 * 64)
    assert cost(design, SIZE, 64, 3, interleaved).train_flops == pytest.approx(of_torch, rel=0.01)


@settings(max_examples=20)
@given(tiny_designs)
def test_parameters_are_counted_without_building(design: Design) -> None:
    real = sum(p.numel() for p in Compressor(design, SHARED).parameters())
    with torch.device("meta"):
        assert parameters(design, SHARED) == real


@pytest.mark.parametrize(
    "name", ["mean-w32-causal-mlp-O0-n8", "eos-w32-bidirectional-mlp_attn-O8-n4-dec_l4", *CONTROLS]
)
def test_key_value_bytes_are_what_the_decoder_makes(name: str) -> None:
    """Both projections of every layer, over the tags and what stands between them, at two bytes a number."""
    design, made = Design.parse(name), 0

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal made
        made += 2 * output.numel()

    model = Compressor(design, SIZE)
    for part, module in model.decoder.named_modules():
        if part.endswith(("k_proj", "v_proj")):
            module.register_forward_hook(note)
    model(lay_out([Sample(np.zeros(90, np.int64), (), "continue", 0)], design, SPECIALS, SIZE.positions))
    assert cost(design, SIZE, 90).kv_bytes * 90 == pytest.approx(made)


def test_a_context_keeps_its_latents_and_two_tags() -> None:
    of_position = 2 * 2 * 3 * 1 * 8  # bytes: keys and values, bfloat16, layers, heads, width
    latents = {"mean-w32-causal-mlp-O0-n8": 8, "uncompressed": 64, "blind": 0}
    for name, expected in latents.items():
        assert cost(Design.parse(name), SIZE, 64).kv_bytes * 64 == (expected + 2) * of_position


def test_a_higher_ratio_reads_cheaper() -> None:
    at = [cost(Design(ratio=n, window=64), SIZE, 256) for n in (4, 8, 16)]
    assert at[0].prefill_flops > at[1].prefill_flops > at[2].prefill_flops
    assert at[0].kv_bytes > at[1].kv_bytes > at[2].kv_bytes
    assert at[0].memory > at[1].memory > at[2].memory
