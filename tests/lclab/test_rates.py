"""The search for the best learning rate finds the bottom of a valley, and trains every rate of every size."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lclab.bench.rates import best_rates, vertex
from search_space.design import Design
from tests.tiny import RECIPE, SIZE
from trainer.corpus import Corpus
from trainer.optim import OptimConfig, PartConfig

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


@given(best=st.floats(0.5, 2.0), steepness=st.floats(0.01, 10.0))
def test_the_bottom_of_a_parabola_is_found(best: float, steepness: float) -> None:
    losses = {f: 3 + steepness * math.log2(f / best) ** 2 for f in FACTORS}
    assert vertex(losses) == pytest.approx(best)


@pytest.mark.parametrize("best", [0.1, 8.0])
def test_a_valley_outside_the_factors_is_not_found(best: float) -> None:
    assert math.isnan(vertex({f: math.log2(f / best) ** 2 for f in FACTORS}))


def test_a_rate_beside_the_best_that_diverged_leaves_it_open() -> None:
    assert math.isnan(vertex({0.5: 3.0, 1.0: 2.0, 2.0: math.inf}))


def test_rates_of_parts_are_multiplied_with_the_rest() -> None:
    config = OptimConfig(adapter=PartConfig(adamw_rate=1e-3), encoder=PartConfig(muon_rate=0.0))
    twice = config.times(2.0)
    assert (twice.of("adapter").adamw_rate, twice.of("adapter").muon_rate) == (2e-3, 2 * config.muon_rate)
    assert twice.of("encoder").muon_rate == 0 and twice.of("decoder").adamw_rate == 2 * config.adamw_rate
    assert twice.times(0.5) == config


def test_every_rate_of_every_size_is_trained(corpus: Corpus, tmp_path: Path) -> None:
    design, recipe = Design.parse("mean-w32-causal-mlp-O0-n8"), replace(RECIPE, steps=4)
    sizes = [SIZE, replace(SIZE, silent_encoder=False)]
    found = list(best_rates(design, sizes, recipe, corpus.folder, tmp_path, (1.0, 2.0)))
    assert [f.size for f in found] == sizes
    losses = [loss for f in found for loss in f.losses.values()]
    assert len(losses) == len(set(losses)) == 4
