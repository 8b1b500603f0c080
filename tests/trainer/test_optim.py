"""The joined optimizer equals torch's two, stepped one after the other; every weight gets its part's rate."""

import copy
import io
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from search_space.compressor import Compressor, matrices
from search_space.design import Design
from search_space.errors import UsageError
from search_space.transformer import Block
from tests.tiny import SIZE
from trainer import optim
from trainer.optim import OptimConfig, PartConfig

DESIGN = Design.parse("concat-w16-causal-mlp_attn-O8-n4")
CONFIG = OptimConfig(scaling="none")


def set_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_equals_muon_and_adamw_apart() -> None:
    ours = Compressor(DESIGN, SIZE)
    theirs = copy.deepcopy(ours)
    matrices = [m.weight for m in theirs.modules() if isinstance(m, nn.Linear)]
    ids = {id(p) for p in matrices}
    muon = torch.optim.Muon(matrices, lr=CONFIG.muon_rate, weight_decay=CONFIG.weight_decay)
    rest = [p for p in theirs.parameters() if id(p) not in ids]
    adamw = torch.optim.AdamW(rest, lr=CONFIG.adamw_rate, betas=(0.9, 0.95), weight_decay=0.0)
    joined = optim.build(ours, CONFIG)
    for step in range(4):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        if step == 2:  # the state of the joined one survives saving and loading
            file = io.BytesIO()
            torch.save(joined.state_dict(), file)
            file.seek(0)
            joined = optim.build(ours, CONFIG)
            joined.load_state_dict(torch.load(file))
        joined.step()
        muon.step()
        adamw.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_untied_head_is_no_matrix_for_muon() -> None:
    """It is a table of outputs as the embedding is one of inputs."""
    model = Compressor(DESIGN.but(decoder="t0"), SIZE)
    muon, adamw = optim.build(model, CONFIG).param_groups
    assert model.decoder.lm_head is not None
    assert any(p is model.decoder.lm_head.weight for p in adamw["params"])
    assert len(muon["params"]) == len(list(matrices(Compressor(DESIGN, SIZE))))


def test_every_parameter_is_in_one_group_once() -> None:
    model = Compressor(DESIGN, SIZE)
    groups = optim.build(model, CONFIG).param_groups
    grouped = [id(p) for g in groups for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert all(p.ndim == 2 for p in groups[0]["params"])


def test_a_schedule_reaches_both_parts() -> None:
    model = Compressor(DESIGN, SIZE)
    joined = optim.build(model, CONFIG)
    before = copy.deepcopy(model.state_dict())
    torch.optim.lr_scheduler.LambdaLR(joined, lambda step: 0.0)
    set_gradients(model, 0)
    joined.step()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def groups_of(model: Compressor, config: OptimConfig) -> dict[str, dict[str, Any]]:
    """The group of each trained weight, by its name."""
    optim.freeze(model, config)
    of_id = {id(w): group for group in optim.build(model, config).param_groups for w in group["params"]}
    return {name: of_id[id(w)] for name, w in model.named_parameters() if id(w) in of_id}


PUBLISHED = OptimConfig(
    "adamw", adamw_rate=3e-4, weight_decay=0.1, scaling="none", adapter=PartConfig(adamw_rate=1e-3, weight_decay=0.01)
)


def test_each_part_has_its_rate_and_its_decay() -> None:
    model = Compressor(DESIGN, SIZE)
    groups = groups_of(model, PUBLISHED)
    assert groups.keys() == dict(model.named_parameters()).keys()
    for name, group in groups.items():
        adapter = name.startswith("adapter.")
        assert group["lr"] == (1e-3 if adapter else 3e-4)
        assert (group["betas"], group["eps"]) == ((0.9, 0.95), 1e-8)
        if name.endswith(("norm.weight", ".bias")) or "embed" in name or "phase" in name:
            assert group["weight_decay"] == 0
        else:
            assert group["weight_decay"] == (0.01 if adapter else 0.1)
    assert len({id(g) for g in groups.values()}) == 4


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_part_of_rate_0_is_frozen(kind: Literal["muon", "adamw"]) -> None:
    """The adapter alone, as in the first stage of the full-scale recipe."""
    frozen = PartConfig(muon_rate=0.0, adamw_rate=0.0)
    model = Compressor(DESIGN, SIZE)
    groups = groups_of(model, OptimConfig(kind, encoder=frozen, decoder=frozen))
    trained = {name for name, w in model.named_parameters() if w.requires_grad}
    assert groups.keys() == trained == {n for n, _ in model.named_parameters() if n.startswith("adapter.")}
    with pytest.raises(UsageError, match="nothing to train"):
        optim.freeze(model, OptimConfig(kind, encoder=frozen, adapter=frozen, decoder=frozen))


def test_the_rule_keeps_decay_per_step() -> None:
    model = Compressor(DESIGN, SIZE)  # a quarter of the base's width
    for kind in ("muon", "adamw"):
        groups = groups_of(model, OptimConfig(kind, weight_decay=0.1, scaling="mup"))
        rates = {g["lr"] for g in groups.values()}
        assert len(rates) > 2
        peak = OptimConfig().muon_rate if kind == "muon" else OptimConfig().adamw_rate
        decays = [g["lr"] * g["weight_decay"] for g in groups.values() if g["weight_decay"]]
        assert decays == pytest.approx([0.1 * peak] * len(decays))


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (OptimConfig(muon_rate=0.0), "muon_rate"),
        (OptimConfig(adamw_rate=float("nan")), "adamw_rate"),
        (OptimConfig(clip=float("inf")), "clip"),
        (OptimConfig(beta2=1.0), "beta2"),
        (OptimConfig(weight_decay=-0.1), "weight_decay"),
        (OptimConfig(adapter=PartConfig(adamw_rate=-1.0)), "adapter.adamw_rate"),
    ],
)
def test_what_cannot_be_is_named(config: OptimConfig, field: str) -> None:
    with pytest.raises(UsageError, match=f"^recipe.optim.{field}:"):
        config.check()


def _compare_sharded(rank: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    whole = Compressor(DESIGN, SIZE)
    for weight in whole.parameters():
        dist.broadcast(weight.detach(), 0)
    sharded = copy.deepcopy(whole)
    for module in [m for m in sharded.modules() if isinstance(m, Block)] + [sharded]:
        fully_shard(module, mesh=mesh)
    ours, plain = optim.build(sharded, CONFIG), optim.build(whole, CONFIG)
    for step in range(3):
        set_gradients(whole, step)
        for a, b in zip(sharded.parameters(), whole.parameters(), strict=True):
            assert isinstance(a, DTensor) and b.grad is not None
            a.grad = distribute_tensor(b.grad, a.device_mesh, a.placements)
        ours.step()
        plain.step()
    for a, b in zip(sharded.parameters(), whole.parameters(), strict=True):
        assert isinstance(a, DTensor)
        torch.testing.assert_close(a.full_tensor(), b, atol=1e-6, rtol=1e-6)
        assert all(isinstance(v, DTensor) for v in ours.state[a].values() if v.ndim)  # a rank keeps its share
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_sharded_step_equals_the_unsharded_one(tmp_path: Path) -> None:
    """FSDP2 on two processes."""
    mp.spawn(_compare_sharded, (str(tmp_path / "rendezvous"),), nprocs=2)
