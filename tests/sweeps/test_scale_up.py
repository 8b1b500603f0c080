"""The plan of a full-scale run: axes at published sizes, rates for the horizon, shapes as initial weights have them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_space import qwen3
from search_space.axes.shape import QWEN3
from search_space.transformer import Shape, Transformer
from sweeps.scale_up import HORIZON, ROTARY, Wish, assumed, plan_for, target_of
from tests.sweeps.promotable import ARM, SMALL, SWEEP
from trainer.optim import OptimConfig, PartConfig
from trainer.plan import Rates

NAME = SWEEP.name


@pytest.mark.parametrize("encoder", ["0.6b", "4b"])
@pytest.mark.parametrize("decoder", ["0.6b", "4b", "8b"])
def test_axes_are_carried_to_published_sizes(encoder: str, decoder: str) -> None:
    plan = plan_for(SWEEP, ARM, Wish(encoder=encoder, decoder=decoder), None)
    assert plan.design == ARM and plan.name == f"{NAME}-{ARM}-{encoder}-{decoder}"
    assert (plan.size.encoder, plan.size.decoder) == (QWEN3[encoder], QWEN3[decoder])
    assert plan.size.vocab >= 151_669 and plan.size.embeddings == "separate"
    assert target_of(plan).parameters > 0.9e9 * (float(encoder[:-1]) + float(decoder[:-1]))
    assert plan.metric == "continue" and len(plan.stages) == 4


@given(st.floats(1e-3, 1.0), st.sampled_from(["muon", "adamw"]))
def test_rates_from_scratch_follow_the_horizon(tokens: float, kind: Any) -> None:
    optim = OptimConfig(kind=kind, muon_rate=0.02, adamw_rate=0.005, weight_decay=0.03)
    config = replace(SWEEP, recipe=replace(SWEEP.recipe, optim=optim, floor=0.1))
    plan = plan_for(config, ARM, replace(SMALL, tokens=tokens, encoder="l2", decoder="base", batch=2**20), None)
    trained_on = config.recipe.steps * config.recipe.piece * config.recipe.pieces
    factor = (target_of(plan).tokens / trained_on) ** HORIZON
    peak = factor * (0.02 if kind == "muon" else 0.005)
    assert all(rate == pytest.approx(peak) for stage in plan.stages for rate in vars(stage.rates).values())
    assert (plan.optim.muon_rate, plan.optim.adamw_rate) == pytest.approx((0.02 * factor, 0.005 * factor))
    assert plan.lowest == pytest.approx(0.1 * peak) and plan.decay == Rates(0.03, 0.03, 0.03)
    for stage in plan.stages:
        of = plan.recipe(stage).optim.of("decoder")
        assert (of.muon_rate if kind == "muon" else of.adamw_rate) == pytest.approx(peak)


def test_a_part_keeps_what_it_has_of_its_own() -> None:
    optim = OptimConfig(adapter=PartConfig(muon_rate=0.04), encoder=PartConfig(weight_decay=0.5))
    config = replace(SWEEP, recipe=replace(SWEEP.recipe, optim=optim))
    plan, usual = (plan_for(c, ARM, SMALL, None) for c in (config, SWEEP))
    for own, rest in zip(plan.stages, usual.stages, strict=True):
        assert own.rates == replace(rest.rates, adapter=pytest.approx(4 * rest.rates.adapter))
    assert plan.decay == replace(usual.decay, encoder=0.5)


def test_trained_weights_take_the_published_rates() -> None:
    plan = plan_for(SWEEP, ARM, Wish(encoder_weights="lab/encoder", decoder_weights="lab/decoder"), None)
    assert [stage.rates for stage in plan.stages][:2] == [Rates(1e-3), Rates(6e-5, 6e-5)]
    assert (plan.encoder, plan.decoder, plan.optim.kind, plan.lowest) == ("lab/encoder", "lab/decoder", "adamw", 1e-6)
    assert plan.decay == Rates(adapter=0.01, encoder=0.01, decoder=0.0)


def test_a_folder_says_its_own_shape(tmp_path: Path) -> None:
    shape = Shape(2, 32, 2, 1, 8, 48, rope_base=5e5)
    qwen3.save(Transformer(shape, 300, head=True), tmp_path / "weights")
    wish = Wish(encoder_weights=str(tmp_path / "weights"), decoder_weights=str(tmp_path / "weights"))
    plan = plan_for(SWEEP, ARM, wish, None)
    assert (plan.size.encoder, plan.size.decoder) == (shape, shape) and assumed(wish, plan) == []


def test_a_name_in_the_hubs_cache_says_its_own_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the Hub's library keeps it: a folder of blobs by commit, and what each reference points to."""
    shape, cache = replace(QWEN3["0.6b"], rope_base=3e6), tmp_path / "models--lab--encoder"
    qwen3.save(Transformer(replace(shape, layers=1), 300, head=True), cache / "snapshots/abc")
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    wish = Wish(encoder_weights="lab/encoder", decoder_weights="lab/decoder")
    plan = plan_for(SWEEP, ARM, wish, None)
    assert plan.size.encoder == replace(shape, layers=1)
    (said,) = assumed(wish, plan)
    assert said.startswith("decoder_weights: lab/decoder is not on this machine; its shape is taken to be 4b, with a ")
    assert "rotary base of 1,000,000" in said and "size.decoder.rope_base" in said


def test_the_published_weights_need_not_be_here() -> None:
    encoder, decoder = ROTARY
    wish = Wish(encoder_weights=encoder, decoder_weights=decoder)
    plan = plan_for(SWEEP, ARM, wish, None)
    assert (plan.size.encoder, plan.size.decoder) == (QWEN3["0.6b"], replace(QWEN3["4b"], rope_base=5e6))
    assert assumed(wish, plan) == []
