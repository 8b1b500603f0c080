"""The recorded table is whole, a replay spends what the table says, and the answer is the grid's."""

import json
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lclab.__main__ import app
from lclab.bench.engine import driven, real
from lclab.bench.recorded import CONFIG, TABLE, Recorded, record
from lclab.bench.sweep import PRUNERS, SAMPLERS, Replay, Search, replay, searches, summary
from search_space.errors import UsageError
from search_space.space import Space
from sweeps.config import SweepConfig
from tests.tiny import RECIPE, SIZE
from trainer.corpus import Corpus
from trainer.prepare import CorpusConfig

RECORDED = Recorded.load(TABLE)
QUICK = replace(RECIPE, steps=2)


def tiny(corpus: Corpus) -> SweepConfig:
    space = Space(pooling=["mean", "concat"], ratio=[4], window=[16])
    where = CorpusConfig(str(corpus.folder), vocab=corpus.vocab)
    return replace(CONFIG, space=space, baseline="mean-w16-causal-mlp-O0-n4", size=SIZE, recipe=QUICK, corpus=where)


def test_the_table_has_every_design_with_every_seed_at_every_rung() -> None:
    assert RECORDED.designs == [design.name for design in CONFIG.space.members()]
    shape = (len(RECORDED.designs), RECORDED.seeds, len(CONFIG.recipe.rungs))
    assert RECORDED.seeds >= 2 and RECORDED.loss_DSR.shape == RECORDED.seconds_DSR.shape == shape
    assert RECORDED.documents_DSRH.shape == (*shape, CONFIG.recipe.documents)
    assert np.isfinite(RECORDED.loss_DSR).all() and (RECORDED.seconds_DSR > 0).all()
    np.testing.assert_allclose(RECORDED.documents_DSRH.mean(-1), RECORDED.loss_DSR, atol=2e-4)
    assert (RECORDED.tokens_DSR == RECORDED.tokens_DSR[:1]).all() and (np.diff(RECORDED.tokens_DSR) > 0).all()


def test_designs_differ_by_more_than_seeds_do_and_the_best_have_contenders() -> None:
    assert RECORDED.truth_D.std() > 2 * RECORDED.sigma
    assert 2 <= RECORDED.contenders < len(RECORDED.designs) / 4


def test_a_table_that_lacks_a_trial_is_refused(tmp_path: Path) -> None:
    whole = pq.read_table(TABLE)
    pq.write_table(whole.slice(1), tmp_path / "cut.parquet")
    with pytest.raises(UsageError, match="table: .*cut.parquet has"):
        Recorded.load(tmp_path / "cut.parquet")
    (tmp_path / "text.parquet").write_text("not a table")
    with pytest.raises(UsageError, match="--record makes one"):
        Recorded.load(tmp_path / "text.parquet")


def test_a_recording_is_a_table_and_goes_on_where_it_was(corpus: Corpus, tmp_path: Path) -> None:
    config = replace(tiny(corpus), seeds=1)
    first = Recorded.load(record(tmp_path, config=config))
    assert first.loss_DSR.shape == (2, 1, 2) and first.documents_DSRH.shape == (2, 1, 2, RECIPE.documents)
    again = Recorded.load(record(tmp_path, config=replace(config, seeds=2)))
    assert again.loss_DSR.shape == (2, 2, 2)
    np.testing.assert_array_equal(again.loss_DSR[:, :1], first.loss_DSR)
    np.testing.assert_array_equal(again.seconds_DSR[:, :1], first.seconds_DSR)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("pruner", PRUNERS)
def test_a_replay_is_determined_by_its_seed(sampler: str, pruner: str) -> None:
    search = Search(sampler, pruner, trials=16)
    first = replay(search, RECORDED, 3)
    assert first == replay(search, RECORDED, 3)
    assert 0 < first.spent < 1 and (first.reached == inf or first.reached <= first.spent)
    assert first.right == (first.regret <= RECORDED.noise)


def test_replays_differ() -> None:
    assert len({replay(Search("random", "none", trials=8), RECORDED, seed) for seed in range(4)}) == 4


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), workers=st.integers(1, 4))
def test_the_grid_costs_the_grid(seed: int, workers: int) -> None:
    found = replay(Search("grid", "none"), RECORDED, seed, workers)
    assert found.spent == pytest.approx(1) and not 1.001 < found.reached < inf


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), pruner=st.sampled_from(PRUNERS[1:]))
def test_a_pruned_grid_costs_less(seed: int, pruner: str) -> None:
    found = replay(Search("grid", pruner), RECORDED, seed)
    first, all_of_it = RECORDED.seconds_DSR[..., :2].sum(), RECORDED.seconds_DSR.sum()
    assert 0.9 * first / all_of_it < found.spent < 1


def test_every_second_of_the_table_is_counted_once() -> None:
    """A grid of all rungs, or of the last one alone, is as long."""
    alone, all_rungs = (replay(Search("grid", "none", rungs), RECORDED, 0) for rungs in ((1.0,), (0.25, 0.5, 1.0)))
    assert alone.spent == pytest.approx(all_rungs.spent)
    with pytest.raises(UsageError, match="rungs"):
        replay(Search("grid", "none", (0.3, 1.0)), RECORDED, 0)


def test_a_sweep_that_never_gets_there_counts_as_a_grid() -> None:
    rows = [Replay(0.1, 0.5, 0.0, True), Replay(inf, 0.5, 1.0, False), Replay(1.2, 1.5, 0.0, True)]
    found = summary(Search("tpe", "none"), rows)
    assert (found.median, found.most, found.never) == (inf, inf, pytest.approx(2 / 3))
    assert found.mean == pytest.approx((0.1 + 1 + 1) / 3)


def test_the_driver_is_measured_at_every_size() -> None:
    found = driven("random", "memory", 120)
    assert 120 < found.events <= 240 and found.seconds > 0 and set(found.at) == {100}
    assert driven("tpe", "sqlite", 6).at == {}


@pytest.mark.slow
def test_trials_on_ray_are_measured(corpus: Corpus, tmp_path: Path) -> None:
    found = real(replace(tiny(corpus), workers=2), corpus, tmp_path, trials=3)
    assert found.trials == 4 and found.handover > 0 and found.ratio == found.wall / found.training > 1


def test_bench_sweep_prints_every_search() -> None:
    command = ["bench", "sweep", "--seeds", "1", "--trials", "4"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert [row["search"] for row in found["searches"]] == [search.name for search in searches(4)]
    assert found["table"]["designs"] == len(RECORDED.designs) and 0 < found["table"]["sigma"] < found["table"]["spread"]
    shown = CliRunner().invoke(app, command)
    assert all(words in shown.output for words in ("tpe halving", "grid cutoff", "within noise"))
