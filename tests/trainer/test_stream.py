from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from search_space.design import Design
from search_space.errors import UsageError
from search_space.layout import Batch, Sample
from tests.tiny import RECIPE, SIZE
from trainer import stream
from trainer.corpus import Corpus
from trainer.heldout import heldout_batches, heldout_samples
from trainer.recipe import Recipe
from trainer.stream import Microbatches, Piece, TrainingSamples

DESIGN = Design.parse("mean-w32-causal-mlp-O0-n8")
PUBLISHED = replace(RECIPE, format="published", piece=2048, pieces=2, continuation=0.6)


def same(a: list[Sample], b: list[Sample]) -> bool:
    return len(a) == len(b) and all(
        (x.cuts, x.task, x.document, x.quiet) == (y.cuts, y.task, y.document, y.quiet)
        and np.array_equal(x.tokens, y.tokens)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("recipe", [RECIPE, PUBLISHED], ids=["spans", "published"])
def test_a_step_is_a_function_of_seed_and_number(corpus: Corpus, recipe: Recipe) -> None:
    one, other = TrainingSamples(corpus, recipe, 3), TrainingSamples(corpus, recipe, 3)
    far = [other(s) for s in (40, 2, 11)]
    assert all(same(one(s), samples) for s, samples in zip((40, 2, 11), far, strict=True))
    assert not same(one(2), TrainingSamples(corpus, recipe, 4)(2))


def test_what_is_made_of_a_document_does_not_depend_on_the_step(corpus: Corpus) -> None:
    """The same piece in steps of another size is wrapped alike."""
    small, large = (TrainingSamples(corpus, replace(PUBLISHED, pieces=n), 3) for n in (2, 4))

    def key(sample: Sample) -> tuple[int, bytes]:
        return sample.document, sample.tokens[:64].tobytes()

    made = {key(s): s for step in range(8) for s in small(step)}
    shared = [s for s in large(0) if key(s) in made]
    assert shared and all(same([s], [made[key(s)]]) for s in shared)


def test_an_epoch_visits_every_piece_once(corpus: Corpus) -> None:
    samples = TrainingSamples(corpus, RECIPE, 0)
    tokens = int(sum(n - (n % RECIPE.piece) * (n % RECIPE.piece < 16) for n in corpus.train.lengths.tolist()))
    steps = -(-tokens // (RECIPE.piece * RECIPE.pieces))
    seen = Counter(p for s in range(2 * steps) for p in samples.pieces(s))
    assert set(seen.values()) == {1}
    first = {replace(p, epoch=0) for p in seen if p.epoch == 0}
    assert sum(p.length for p in first) == tokens
    pieces = [p for s in range(2 * steps) for p in samples.pieces(s)]
    order = [[(p.document, p.start) for p in pieces if p.epoch == epoch] for epoch in (0, 1)]
    assert order[0][:20] != order[1][:20]


def test_samples_are_stretches_of_their_documents(corpus: Corpus) -> None:
    samples = TrainingSamples(corpus, RECIPE, 0)
    for sample in samples(0) + samples(RECIPE.steps - 1):
        document = corpus.train[sample.document]
        windows = np.lib.stride_tricks.sliding_window_view(document, len(sample.tokens))
        assert (windows == sample.tokens).all(1).any()


def test_raw_tokens_are_those_of_the_pieces(corpus: Corpus) -> None:
    samples = TrainingSamples(corpus, RECIPE, 0)
    per_step = [sum(p.length for p in samples.pieces(s)) for s in range(30)]
    assert [samples.raw_tokens(s) for s in range(31)] == [0, *np.cumsum(per_step).tolist()]
    assert abs(np.mean(per_step) / (RECIPE.piece * RECIPE.pieces) - 1) < 0.05


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(step=st.integers(0, 200), ranks=st.integers(1, 4), accumulate=st.integers(1, 3))
def test_ranks_and_batches_share_a_step_without_loss_or_repeat(
    corpus: Corpus, step: int, ranks: int, accumulate: int
) -> None:
    samples = TrainingSamples(corpus, replace(RECIPE, pieces=16), 0)

    def key(sample: Sample) -> tuple[object, ...]:
        return sample.document, sample.cuts, sample.task, sample.tokens.tobytes()

    whole = Counter(key(s) for s in samples(step))
    parts = [samples(step, part, ranks * accumulate) for part in range(ranks * accumulate)]
    assert sum((Counter(key(s) for s in part) for part in parts), Counter()) == whole
    sizes = [sum(len(s.tokens) for s in part) for part in parts]
    assert min(sizes) > 0 and max(sizes) - min(sizes) <= RECIPE.piece


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_workers_change_nothing(corpus: Corpus, workers: int) -> None:
    samples = TrainingSamples(corpus, RECIPE, 0)
    steps = Microbatches(samples, DESIGN, SIZE, corpus.specials, 3, accumulate=2)

    def first(loader: DataLoader[Batch]) -> list[Batch]:
        return list(islice(loader, 5))

    alone = first(DataLoader(steps, batch_size=None))
    together = first(DataLoader(steps, batch_size=None, num_workers=workers))
    for a, b in zip(alone, together, strict=True):
        assert a.token_RT.equal(b.token_RT) and a.target_P.equal(b.target_P)


@pytest.mark.parametrize("recipe", [RECIPE, PUBLISHED], ids=["spans", "published"])
def test_designs_of_a_seed_read_and_score_the_same(corpus: Corpus, recipe: Recipe) -> None:
    names = ["concat-w64-bidirectional-attn_mlp-O8-n4", "eos-w8-causal-mlp-O0-n8", "blind", "uncompressed"]
    samples = TrainingSamples(corpus, recipe, 1)
    for step in (0, recipe.steps - 1):
        base = next(iter(Microbatches(samples, DESIGN, SIZE, corpus.specials, step)))
        for name in names:
            other = next(iter(Microbatches(samples, Design.parse(name), SIZE, corpus.specials, step)))
            scored = [
                sorted(zip(*(t.tolist() for t in (b.document_P, b.task_P, b.target_P, b.offset_P)), strict=True))
                for b in (base, other)
            ]
            assert scored[0] == scored[1]


def test_published_samples_wrap_or_ask(corpus: Corpus) -> None:
    samples = TrainingSamples(corpus, PUBLISHED, 0)
    made = [s for step in range(20) for s in samples(step)]
    asked = [s for s in made if s.task == "reconstruct"]
    assert asked and len(asked) < len(made)
    questions = set()
    for sample in asked:
        (length,) = sample.cuts
        assert np.array_equal(sample.tokens[:length], sample.tokens[sample.quiet :])
        questions.add(corpus.tokenizer.decode(sample.tokens[length : sample.quiet].tolist()).strip())
    assert len(questions) > 5
    assert questions <= set(stream.interleave.PROMPTS)


# --- mixtures --------------------------------------------------------------------------------------------------------


def test_a_mixture_is_a_share_of_tokens(two_sources: Corpus) -> None:
    recipe = replace(RECIPE, pieces=8, mixture={"a": 3.0, "b": 1.0})
    samples = TrainingSamples(two_sources, recipe, 0)
    tokens = Counter[int]()
    for step in range(100):
        for piece in samples.pieces(step):
            tokens[int(two_sources.train.source[piece.document])] += piece.length
    assert tokens[0] / sum(tokens.values()) == pytest.approx(0.75, abs=0.01)


def test_without_a_mixture_sources_count_by_their_size(two_sources: Corpus) -> None:
    samples = TrainingSamples(two_sources, replace(RECIPE, pieces=8), 0)
    seen = Counter[tuple[int, int, int]]()
    steps = int(two_sources.train.lengths.sum()) // (RECIPE.piece * 8) - 1
    for step in range(steps):
        seen.update((p.document, p.start, p.epoch) for p in samples.pieces(step))
    assert max(seen.values()) == 1 and {e for _, _, e in seen} == {0}


def test_every_epoch_of_a_source_is_shuffled_once(two_sources: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes seconds where a source is large; also where a run reads on from an epoch long gone."""
    shuffled, original = Counter[tuple[int, int]](), stream.Source._shuffled

    def count(source: stream.Source, epoch: int) -> object:
        shuffled[id(source), epoch] += 1
        return original(source, epoch)

    monkeypatch.setattr(stream.Source, "_shuffled", count)
    monkeypatch.setattr(two_sources.train, "orders", {})
    recipe = replace(RECIPE, pieces=8, mixture={"a": 1.0, "b": 1.0})
    samples = TrainingSamples(two_sources, recipe, 0, {"a": 10, "b": 20})
    steps = 4 * int(two_sources.train.lengths.sum()) // (RECIPE.piece * 8)
    for step in range(steps):
        samples.pieces(step)
        samples.raw_tokens(step)
    assert len(shuffled) > 6 and set(shuffled.values()) == {1}


def test_a_source_that_is_not_there_is_named(two_sources: Corpus) -> None:
    with pytest.raises(UsageError, match=r"^recipe\.mixture: 'web' is not one of a, b"):
        TrainingSamples(two_sources, replace(RECIPE, mixture={"web": 1.0}), 0)


def test_more_parts_than_pieces_are_refused(corpus: Corpus) -> None:
    samples = TrainingSamples(corpus, RECIPE, 0)
    with pytest.raises(UsageError, match=r"^parallel\.accumulate: 2 batches on each of 2 ranks"):
        Microbatches(samples, DESIGN, SIZE, corpus.specials, 0, accumulate=2, ranks=2)


def test_a_large_source_is_shuffled_shard_by_shard(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents that are read together lie in few shards, and every piece still comes once an epoch."""
    split = corpus.train
    monkeypatch.setattr(stream, "MIXED", 0)
    monkeypatch.setattr(stream, "SHARDS_AT_ONCE", 2)
    monkeypatch.setattr(split, "shard", np.arange(len(split)) // 3)
    source = stream.Source(split, 0, RECIPE.piece, seed=0)
    pieces = list(source.between(0, source.tokens))
    assert len(set(pieces)) == len(pieces) and sum(p.length for p in pieces) == source.tokens
    shards = [int(split.shard[p.document]) for p in pieces]
    runs = [shards[0]]
    groups: list[set[int]] = [set()]
    for shard in shards:
        if len(groups[-1] | {shard}) > 2:
            groups.append(set())
        groups[-1].add(shard)
        runs.append(shard)
    assert len(groups) == -(-len(set(shards)) // 2)  # two at a time, then never again
    assert [p.document for p in pieces] != sorted(p.document for p in pieces)


def test_pieces_between_any_two_places_join_up(corpus: Corpus) -> None:
    source = stream.Source(corpus.train, 0, RECIPE.piece, seed=0)
    stop = source.tokens * 2 + 1000
    whole: list[Piece] = list(source.between(0, stop))
    for cut in (1, 777, source.tokens - 1, source.tokens, source.tokens + 1, stop - 1):
        assert [*source.between(0, cut), *source.between(cut, stop)] == whole
        assert source.seen(cut) == sum(p.length for p in source.between(0, cut))


# --- held out --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [RECIPE, PUBLISHED], ids=["spans", "published"])
def test_heldout_set_is_fixed_and_outside_training(corpus: Corpus, recipe: Recipe) -> None:
    sets = [heldout_samples(corpus, recipe) for _ in range(2)]
    for task, samples in sets[0].items():
        assert same(samples, sets[1][task])
        assert [s.document for s in samples] == [s.document for s in sets[0]["parallel"]]


def test_heldout_tokens_are_scored_once(corpus: Corpus) -> None:
    scored = sum(len(b.target_P) for b in heldout_batches(corpus, RECIPE, DESIGN, SIZE))
    documents = len(heldout_samples(corpus, RECIPE)["parallel"])
    assert scored == documents * (2 * RECIPE.piece + RECIPE.piece // 2)


def test_ranks_score_every_heldout_document(corpus: Corpus) -> None:
    def documents(batches: list[Batch]) -> set[tuple[int, int]]:
        return {pair for b in batches for pair in zip(b.task_P.tolist(), b.document_P.tolist(), strict=True)}

    whole = heldout_batches(corpus, RECIPE, DESIGN, SIZE)
    shares = [heldout_batches(corpus, RECIPE, DESIGN, SIZE, rank, 4) for rank in range(4)]
    assert len({len(s) for s in shares}) == 1
    assert set.union(*(documents(s) for s in shares)) == documents(whole)


def test_too_small_a_corpus_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="corpus.source"):
        TrainingSamples(corpus, replace(RECIPE, pieces=10**6), 0)
    with pytest.raises(UsageError, match="recipe.documents"):
        heldout_samples(corpus, replace(RECIPE, piece=10**6))


def test_of_a_chat_the_answers_are_scored(two_sources: Corpus) -> None:
    samples = TrainingSamples(two_sources, replace(PUBLISHED, continuation=1.0, mixture={"b": 1.0}), 0)
    split, special = two_sources.train, two_sources.tokenizer.token_to_id("<|im_start|>")
    made = [s for step in range(6) for s in samples(step) if s.document in np.flatnonzero(split.chat)]
    assert made and any(s.tokens[0] == special for s in made)
    for sample in made:
        if len(sample.tokens) < split.lengths[sample.document]:
            continue
        wrapped = np.zeros(len(sample.tokens), bool)
        for start, stop, is_wrapped in sample.segments():
            wrapped[start:stop] = is_wrapped
        for role, start, stop in split.messages(sample.document):
            assert wrapped[start:stop].any() == (role != "assistant")
