"""Layouts: every sequence placed once, little padding, and the same text scored whatever the design."""

from collections import Counter
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from search_space.axes.adapter import ADAPTERS
from search_space.axes.pooling import POOLINGS
from search_space.design import Design
from search_space.layout import TASKS, Batch, Positions, Sample, lay_out, pack
from search_space.transformer import Rows
from tests.search_space.cases import SPECIALS, make, mixture, positions, samples, tiny_designs

lengths_of_anything = st.lists(st.integers(1, 50), min_size=1, max_size=60)


# --- packing --------------------------------------------------------------------------------------------------------


@given(lengths_of_anything)
@example([1])
@example([7] * 5)
@example([50, 1, 1, 1])
def test_pack_places_every_sequence_once(lengths: list[int]) -> None:
    """Inside the rows, without overlap, in no row more than needed; and never worse than no packing at all."""
    row, offset, capacity = pack(np.array(lengths))
    rows = int(row.max()) + 1
    taken = np.zeros((rows, capacity), int)
    for r, first, length in zip(row, offset, lengths, strict=True):
        assert first >= 0 and first + length <= capacity
        taken[r, first : first + length] += 1
    assert taken.max() == 1 and taken.sum() == sum(lengths)
    assert taken.any(1).all()
    assert rows * capacity <= len(lengths) * max(lengths)


@given(st.integers(1, 40), st.integers(1, 40))
def test_pack_of_equal_lengths_wastes_nothing(length: int, count: int) -> None:
    row, _, capacity = pack(np.full(count, length))
    assert capacity == length and sorted(row) == list(range(count))


@given(lengths_of_anything)
def test_pack_repeats_itself(lengths: list[int]) -> None:
    one, two = pack(np.array(lengths)), pack(np.array(lengths))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def row_kinds(batch: Batch) -> list[Rows]:
    """The encoder's, the latents' and the decoder's rows, as far as the design has them."""
    out = [batch.rows]
    if batch.encoder is not None:
        out.append(batch.encoder.rows)
        if batch.encoder.spans is not None:
            out.append(batch.encoder.spans.rows)
    return out


@settings(deadline=None)
@given(tiny_designs, samples(), positions)
def test_alone_says_that_rows_are_single_full_segments(design: Design, batch: list[Sample], where: Positions) -> None:
    for rows in row_kinds(lay_out(batch, design, SPECIALS, where)):
        single = all(len(set(row)) == 1 and row[0] >= 0 for row in rows.segment_RT.tolist())
        assert rows.alone == single


@settings(deadline=None)
@given(tiny_designs, samples(), positions)
def test_segments_are_unbroken(design: Design, batch: list[Sample], where: Positions) -> None:
    """Causal attention goes by place in the row: a segment must be one stretch of one row."""
    for rows in row_kinds(lay_out(batch, design, SPECIALS, where)):
        seen: Counter[int] = Counter()
        for row in rows.segment_RT.tolist():
            changes = [number for i, number in enumerate(row) if i == 0 or row[i - 1] != number]
            seen.update(number for number in changes if number >= 0)
        assert set(seen) == set(range(len(seen))) and max(seen.values()) == 1


def padding(rows: Rows) -> tuple[int, int]:
    """Empty positions and all positions."""
    return int((rows.segment_RT < 0).sum()), rows.segment_RT.numel()


def documents(median: int, count: int, seed: int) -> list[Sample]:
    """Log-normal lengths (sigma 1) as on the web; wrapped and raw segments alternate, ending raw."""
    rng = np.random.default_rng(seed)
    out = []
    for document in range(count):
        length = max(128, int(rng.lognormal(np.log(median), 1.0)))
        pairs = int(np.clip(length // 2048, 1, 4))
        edges = np.linspace(0, length, 2 * pairs + 1)[1:-1] + rng.integers(-16, 17, 2 * pairs - 1)
        out.append(make("continue", length, tuple(int(e) for e in edges), document, seed))
    return out


PADDED = [
    "mean-w1024-causal-mlp-O0",
    "mean-w1024-bidirectional-mlp-O256",
    "mean-w1024-causal-attn_mlp-O256-n4",
    "concat-w256-causal-mlp-O0",
    "mean-w16-causal-mlp-O0",
    "eos-w1024-bidirectional-mlp_attn-O32",
    "uncompressed",
]


@cache
def padding_shares(median: int, count: int) -> dict[str, tuple[float, float]]:
    """Share of encoder and of decoder positions that hold nothing, by design, over four steps of `count` documents."""
    shares = {}
    steps = [documents(median, count, seed) for seed in range(4)]
    for name in PADDED:
        encoder, decoder = np.zeros(2, int), np.zeros(2, int)
        for step in steps:
            batch = lay_out(step, Design.parse(name), SPECIALS)
            decoder += padding(batch.rows)
            if batch.encoder is not None:
                encoder += padding(batch.encoder.rows)
        shares[name] = (float(encoder[0] / max(1, encoder[1])), float(decoder[0] / decoder[1]))
        print(
            f"median {median}, {count} documents, {name}: encoder {shares[name][0]:.2%}, decoder {shares[name][1]:.2%}"
        )
    return shares


@pytest.mark.parametrize("median", [700, 8000])
def test_encoder_padding_is_below_five_percent(median: int) -> None:
    assert max(encoder for encoder, _ in padding_shares(median, 128).values()) < 0.05


@pytest.mark.parametrize(("median", "count"), [(700, 128), (8000, 128), (700, 32), (8000, 32)])
def test_padding_is_below_five_percent(median: int, count: int) -> None:
    """Encoder and decoder, steps of about 0.15, 1.7, 0.04 and 0.4 million raw tokens."""
    assert max(max(shares) for shares in padding_shares(median, count).values()) < 0.05


# --- what is scored -------------------------------------------------------------------------------------------------


def scored_by_hand(batch: list[Sample]) -> list[tuple[int, int, int]]:
    """(target, task, document): raw segments once, or the whole span when it is asked for."""
    out = []
    for sample in batch:
        edges = [0, *sample.cuts, len(sample.tokens)]
        for i, (a, b) in enumerate(pairwise(edges)):
            if i % 2 == 1 or sample.task != "continue":
                out += [(int(t), TASKS.index(sample.task), sample.document) for t in sample.tokens[a:b]]
    return out


def columns(*tensors: Tensor) -> list[tuple[int, ...]]:
    return list(zip(*(t.tolist() for t in tensors), strict=True))


@settings(deadline=None)
@given(tiny_designs, samples(), positions)
def test_every_design_scores_the_same_text_in_the_same_order(
    design: Design, batch: list[Sample], where: Positions
) -> None:
    laid = lay_out(batch, design, SPECIALS, where)
    assert columns(laid.target_P, laid.task_P, laid.document_P) == scored_by_hand(batch)
    assert laid.raw_tokens == sum(len(s.tokens) for s in batch)
    assert len(set(laid.place_P.tolist())) == len(laid.place_P)


@settings(deadline=None)
@given(tiny_designs, samples(), positions)
def test_what_is_scored_stands_before_its_target(design: Design, batch: list[Sample], where: Positions) -> None:
    """`continue`: the next place of the row holds the target, as a token and in the same segment."""
    laid = lay_out(batch, design, SPECIALS, where)
    token, latent, segment = (t.flatten() for t in (laid.token_RT, laid.latent_RT, laid.rows.segment_RT))
    for place, target, task in columns(laid.place_P, laid.target_P, laid.task_P):
        if TASKS[task] == "continue":
            assert (token[place + 1], latent[place + 1], segment[place + 1]) == (target, -1, segment[place])


@settings(deadline=None)
@given(tiny_designs, samples())
def test_decoder_text(design: Design, batch: list[Sample]) -> None:
    """The decoder's sequence of each sample, written out: tags, latents in order, raw text, what is asked for."""
    laid = lay_out(batch, design, SPECIALS)
    token, latent, segment = (t.flatten().tolist() for t in (laid.token_RT, laid.latent_RT, laid.rows.segment_RT))
    next_latent = 0
    for number, sample in enumerate(batch):
        expected: list[tuple[int, int]] = []
        for a, b, wrapped in sample.segments():
            text = [(int(t), -1) for t in sample.tokens[a:b]]
            if wrapped and design.control != "uncompressed":
                count = 0 if design.control == "blind" else -(-(b - a) // design.ratio)
                text = [(SPECIALS.memory, next_latent + j) for j in range(count)]
                next_latent += count
            expected += [(SPECIALS.memory_start, -1), *text, (SPECIALS.memory_end, -1)] if wrapped else text
        if sample.task == "parallel":
            expected += [(SPECIALS.mask, -1)] * len(sample.tokens)
        elif sample.task == "reconstruct":
            expected += [(t, -1) for t in (SPECIALS.reconstruct, *sample.tokens[:-1].tolist())]
        assert [(t, j) for t, j, s in zip(token, latent, segment, strict=True) if s == number] == expected
    if laid.encoder is not None:
        assert len(laid.encoder.blocks.mask_LN) == next_latent


@settings(deadline=None)
@given(tiny_designs.filter(lambda d: d.control == "none"), samples())
def test_every_wrapped_token_is_pooled_once(design: Design, batch: list[Sample]) -> None:
    """Core tokens in order, at most N to a latent; overlap is read but never pooled."""
    encoder = lay_out(batch, design, SPECIALS).encoder
    assert encoder is not None
    pooled = encoder.token_RT.flatten()[encoder.blocks.tokens_LN][encoder.blocks.mask_LN]
    wrapped = [int(t) for s in batch for a, b, w in s.segments() if w for t in s.tokens[a:b]]
    assert pooled.tolist() == wrapped
    phase = encoder.phase_RT.flatten()[encoder.blocks.tokens_LN]
    slots = np.broadcast_to(np.arange(design.ratio), phase.shape)
    assert (phase.numpy() == slots)[encoder.blocks.mask_LN.numpy()].all()
    markers = encoder.token_RT.flatten()[encoder.blocks.markers_L]
    assert markers.tolist() == [SPECIALS.memory] * (len(phase) if POOLINGS[design.pooling].markers else 0)
    assert (encoder.spans is not None) == ADAPTERS[design.adapter].attention


def test_spread_positions_of_the_decoder() -> None:
    """A latent stands at its block's first token, tags at the ends of the span, raw text at its own place."""
    batch = lay_out([make("continue", 14, (5, 9))], Design("mean", 2, 4), SPECIALS)
    assert batch.rows.position_RT[0].tolist() == [0, 0, 2, 4, 4, 5, 6, 7, 8, 9, 9, 11, 13, 13]
    batch = lay_out([make("reconstruct", 5)], Design("mean", 2, 4), SPECIALS)
    assert batch.rows.position_RT[0].tolist() == [0, 0, 2, 4, 4, 0, 1, 2, 3, 4]
    batch = lay_out([make("reconstruct", 5)], Design("mean", 2, 4), SPECIALS, "consecutive")
    assert batch.rows.position_RT[0].tolist() == list(range(10))


def test_windows_and_their_positions() -> None:
    """W=4, O=2 over ten tokens, markers behind the right overlap; positions restart at each window."""
    sample = make("reconstruct", 10)
    design = Design("eos", 2, 4, 2, "bidirectional")
    expected = {
        "spread": [[0, 1, 2, 3, 4, 5, 1, 3], [0, 1, 2, 3, 4, 5, 6, 7, 3, 5], [0, 1, 2, 3, 3]],
        "consecutive": [list(range(8)), list(range(10)), list(range(5))],
    }
    text = [[*range(6), None, None], [*range(2, 10), None, None], [6, 7, 8, 9, None]]
    for where in ("spread", "consecutive"):
        encoder = lay_out([sample], design, SPECIALS, where).encoder
        assert encoder is not None
        for number in range(3):
            here = encoder.rows.segment_RT == number
            assert encoder.rows.position_RT[here].tolist() == expected[where][number]
            tokens = [SPECIALS.memory if i is None else int(sample.tokens[i]) for i in text[number]]
            assert encoder.token_RT[here].tolist() == tokens


def test_published_cost_of_overlap() -> None:
    """W=1024, O=256: 1,536 tokens in an interior bidirectional window, 1,280 in a causal one."""
    for mask, longest in (("bidirectional", 1536), ("causal", 1280)):
        encoder = lay_out([make("reconstruct", 4096)], Design(mask=mask, overlap=256), SPECIALS).encoder
        assert encoder is not None
        lengths = np.bincount(encoder.rows.segment_RT.flatten() + 1)[1:]
        assert lengths.max() == longest and len(lengths) == 4
        assert len(encoder.blocks.mask_LN) == 4096 // 16


def test_segments_alternate() -> None:
    sample = mixture()[0]
    assert sample.segments() == [(0, 9, True), (9, 14, False), (14, 25, True), (25, 29, False)]
    assert make("reconstruct", 3).segments() == [(0, 3, True)]
