"""Layouts: every sequence placed once, little padding, and the same text scored whatever the design."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from search_space.axes.adapter import ADAPTERS
from search_space.axes.pooling import POOLINGS
from search_space.axes.positions import Positions
from search_space.design import Design
from search_space.errors import UsageError
from search_space.layout import TASKS, Batch, Sample, lay_out
from search_space.transformer import Rows
from tests.search_space.cases import SPECIALS, make, mixture, positions, samples, tiny_designs

# --- rows -------------------------------------------------------------------------------------------------------------


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


SPAN = 512


def documents(kind: str, median: int, count: int, seed: int) -> list[Sample]:
    """Log-normal lengths (sigma 1) as on the web, from 16 to 65,536 tokens.

    `continue` interleaves wrapped and raw segments whose share of the document varies by 20%, `reconstruct` wraps whole
    documents, `spans` stretches of them.
    """
    rng = np.random.default_rng([seed, median])
    out = []
    for document, length in enumerate(rng.lognormal(np.log(median), 1, count).clip(16, 65_536).astype(int).tolist()):
        if kind == "continue":
            shares = np.cumsum(rng.uniform(0.8, 1.2, 2 * max(1, length // (2 * SPAN))))
            cuts = np.round(shares[:-1] / shares[-1] * length).astype(int).tolist()
            out.append(make("continue", length, tuple(cuts), document))
        else:
            span = SPAN if kind == "spans" else length
            out += [make("reconstruct", min(span, length - i), document=document) for i in range(0, length, span)]
    return out


def windows(ratios: tuple[int, ...]) -> list[Design]:
    """Every way to cut spans into encoder sequences."""
    return [
        Design(pooling, ratio, window, overlap, mask)
        for ratio in ratios
        for window in (16, 64, 256, 1024, 4096)
        for overlap in (sorted({0, 64, window // 4}) if ratio < window else [0])
        for mask in ("causal", "bidirectional")
        for pooling in ("mean", "eos")
        if ratio <= window
    ]


def assert_rows_are_full(samples: list[Sample], designs: list[Design]) -> None:
    """Less than 2% of the rows of every batch holds nothing, and the rows are not long for it on average."""
    empty: dict[str, list[float]] = {"encoder": [], "decoder": []}
    stretch: dict[str, list[float]] = {"encoder": [], "decoder": []}
    for design in designs:
        batch = lay_out(samples, design, SPECIALS, "spread")
        assert batch.encoder is not None
        for name, rows in (("encoder", batch.encoder.rows), ("decoder", batch.rows)):
            longest = int(torch.bincount(rows.segment_RT.flatten() + 1)[1:].max())
            empty[name].append(float((rows.segment_RT < 0).double().mean()))
            stretch[name].append(rows.segment_RT.shape[1] / longest)
            assert empty[name][-1] < 0.02, design.name
    for name in empty:
        print(
            f"{name}: {np.mean(empty[name]):.2%} empty, {max(empty[name]):.2%} at worst; "
            f"rows {np.mean(stretch[name]):.2f} times the longest sequence, {max(stretch[name]):.2f} at worst"
        )
        assert np.mean(stretch[name]) < 3


@pytest.mark.parametrize("kind", ["continue", "reconstruct", "spans"])
@pytest.mark.parametrize(("median", "ratios"), [(700, (4, 8, 16, 32)), (8000, (16,))])
def test_less_than_two_percent_of_every_batch_is_empty(kind: str, median: int, ratios: tuple[int, ...]) -> None:
    """16 documents: 16,000 to 400,000 raw tokens."""
    assert_rows_are_full(documents(kind, median, 16, seed=0), windows(ratios))


# --- what is scored -------------------------------------------------------------------------------------------------


def scored_by_hand(batch: list[Sample]) -> list[tuple[int, int, int, int]]:
    """(target, task, document, tokens after the span): raw segments once, or the whole span when it is asked for."""
    out = []
    for sample in batch:
        edges = [0, *sample.cuts, len(sample.tokens)]
        for i, (a, b) in enumerate(pairwise(edges)):
            asked = sample.task != "continue" and not sample.cuts
            scored = range(a, b) if asked else range(max(a, sample.quiet, 1), b) if i % 2 else ()
            for t in scored:
                since = t - max(a, sample.quiet)
                out.append((int(sample.tokens[t]), TASKS.index(sample.task), sample.document, since))
    return out


def columns(*tensors: Tensor) -> list[tuple[int, ...]]:
    return list(zip(*(t.tolist() for t in tensors), strict=True))


@settings(deadline=None)
@given(tiny_designs, samples(), positions)
def test_every_design_scores_the_same_text_in_the_same_order(
    design: Design, batch: list[Sample], where: Positions
) -> None:
    laid = lay_out(batch, design, SPECIALS, where)
    assert columns(laid.target_P, laid.task_P, laid.document_P, laid.offset_P) == scored_by_hand(batch)
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
    laid = lay_out(batch, design, SPECIALS, "spread")
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
        elif sample.task == "reconstruct" and not sample.cuts:
            expected += [(t, -1) for t in (SPECIALS.reconstruct, *sample.tokens[:-1].tolist())]
        assert [(t, j) for t, j, s in zip(token, latent, segment, strict=True) if s == number] == expected
    if laid.encoder is not None:
        assert len(laid.encoder.blocks.mask_LN) == next_latent


def numbered(batch: list[Sample]) -> list[Sample]:
    """The batch with no token twice."""
    ends = np.cumsum([len(s.tokens) for s in batch])
    return [replace(s, tokens=np.arange(end - len(s.tokens), end)) for s, end in zip(batch, ends, strict=True)]


@settings(deadline=None)
@given(tiny_designs.filter(lambda d: d.control == "none"), samples())
def test_every_wrapped_token_is_pooled_once(design: Design, batch: list[Sample]) -> None:
    """Core tokens in order, at most N to a latent; overlap is read but never pooled."""
    batch = numbered(batch)
    encoder = lay_out(batch, design, SPECIALS, "spread").encoder
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
    batch = lay_out([make("continue", 14, (5, 9))], Design("mean", 2, 4), SPECIALS, "spread")
    assert batch.rows.position_RT[0].tolist() == [0, 0, 2, 4, 4, 5, 6, 7, 8, 9, 9, 11, 13, 13]
    batch = lay_out([make("reconstruct", 5)], Design("mean", 2, 4), SPECIALS, "spread")
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
        encoder = lay_out([make("reconstruct", 4096)], Design(mask=mask, overlap=256), SPECIALS, "spread").encoder
        assert encoder is not None
        lengths = np.bincount(encoder.rows.segment_RT.flatten() + 1)[1:]
        assert lengths.max() == longest and len(lengths) == 4
        assert len(encoder.blocks.mask_LN) == 4096 // 16


def test_segments_alternate() -> None:
    sample = mixture()[0]
    assert sample.segments() == [(0, 9, True), (9, 14, False), (14, 25, True), (25, 29, False)]
    assert make("reconstruct", 3).segments() == [(0, 3, True)]


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tokens", np.zeros(9), "^tokens: float64"),
        ("tokens", np.zeros((3, 3), int), "^tokens: .* shape"),
        ("tokens", np.array(9), "^tokens: .* shape"),
        ("tokens", np.array([], int), "^tokens: .* shape"),
        ("task", "copy", "^task: 'copy' is not one of reconstruct, parallel, continue"),
        ("task", "parallel", "^cuts: parallel wraps all"),
        *[("cuts", c, "^cuts: .* 0 to 8") for c in [(0,), (9,), (12,), (-1, 4), (4, 4), (5, 3), (2, 4, 3), (0, 0, 4)]],
        ("quiet", 9, "^quiet: 9 leaves none"),
    ],
)
def test_a_sample_that_cannot_be_is_refused(field: str, value: Any, message: str) -> None:
    sample = make("continue", 9, (4, 6))
    with pytest.raises(UsageError, match=message):
        replace(sample, **{field: value})


def test_a_batch_without_samples_is_refused() -> None:
    with pytest.raises(UsageError, match="^samples: "):
        lay_out([], Design(), SPECIALS, "spread")


@pytest.mark.parametrize("kind", [np.uint8, np.int32])
def test_tokens_are_whole_numbers_of_any_kind(kind: type) -> None:
    """A corpus may be stored in fewer bits; the model reads and is scored on int64."""
    wide = mixture()
    narrow = [replace(s, tokens=s.tokens.astype(kind)) for s in wide]
    one, other = (lay_out(batch, Design("mean", 2, 4), SPECIALS, "spread") for batch in (wide, narrow))
    assert one.encoder is not None and other.encoder is not None
    assert other.token_RT.dtype == other.target_P.dtype == torch.int64
    assert one.token_RT.equal(other.token_RT) and one.target_P.equal(other.target_P)
    assert one.encoder.token_RT.equal(other.encoder.token_RT)
