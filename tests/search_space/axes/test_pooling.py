"""Each pooling on blocks written out by hand; the contract that every entry of `POOLINGS` keeps."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from search_space.axes import pooling as pooling_module
from search_space.axes.pooling import POOLINGS, Attention, Blocks, Concat, Conv, Eos, Mean
from search_space.compressor import Compressor, Size
from search_space.design import Design
from search_space.layout import Sample, Specials, lay_out
from search_space.transformer import Shape

# Eight encoder positions: blocks of three at 1-3 and 4-5 (short), markers at 6 and 7.
HIDDEN_TD = torch.arange(16.0).view(8, 2) + 1
BLOCKS = Blocks(
    tokens_LN=torch.tensor([[1, 2, 3], [4, 5, 0]]),
    mask_LN=torch.tensor([[True, True, True], [True, True, False]]),
    markers_L=torch.tensor([6, 7]),
)


def test_mean_of_what_the_block_has() -> None:
    expected = torch.stack([HIDDEN_TD[1:4].mean(0), HIDDEN_TD[4:6].mean(0)])
    torch.testing.assert_close(Mean(2, 3)(HIDDEN_TD, BLOCKS), expected)


def test_concat_pads_with_zeros() -> None:
    expected = torch.stack([HIDDEN_TD[1:4].flatten(), torch.cat([HIDDEN_TD[4:6].flatten(), torch.zeros(2)])])
    assert torch.equal(Concat(2, 3)(HIDDEN_TD, BLOCKS), expected)


def test_eos_reads_the_markers() -> None:
    assert torch.equal(Eos(2, 3)(HIDDEN_TD, BLOCKS), HIDDEN_TD[6:8])


def test_attention_without_a_preference_is_the_mean() -> None:
    pooling = Attention(2, 3)
    with torch.no_grad():
        pooling.score.weight.zero_()
        pooling.value.weight.copy_(torch.eye(2))
        pooling.out.weight.copy_(torch.eye(2))
    torch.testing.assert_close(pooling(HIDDEN_TD, BLOCKS), Mean(2, 3)(HIDDEN_TD, BLOCKS))


def test_attention_goes_where_its_query_points() -> None:
    """One head for each channel: the first takes the block's largest value, the second its smallest."""
    pooling = Attention(2, 3)
    assert pooling.heads == 2
    with torch.no_grad():
        pooling.score.weight.copy_(torch.tensor([[100.0, 0.0], [-100.0, 0.0]]))
        pooling.value.weight.copy_(torch.eye(2))
        pooling.out.weight.copy_(torch.eye(2))
    expected = torch.stack([torch.stack([b[-1, 0], b[0, 1]]) for b in (HIDDEN_TD[1:4], HIDDEN_TD[4:6])])
    torch.testing.assert_close(pooling(HIDDEN_TD, BLOCKS), expected)


def test_attention_knows_no_order_and_conv_does() -> None:
    turned = replace(BLOCKS, tokens_LN=BLOCKS.tokens_LN[:, [1, 0, 2]])
    for pooling, same in ((Attention(2, 3), True), (Conv(2, 3), False)):
        assert torch.allclose(pooling(HIDDEN_TD, BLOCKS), pooling(HIDDEN_TD, turned), atol=1e-5) == same


@pytest.mark.parametrize(("ratio", "strides"), [
    (2, [2]), (3, [3]), (4, [2, 2]), (12, [2, 2, 3]), (16, [2, 2, 2, 2]), (35, [5, 7]),
])  # fmt: skip
def test_conv_halves_until_one_is_left(ratio: int, strides: list[int]) -> None:
    pooling = Conv(2, ratio)
    assert pooling.strides == strides and [len(p) for p in pooling.levels.parameters()] == [2, 2] * len(strides)


@pytest.mark.parametrize("name", POOLINGS)
def test_contract(name: str) -> None:
    """The promised width, dtype and FLOPs, and a gradient from nowhere but the latent's own positions."""
    pooling = POOLINGS[name](2, 3)
    with FlopCounterMode(display=False) as counter:
        pooling(HIDDEN_TD, BLOCKS)
    assert counter.get_total_flops() == 2 * pooling.flops()
    with torch.autocast("cpu", torch.bfloat16):
        assert pooling(HIDDEN_TD.bfloat16(), BLOCKS).dtype == torch.bfloat16
    hidden = HIDDEN_TD.clone().requires_grad_()
    latents = pooling(hidden, BLOCKS)
    assert latents.shape == (2, pooling.out_width)
    for latent, own in ((0, [1, 2, 3]), (1, [4, 5])):
        (gradient,) = torch.autograd.grad(latents[latent].sum(), hidden, retain_graph=True)
        touched = set(gradient.any(-1).nonzero().flatten().tolist())
        assert touched and touched <= ({6 + latent} if pooling.markers else set(own))


def test_the_example_of_the_readme_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its class and its entry are all that a new pooling takes."""
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    (example,) = re.findall(r"```python\n(class .*?)```", readme, re.DOTALL)
    scope = {**vars(pooling_module), "POOLINGS": dict(POOLINGS)}
    exec(example, scope)
    monkeypatch.setitem(POOLINGS, "max", scope["POOLINGS"]["max"])
    test_contract("max")
    shape = Shape(layers=1, width=16, heads=2, kv_heads=1, head_width=8, feedforward=24)
    design = Design(pooling="max", ratio=4, window=8)
    model = Compressor(design, Size(vocab=50, encoder=shape, decoder=shape))
    batch = lay_out([Sample(np.arange(5, 24), (), "reconstruct", 0)], design, Specials(0, 1, 2, 3, 4), "spread")
    model(batch).sum().backward()
    assert Design.parse(design.name) == design
    assert model.encoder is not None and model.encoder.embed_tokens.weight.grad is not None
