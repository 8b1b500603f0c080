"""Each pooling on blocks written out by hand; the contract that every entry of `POOLINGS` keeps."""

import pytest
import torch

from search_space.pooling import POOLINGS, Blocks, Concat, Eos, Mean

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
        assert gradient.any(-1).nonzero().flatten().tolist() == ([6 + latent] if pooling.markers else own)
