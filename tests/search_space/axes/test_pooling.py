"""Each pooling on blocks written out by hand; the contract that every entry of `POOLINGS` keeps."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from search_space.axes import pooling as pooling_module
from search_space.axes.pooling import POOLINGS, Blocks, Concat, Eos, Mean
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


@pytest.mark.parametrize("name", POOLINGS)
def test_contract(name: str) -> None:
    """The promised width and dtype, no parameters, and a gradient from nowhere but the latent's own positions."""
    pooling = POOLINGS[name](2, 3)
    assert not list(pooling.parameters())
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
    scope = vars(pooling_module).copy()
    exec(example, scope)
    monkeypatch.setitem(POOLINGS, "max", scope["POOLINGS"]["max"])
    test_contract("max")
    shape = Shape(layers=1, width=16, heads=2, kv_heads=1, head_width=8, feedforward=24)
    design = Design(pooling="max", ratio=4, window=8)
    model = Compressor(design, Size(vocab=50, encoder=shape, decoder=shape))
    batch = lay_out([Sample(np.arange(5, 24), (), "reconstruct", 0)], design, Specials(0, 1, 2, 3, 4))
    model(batch).sum().backward()
    assert Design.parse(design.name) == design
    assert model.encoder is not None and model.encoder.embed_tokens.weight.grad is not None
