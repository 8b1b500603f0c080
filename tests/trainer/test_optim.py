"""The joined optimizer equals torch's two, stepped one after the other."""

import copy
import io

import torch
from torch import nn

from search_space.compressor import Compressor, matrices
from search_space.design import Design
from tests.tiny import SIZE
from trainer import optim
from trainer.recipe import Recipe

DESIGN = Design.parse("concat-w16-causal-mlp_attn-O8-n4")
RECIPE = Recipe()


def set_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_equals_muon_and_adamw_apart() -> None:
    ours = Compressor(DESIGN, SIZE)
    theirs = copy.deepcopy(ours)
    matrices = [m.weight for m in theirs.modules() if isinstance(m, nn.Linear)]
    ids = {id(p) for p in matrices}
    muon = torch.optim.Muon(matrices, lr=RECIPE.muon_rate, weight_decay=RECIPE.weight_decay)
    rest = [p for p in theirs.parameters() if id(p) not in ids]
    adamw = torch.optim.AdamW(rest, lr=RECIPE.adamw_rate, betas=(0.9, 0.95), weight_decay=0.0)
    joined = optim.build(ours, RECIPE)
    for step in range(4):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        if step == 2:  # the state of the joined one survives saving and loading
            file = io.BytesIO()
            torch.save(joined.state_dict(), file)
            file.seek(0)
            joined = optim.build(ours, RECIPE)
            joined.load_state_dict(torch.load(file))
        joined.step()
        muon.step()
        adamw.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_untied_head_is_no_matrix_for_muon() -> None:
    """It is a table of outputs as the embedding is one of inputs."""
    model = Compressor(DESIGN.but(decoder="t0"), SIZE)
    muon, adamw = optim.build(model, RECIPE).param_groups
    assert model.decoder.lm_head is not None
    assert any(p is model.decoder.lm_head.weight for p in adamw["params"])
    assert len(muon["params"]) == len(list(matrices(Compressor(DESIGN, SIZE))))


def test_every_parameter_is_in_one_group_once() -> None:
    model = Compressor(DESIGN, SIZE)
    groups = optim.build(model, RECIPE).param_groups
    grouped = [id(p) for g in groups for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert all(p.ndim == 2 for p in groups[0]["params"])


def test_a_schedule_reaches_both_parts() -> None:
    model = Compressor(DESIGN, SIZE)
    joined = optim.build(model, RECIPE)
    before = copy.deepcopy(model.state_dict())
    torch.optim.lr_scheduler.LambdaLR(joined, lambda step: 0.0)
    set_gradients(model, 0)
    joined.step()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
