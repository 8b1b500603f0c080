"""The published rules, number by number (paper section 3)."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from search_space.layout import Sample
from trainer import interleave
from trainer.interleave import Turn

seeds = st.integers(0, 10_000)
lengths = st.one_of(st.integers(16, 40_000), st.integers(16, 300), st.integers(16_380, 16_390))


def sizes(cuts: tuple[int, ...], length: int) -> tuple[list[int], list[int]]:
    """Of the wrapped segments and of the raw ones."""
    segments = Sample(np.zeros(length, np.int64), cuts, "continue", 0).segments()
    return [b - a for a, b, wrapped in segments if wrapped], [b - a for a, b, wrapped in segments if not wrapped]


@given(length=lengths, seed=seeds)
def test_a_document_is_half_raw_and_starts_wrapped(length: int, seed: int) -> None:
    wrapped, raw = sizes(interleave.document(length, np.random.default_rng(seed)), length)
    assert len(wrapped) == len(raw)  # starts wrapped, ends raw
    expected = length // 2 if length <= 16_384 else 8_192
    assert abs(sum(raw) - expected) <= len(raw)  # each cut is rounded


@given(length=lengths, seed=seeds)
def test_pairs_of_segments_grow_with_the_document(length: int, seed: int) -> None:
    wrapped, _ = sizes(interleave.document(length, np.random.default_rng(seed)), length)
    least, most = next(
        pairs
        for below, pairs in [(2048, (1, 1)), (4096, (1, 2)), (8192, (2, 4)), (16384, (4, 6)), (10**9, (4, 8))]
        if length < below
    )
    assert least <= len(wrapped) <= most


@given(length=st.integers(2048, 40_000), seed=seeds)
def test_shares_of_the_segments_of_a_document(length: int, seed: int) -> None:
    wrapped, raw = sizes(interleave.document(length, np.random.default_rng(seed)), length)
    assert min(*wrapped, *raw) >= 128
    if len(wrapped) > 1:
        assert 0.3 * sum(wrapped) - 2 <= wrapped[0] <= 0.4 * sum(wrapped) + 2
        assert 0.4 * sum(raw) - 2 <= raw[-1] <= 0.5 * sum(raw) + 2
        for rest in (wrapped[1:], raw[:-1]):
            assert max(rest) - 2 <= 1.2 / 0.8 * (min(rest) + 2)


def test_every_number_of_pairs_comes_up() -> None:
    seen = {len(interleave.document(20_000, np.random.default_rng(i))) // 2 + 1 for i in range(200)}
    assert seen == {4, 5, 6, 7, 8}


@st.composite
def chats(draw: st.DrawFn) -> tuple[list[Turn], int]:
    """Messages end to end."""
    messages, at = [], 0
    for _ in range(draw(st.integers(1, 6))):
        size = draw(st.one_of(st.integers(1, 40), st.integers(1, 2000)))
        messages.append((draw(st.sampled_from(["system", "user", "assistant", "tool"])), at, at + size))
        at += size
    return messages, at


def covered(cuts: tuple[int, ...], length: int) -> np.ndarray:
    """Whether each token is wrapped."""
    out = np.zeros(length, bool)
    for a, b, wrapped in Sample(np.zeros(length, np.int64), cuts, "continue", 0).segments():
        out[a:b] = wrapped
    return out


@given(chats(), seeds)
def test_a_chat_is_wrapped_message_by_message(chat: tuple[list[Turn], int], seed: int) -> None:
    messages, length = chat
    cuts = interleave.chat(messages, length, np.random.default_rng(seed))
    others = [m for m in messages if m[0] != "assistant"]
    assert bool(cuts) == (0 < len(others) < len(messages))
    if not cuts:  # no answer, or nothing else
        return
    wrapped = covered(cuts, length)
    for role, start, stop in messages:
        here, size = wrapped[start:stop], stop - start
        if role == "assistant":
            assert not here.any()
            continue
        assert here.mean() >= 0.8 - 2 / size
        if size < 32:
            assert here.all()
        edges = np.diff(np.concatenate([[False], here, [False]]).astype(int))
        assert (edges == 1).sum() <= (1 if size < 200 else 2 if size < 600 else 3)


def test_gaps_between_regions_are_five_percent_of_the_message() -> None:
    gaps, whole, regions = [], 0, set()
    for seed in range(400):
        cuts = interleave.chat([("user", 0, 1000), ("assistant", 1000, 1100)], 1100, np.random.default_rng(seed))
        wrapped = np.flatnonzero(covered(cuts, 1100))
        whole += len(wrapped) == 1000
        steps = np.diff(wrapped)
        regions.add(int((steps > 1).sum()) + 1)
        gaps += (steps[steps > 1] - 1).tolist()
    assert 160 <= whole <= 240  # with probability 0.5
    assert regions == {1, 2, 3} and min(gaps) >= 48 and max(gaps) <= 52


@given(length=st.integers(16, 4096), span=st.integers(8, 1024), seed=seeds)
def test_the_curriculum_starts_wrapped_ends_raw_and_halves_the_tokens(length: int, span: int, seed: int) -> None:
    cuts = interleave.curriculum(length, span, np.random.default_rng(seed))
    segments = Sample(np.zeros(length, np.int64), cuts, "continue", 0).segments()
    assert segments[0][2] and not segments[-1][2]
    assert all(b > a for a, b, _ in segments)
    assert all(one[2] != other[2] for one, other in pairwise(segments))
    assert 0.35 * length <= sum(b - a for a, b, wrapped in segments if not wrapped) <= 0.65 * length


def test_prompts_are_many_and_different() -> None:
    assert len(set(interleave.PROMPTS)) == len(interleave.PROMPTS) >= 20
