"""From samples that all designs share to the index tensors of one design.

A `Sample` knows raw tokens, which stretches of them are wrapped, and the task; nothing of any design. `lay_out`
turns the samples of a step into a `Batch`: windows with their overlap packed into encoder rows, blocks to pool,
latents in spans, and decoder rows in which latents stand in place of wrapped tokens. Everything that depends on
lengths is decided here, in NumPy on the host, so that the model's forward pass has no loop and no branch on data.

Shapes: R rows, T positions of a row, L latents, N ratio, P scored positions.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search_space.axes.adapter import ADAPTERS, LatentRows
from search_space.axes.pooling import POOLINGS, Blocks
from search_space.design import Design
from search_space.transformer import Rows

__all__ = ["TASKS", "Batch", "Positions", "Sample", "Specials", "Task", "lay_out", "pack"]

Ints = NDArray[np.int64]
Task = Literal["reconstruct", "parallel", "continue"]
TASKS: tuple[Task, ...] = ("reconstruct", "parallel", "continue")
Positions = Literal["spread", "consecutive"]


@dataclass(frozen=True)
class Specials:
    """Ids of the special tokens (paper section 1, and two of ours for reconstruction)."""

    memory_start: int
    memory_end: int
    memory: int
    reconstruct: int
    mask: int


@dataclass(frozen=True)
class Sample:
    """One stretch of a document and what to do with it, the same for every design.

    tokens: raw token ids.
    cuts: inner boundaries; segments alternate wrapped, raw, ..., starting wrapped. No cut wraps all.
    task: `continue` scores the raw segments; `reconstruct` wraps all and scores its tokens again, each after
        its predecessors; `parallel` does so with every decoder input masked, so that only latents can help.
    document: whose tokens these are.
    """

    tokens: Ints
    cuts: tuple[int, ...]
    task: Task
    document: int

    def segments(self) -> list[tuple[int, int, bool]]:
        """(start, stop, wrapped) in order."""
        edges = (0, *self.cuts, len(self.tokens))
        return [(a, b, i % 2 == 0) for i, (a, b) in enumerate(pairwise(edges))]


@dataclass
class EncoderInputs:
    rows: Rows
    token_RT: Tensor
    phase_RT: Tensor  # place of the token in its block, -1 where it has none
    blocks: Blocks
    spans: LatentRows | None


@dataclass
class Batch:
    """Everything the model reads of one step; `raw_tokens` is what all designs count progress in."""

    encoder: EncoderInputs | None
    rows: Rows
    token_RT: Tensor
    latent_RT: Tensor  # which latent stands here, -1 for a token
    phase_RT: Tensor
    place_P: Tensor  # scored positions of the flattened decoder rows
    target_P: Tensor
    task_P: Tensor  # index into TASKS
    document_P: Tensor
    raw_tokens: int


def lay_out(samples: list[Sample], design: Design, specials: Specials, positions: Positions = "spread") -> Batch:
    """The batch of `samples` for `design`.

    `positions` says where a latent stands for the decoder: `consecutive` as published, or `spread` at the place
    of its block, with reconstruction starting again at the span's own positions.
    """
    spans = [s.tokens[a:b] for s in samples for a, b, wrapped in s.segments() if wrapped]
    has_encoder = design.control not in ("uncompressed", "blind")
    encoder = _encoder_inputs(spans, design, specials, positions) if has_encoder else None
    return _decoder_inputs(samples, encoder, design, specials, positions)


def pack(lengths: Ints) -> tuple[Ints, Ints, int]:
    """Sequences into rows of one length: row and offset of each, and the row length.

    Best fit in decreasing order. Of row lengths from the longest sequence to four times that, it is the shortest that
    wastes under 1.5%, since attention pays for length, else the one that wastes least. Tried are those that some
    number of rows fills but for the hundredth that best fit needs: a row length blind to the total leaves the last
    row half empty.
    """
    longest, total = int(lengths.max()), int(lengths.sum())
    few, many = max(1, total // (4 * longest)), max(1, total // longest)
    even = {-(-101 * total // (100 * int(k))) for k in np.linspace(few, many, 12)}
    best: tuple[int, Ints, Ints, int] | None = None
    for capacity in sorted({longest} | {c for c in even if c > longest}):
        row, offset = _best_fit(lengths, capacity)
        area = (int(row.max()) + 1) * capacity
        if best is None or area < best[0]:
            best = (area, row, offset, capacity)
        if best[0] * 985 <= total * 1000:
            break
    assert best is not None
    return best[1:]


def _best_fit(lengths: Ints, capacity: int) -> tuple[Ints, Ints]:
    row, offset = np.zeros_like(lengths), np.zeros_like(lengths)
    if int(lengths.min()) == capacity:
        return np.arange(len(lengths)), offset
    open_rows: dict[int, list[int]] = {}  # room left -> rows with that much
    rows = 0
    for i in np.argsort(-lengths, kind="stable"):
        need = int(lengths[i])
        room = min((r for r in open_rows if r >= need), default=0)
        if room:
            r = open_rows[room].pop()
            if not open_rows[room]:
                del open_rows[room]
        else:
            r, rows, room = rows, rows + 1, capacity
        row[i], offset[i] = r, capacity - room
        if room > need:
            open_rows.setdefault(room - need, []).append(r)
    return row, offset


def _ranges(starts: Ints | int, lengths: Ints) -> Ints:
    """`arange(start, start + length)` for each pair, one after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def _rows(lengths: Ints, positions: Ints) -> tuple[Rows, Ints, Ints]:
    """Pack sequences: the rows, each sequence's first place, and each element's place in the flattened rows."""
    row, offset, capacity = pack(lengths)
    first = row * capacity + offset
    place = _ranges(first, lengths)
    shape = (int(row.max()) + 1, capacity)
    segment, position = np.full(shape, -1), np.zeros(shape, np.int64)
    segment.flat[place] = np.repeat(np.arange(len(lengths)), lengths)
    position.flat[place] = positions
    alone = shape[0] == len(lengths) and bool((lengths == capacity).all())
    return Rows(torch.from_numpy(segment), torch.from_numpy(position), alone), first, place


def _scatter(rows: Rows, place: Ints, values: Ints, empty: int) -> Tensor:
    out = np.full(tuple(rows.segment_RT.shape), empty)
    out.flat[place] = values
    return torch.from_numpy(out)


def _encoder_inputs(spans: list[Ints], design: Design, specials: Specials, positions: Positions) -> EncoderInputs:
    n, w = design.ratio, design.window
    tokens, span_length = np.concatenate(spans), np.array([len(s) for s in spans])
    span_first = np.cumsum(span_length) - span_length

    # Windows: the core they are for, and the overlap around it that never leaves the span.
    count = -(-span_length // w)
    of_span = np.repeat(np.arange(len(spans)), count)
    start = _ranges(0, count) * w
    core = np.minimum(w, span_length[of_span] - start)
    left = np.minimum(design.overlap, start)
    right = np.minimum(design.overlap, span_length[of_span] - start - core)
    right *= design.mask == "bidirectional"
    text = left + core + right
    latents = -(-core // n)
    markers = latents * POOLINGS[design.pooling].markers
    length = text + markers

    # A marker stands behind the text; where positions are spread it takes the position of its block's end.
    block = _ranges(0, latents)
    marker_position = np.repeat(text, markers) + _ranges(0, markers)
    if positions == "spread":
        block_end = np.minimum((block + 1) * n, np.repeat(core, latents)) - 1
        marker_position = (np.repeat(left, latents) + block_end)[: len(marker_position)]
    is_text = np.repeat(np.tile([True, False], len(text)), np.stack([text, markers], 1).ravel())
    place_in_window = np.empty(int(length.sum()), np.int64)
    place_in_window[is_text], place_in_window[~is_text] = _ranges(0, text), marker_position
    rows, first, place = _rows(length, place_in_window)

    source = _ranges(span_first[of_span] + start - left, text)
    token_RT = _scatter(rows, place[is_text], tokens[source], specials.mask)
    token_RT.view(-1)[torch.from_numpy(place[~is_text])] = specials.memory
    phase_RT = _scatter(rows, place[is_text], _ranges(start - left, text) % n, -1)

    block_first = np.repeat(first + left, latents) + block * n
    in_block = np.arange(n) < np.minimum(n, np.repeat(core, latents) - block * n)[:, None]
    blocks = Blocks(
        tokens_LN=torch.from_numpy(np.where(in_block, block_first[:, None] + np.arange(n), 0)),
        mask_LN=torch.from_numpy(in_block),
        markers_L=torch.from_numpy(place[~is_text]),
    )
    return EncoderInputs(rows, token_RT, phase_RT, blocks, _latent_rows(span_length, design))


def _latent_rows(span_length: Ints, design: Design) -> LatentRows | None:
    if not ADAPTERS[design.adapter].attention:
        return None
    latents = -(-span_length // design.ratio)
    rows, _, place = _rows(latents, _ranges(0, latents))
    return LatentRows(rows, _scatter(rows, place, np.arange(int(latents.sum())), 0), torch.from_numpy(place))


class _Decoder:
    """Collects the decoder's sequences, stretch by stretch: columns position, token, latent, phase, target."""

    def __init__(self) -> None:
        self._stretches: list[Ints] = []  # (5, length) each
        self._ends: list[int] = []  # stretches up to the end of each sequence

    def add(
        self,
        position: Ints,
        token: Ints | int,
        latent: Ints | int = -1,
        phase: Ints | int = -1,
        target: Ints | int = -1,
    ) -> None:
        stretch = np.empty((5, len(position)), np.int64)
        for row, values in zip(stretch, (position, token, latent, phase, target), strict=True):
            row[:] = values
        self._stretches.append(stretch)

    def score_last(self, target: int) -> None:
        """Let the last element added be scored on `target`."""
        self._stretches[-1][4, -1] = target

    def end_sequence(self) -> None:
        self._ends.append(len(self._stretches))

    def columns(self) -> tuple[Ints, Ints]:
        """All sequences end to end (5, total), and the length of each."""
        lengths = np.cumsum([0, *(s.shape[1] for s in self._stretches)])[[0, *self._ends]]
        return np.concatenate(self._stretches, 1), np.diff(lengths)


def _decoder_inputs(
    samples: list[Sample], encoder: EncoderInputs | None, design: Design, specials: Specials, positions: Positions
) -> Batch:
    latents = 0
    out = _Decoder()
    for sample in samples:
        for a, b, wrapped in sample.segments():
            if wrapped:
                _wrapped_segment(out, sample.tokens[a:b], a, design, specials, latents)
                latents += -(-(b - a) // design.ratio)
            else:
                _raw_segment(out, sample.tokens[a:b], a)
        if sample.task != "continue":
            _reconstruction(out, sample, design, specials)
        out.end_sequence()
    (position, token, latent, phase, target), lengths = out.columns()
    if positions == "consecutive":
        position = _ranges(0, lengths)
    rows, _, place = _rows(lengths, position)
    scored = target >= 0
    return Batch(
        encoder=encoder,
        rows=rows,
        token_RT=_scatter(rows, place, token, specials.mask),
        latent_RT=_scatter(rows, place, latent, -1),
        phase_RT=_scatter(rows, place, phase, -1),
        place_P=torch.from_numpy(place[scored]),
        target_P=torch.from_numpy(target[scored]),
        task_P=torch.from_numpy(np.repeat([TASKS.index(s.task) for s in samples], lengths)[scored]),
        document_P=torch.from_numpy(np.repeat([s.document for s in samples], lengths)[scored]),
        raw_tokens=sum(len(s.tokens) for s in samples),
    )


def _wrapped_segment(
    out: _Decoder, tokens: Ints, start: int, design: Design, specials: Specials, first_latent: int
) -> None:
    """The tags, and between them what the decoder reads in place of `tokens`."""
    stop = start + len(tokens)
    out.add(np.array([start]), specials.memory_start)
    if design.control == "uncompressed":
        out.add(np.arange(start, stop), tokens)
    elif design.control != "blind":
        block = np.arange(-(-len(tokens) // design.ratio))
        out.add(start + block * design.ratio, specials.memory, latent=first_latent + block)
    out.add(np.array([stop - 1]), specials.memory_end)


def _raw_segment(out: _Decoder, tokens: Ints, start: int) -> None:
    """Raw tokens, each scored by the element before it; the first by the tag that closed the span."""
    out.score_last(int(tokens[0]))
    out.add(np.arange(start, start + len(tokens)), tokens, target=np.append(tokens[1:], -1))


def _reconstruction(out: _Decoder, sample: Sample, design: Design, specials: Specials) -> None:
    """The span's tokens once more, each scored where the decoder is asked for it."""
    position = np.arange(len(sample.tokens))
    phase = position % design.ratio if design.control not in ("uncompressed", "blind") else -1
    if sample.task == "parallel":
        asked: Ints | int = specials.mask
    else:
        asked = np.append(specials.reconstruct, sample.tokens[:-1])
    out.add(position, asked, phase=phase, target=sample.tokens)
