"""The presets of the published system train by its published recipe (paper section 2)."""

import pytest

from sweeps.config import load


@pytest.mark.parametrize("preset", ["section5", "unpublished", "fullscale"])
def test_published_rates(preset: str) -> None:
    assert load(preset).metric == "continue"
    recipe = load(preset).recipe
    optim = recipe.optim
    assert (optim.kind, optim.scaling) == ("adamw", "none")
    assert (optim.beta1, optim.beta2, optim.eps, optim.clip) == (0.9, 0.95, 1e-8, 1.0)
    peak = {name: optim.of(name).adamw_rate for name in ("adapter", "encoder", "decoder")}
    assert peak == {"adapter": 1e-3, "encoder": 3e-4, "decoder": 3e-4}
    decay = {name: optim.of(name).weight_decay for name in ("adapter", "encoder", "decoder")}
    assert decay == {"adapter": 0.01, "encoder": 0.1, "decoder": 0.1}
    assert recipe.steps == 10_000 and recipe.rung_steps() == [10_000]
    assert recipe.rate_at(499) == 1 and recipe.rate_at(498) < 1 and recipe.rate_at(500) < 1
    assert recipe.rate_at(9_999) * 3e-4 == pytest.approx(3e-5)
    assert recipe.rate_at(500 + 4_750 - 1) == pytest.approx((1 + 0.1) / 2)  # a cosine is half way half way down


def test_the_optimizer_is_set_on_the_command_line() -> None:
    optim = load("demo", ["recipe.optim.muon_rate=0.02", "recipe.optim.adapter.adamw_rate=0.001"]).recipe.optim
    assert (optim.muon_rate, optim.of("adapter").adamw_rate, optim.of("decoder").adamw_rate) == (0.02, 0.001, 0.006)
