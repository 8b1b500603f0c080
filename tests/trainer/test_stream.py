from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from search_space.design import Design
from search_space.errors import UsageError
from search_space.layout import Batch, Sample
from tests.tiny import RECIPE, SIZE
from trainer.corpus import Corpus
from trainer.stream import Steps, TrainingSamples, heldout_batches, heldout_samples, interleave

DESIGN = Design.parse("mean-w32-causal-mlp-O0-n8")


def same(a: list[Sample], b: list[Sample]) -> bool:
    return len(a) == len(b) and all(
        (x.cuts, x.task, x.document) == (y.cuts, y.task, y.document) and np.array_equal(x.tokens, y.tokens)
        for x, y in zip(a, b, strict=True)
    )


def test_a_step_is_a_function_of_seed_and_number(corpus: Corpus) -> None:
    one, other = TrainingSamples(corpus.train, RECIPE, 3), TrainingSamples(corpus.train, RECIPE, 3)
    far = [other(s) for s in (40, 2, 11)]
    assert all(same(one(s), samples) for s, samples in zip((40, 2, 11), far, strict=True))
    assert not same(one(2), TrainingSamples(corpus.train, RECIPE, 4)(2))


def test_an_epoch_visits_every_piece_once(corpus: Corpus) -> None:
    samples = TrainingSamples(corpus.train, RECIPE, 0)
    steps = len(samples.documents) // RECIPE.pieces
    seen = np.concatenate([samples.pieces_of(s) for s in range(steps)])
    assert len(set(seen.tolist())) == len(seen) >= len(samples.documents) - RECIPE.pieces + 1
    second = np.concatenate([samples.pieces_of(s) for s in range(steps, 2 * steps)])
    assert not np.array_equal(seen, second)


def test_samples_are_stretches_of_their_documents(corpus: Corpus) -> None:
    samples = TrainingSamples(corpus.train, RECIPE, 0)
    for sample in samples(0) + samples(RECIPE.steps - 1):
        document = corpus.train[sample.document]
        windows = np.lib.stride_tricks.sliding_window_view(document, len(sample.tokens))
        assert (windows == sample.tokens).all(1).any()


def test_raw_tokens_count_what_the_batches_hold(corpus: Corpus) -> None:
    samples = TrainingSamples(corpus.train, RECIPE, 0)
    batches = islice(Steps(samples, DESIGN, SIZE, corpus.specials, 0), 5)
    assert samples.raw_tokens(5).tolist() == np.cumsum([b.raw_tokens for b in batches]).tolist()


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_workers_change_nothing(corpus: Corpus, workers: int) -> None:
    samples = TrainingSamples(corpus.train, RECIPE, 0)
    steps = Steps(samples, DESIGN, SIZE, corpus.specials, 3)

    def first(loader: DataLoader[Batch]) -> list[Batch]:
        return list(islice(loader, 5))

    alone = first(DataLoader(steps, batch_size=None))
    together = first(DataLoader(steps, batch_size=None, num_workers=workers))
    for a, b in zip(alone, together, strict=True):
        assert a.token_RT.equal(b.token_RT) and a.target_P.equal(b.target_P)


def test_designs_of_a_seed_read_and_score_the_same(corpus: Corpus) -> None:
    names = ["concat-w64-bidirectional-attn_mlp-O8-n4", "eos-w8-causal-mlp-O0-n8", "blind", "uncompressed"]
    samples = TrainingSamples(corpus.train, RECIPE, 1)
    for step in (0, RECIPE.steps - 1):
        base = next(iter(Steps(samples, DESIGN, SIZE, corpus.specials, step)))
        for name in names:
            other = next(iter(Steps(samples, Design.parse(name), SIZE, corpus.specials, step)))
            scored = [
                sorted(zip(b.document_P.tolist(), b.task_P.tolist(), b.target_P.tolist(), strict=True))
                for b in (base, other)
            ]
            assert scored[0] == scored[1]
            assert base.raw_tokens == other.raw_tokens


def test_heldout_set_is_fixed_and_outside_training(corpus: Corpus) -> None:
    sets = [heldout_samples(corpus.heldout, RECIPE) for _ in range(2)]
    for task, samples in sets[0].items():
        assert same(samples, sets[1][task])
        assert [s.document for s in samples] == [s.document for s in sets[0]["parallel"]]
    scored = sum(len(b.target_P) for b in heldout_batches(corpus, RECIPE, DESIGN, SIZE))
    documents = len(sets[0]["parallel"])
    assert scored == documents * (2 * RECIPE.piece + RECIPE.piece // 2)


@given(length=st.integers(16, 4096), span=st.integers(8, 1024), seed=st.integers(0, 99))
def test_interleaving_starts_wrapped_ends_raw_and_halves_the_tokens(length: int, span: int, seed: int) -> None:
    cuts = interleave(length, span, np.random.default_rng(seed))
    sample = Sample(np.zeros(length, np.int64), cuts, "continue", 0)
    segments = sample.segments()
    assert segments[0][2] and not segments[-1][2]
    assert all(b > a for a, b, _ in segments)
    raw = sum(b - a for a, b, wrapped in segments if not wrapped)
    assert 0.35 * length <= raw <= 0.65 * length


def test_too_small_a_corpus_is_refused(corpus: Corpus) -> None:
    with pytest.raises(UsageError, match="corpus.source"):
        TrainingSamples(corpus.train, replace(RECIPE, pieces=10**6), 0)
    with pytest.raises(UsageError, match="recipe.documents"):
        heldout_samples(corpus.heldout, replace(RECIPE, piece=10**6))
