"""The rule changes nothing at the base size, is the literature's at others, and keeps what a step does to the
activations as large in a wide or deep model as it is at the base."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from search_space.compressor import Compressor, Size
from search_space.design import Design
from search_space.layout import Sample, Specials, Task, lay_out
from search_space.transformer import Shape
from trainer import optim, scaling
from trainer.optim import OptimConfig

DESIGN = Design.parse("mean-w16-causal-mlp-O0-n4")
RULE = OptimConfig(scaling="mup")


def shape(width: int, layers: int = 2) -> Shape:
    heads = width // 32
    return Shape(layers=layers, width=width, heads=heads, kv_heads=heads, head_width=32, feedforward=2 * width)


def apart(encoder: Shape, decoder: Shape) -> Size:
    return Size(vocab=64, encoder=encoder, decoder=decoder, embeddings="separate", silent_encoder=False)


def on_meta(design: Design, size: Size) -> Compressor:
    with torch.device("meta"):
        return Compressor(design, size)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize(
    "design",
    [
        Design.parse("concat-w16-causal-mlp_attn-O8-n4"),
        Design.parse("conv-w32-causal-attn_mlp-O0-n4-l3"),
        Design.parse("attention-w16-causal-mlp-O0-n4-dec_t0"),
        DESIGN.but(control="encoderless"),
        DESIGN.but(control="uncompressed"),
    ],
    ids=lambda design: design.name,
)
def test_the_base_size_stays_as_it_is(design: Design, kind: Literal["muon", "adamw"]) -> None:
    ours, plain = (Compressor(design, Size()) for _ in range(2))
    plain.load_state_dict(ours.state_dict())
    before = torch.random.get_rng_state()
    scaling.rescale(ours, "mup")
    with_rule, without = (optim.build(ours, OptimConfig(kind, scaling=s)).param_groups for s in ("mup", "none"))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in with_rule] == [
        (g["lr"], g["weight_decay"], len(g["params"])) for g in without
    ]


def test_each_part_has_the_factors_of_its_own_size() -> None:
    model = on_meta(DESIGN, apart(shape(256, layers=8), shape(512, layers=1)))
    by_name = scaling.factors(model, "mup")
    assert by_name["encoder.layers.7.self_attn.q_proj.weight"] == scaling.Factors(adamw=1 / 2)
    assert by_name["encoder.layers.7.mlp.down_proj.weight"] == scaling.Factors(initial=1 / 4, adamw=1 / 8, muon=1 / 4)
    assert by_name["decoder.layers.0.self_attn.o_proj.weight"] == scaling.Factors(initial=2, adamw=1 / 2, muon=2)
    assert by_name["decoder.norm.weight"] == scaling.Factors(initial=1 / 2, adamw=1 / 4)
    fc1 = by_name["adapter.fc1.weight"]  # 256 to 512, at the base 128 to 128: torch's Muon has that square root
    assert fc1 == scaling.Factors(adamw=1 / 2)
    same = {"encoder.norm", "embed_tokens", "phase", "layernorm", "adapter.norm", "bias", "q_norm", "k_norm"}
    assert all(f == scaling.Factors() for name, f in by_name.items() if any(part in name for part in same))


def test_an_untied_head_is_scaled_in_place_of_its_norm() -> None:
    size = apart(shape(128), replace(shape(512), tied_head=False))
    by_name = scaling.factors(on_meta(DESIGN, size), "mup")
    assert by_name["decoder.lm_head.weight"] == scaling.Factors(initial=1 / 2, adamw=1 / 4)
    assert by_name["decoder.norm.weight"] == scaling.Factors()


@settings(max_examples=8, deadline=None)
@given(
    encoder=st.builds(shape, st.sampled_from([32, 96, 256]), st.integers(1, 4)),
    feedforward=st.sampled_from([40, 128, 600]),
    kind=st.sampled_from(["muon", "adamw"]),
)
def test_a_step_moves_each_matrix_by_the_spectral_condition(
    encoder: Shape, feedforward: int, kind: Literal["muon", "adamw"]
) -> None:
    """The largest change of a matrix's outputs for inputs of size 1, both as root mean squares, is the base's."""
    size = apart(replace(encoder, feedforward=feedforward), shape(160))
    ours, base = dict(_updates(size, kind)), dict(_updates(apart(Shape(), Shape()), kind))
    for name, gain in ours.items():
        residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        depth = encoder.layers / 2 if residual and name.startswith("encoder") else 1
        assert gain * depth == pytest.approx(base[name.replace(".layers.1.", ".layers.0.")], rel=0.25), name


def _updates(size: Size, kind: Literal["muon", "adamw"]) -> Iterator[tuple[str, float]]:
    """Per matrix of the first two layers: by how much a step of the optimizer changes outputs. The gradient has rank
    1, as of one token."""
    model = Compressor(DESIGN, size)
    config = OptimConfig(kind, weight_decay=0.0, scaling="mup")
    torch.manual_seed(0)
    for weight in model.parameters():
        weight.grad = (
            torch.outer(*(torch.randn(n) for n in weight.shape)) if weight.ndim == 2 else torch.ones_like(weight)
        )
    optimizer = optim.build(model, config)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    optimizer.step()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not any(f".layers.{i}." in name for i in (2, 3)):
            weight = module.weight
            change = torch.linalg.matrix_norm(weight.detach() - before[f"{name}.weight"], 2).item()
            yield f"{name}.weight", change * math.sqrt(weight.shape[1] / weight.shape[0])


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def _changes(width: int, layers: int, config: OptimConfig) -> tuple[float, float]:
    """By how much four steps change latents and logits of the batch they are taken on."""
    size = Size(vocab=64, encoder=shape(width, layers), decoder=shape(width, layers))
    torch.manual_seed(0)
    model = Compressor(DESIGN, size)
    scaling.rescale(model, config.scaling)
    rng = np.random.default_rng(0)
    tasks: tuple[Task, ...] = ("reconstruct", "parallel")
    samples = [Sample(rng.integers(0, 59, 32), (), task, i) for i, task in enumerate(tasks)]
    batch = lay_out(samples, DESIGN, Specials(59, 60, 61, 62, 63), "spread")
    assert batch.encoder is not None
    optimizer = optim.build(model, config)
    with torch.no_grad():
        latents, logits = model.encode(batch.encoder), model(batch)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(model(batch), batch.target_P).backward()
        optimizer.step()
    with torch.no_grad():
        return _rms(model.encode(batch.encoder) - latents), _rms(model(batch) - logits)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_coordinate_check(kind: Literal["muon", "adamw"]) -> None:
    """muP's own test (arXiv 2203.03466, appendix D.1), for width and for depth."""
    rate = 0.006 if kind == "muon" else 0.003
    rule = OptimConfig(kind, muon_rate=0.01, adamw_rate=rate, scaling="mup")
    narrow, wide, deep = (_changes(*s, rule) for s in ((64, 2), (256, 2), (64, 8)))
    for change in (wide, deep):
        assert all(1 / 1.6 < c / n < 1.6 for c, n in zip(change, narrow, strict=True)), (change, narrow)
    narrow, wide, deep = (_changes(*s, replace(rule, scaling="none")) for s in ((64, 2), (256, 2), (64, 8)))
    assert deep[0] / narrow[0] > 1.6 and wide[1] / narrow[1] > 1.6
