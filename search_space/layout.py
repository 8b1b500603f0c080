"""From samples that all designs share to the index tensors of one design.

A `Sample` knows raw tokens, which stretches of them are wrapped, and the task; nothing of any design. `lay_out`
turns the samples of a step into a `Batch`: windows with their overlap packed into encoder rows, blocks to pool,
latents in spans, and decoder rows in which latents stand in place of wrapped tokens. Everything that depends on
lengths is decided here, in NumPy on the host, so that the model's forward pass has no loop and no branch on data.

Shapes: R rows, T positions of a row, L latents, N ratio, P scored positions.
"""

from dataclasses import dataclass
from itertools import pairwise
from operator import lt
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search_space.axes.adapter import ADAPTERS, LatentRows
from search_space.axes.pooling import POOLINGS, Blocks
from search_space.axes.positions import Positions
from search_space.design import Design
from search_space.errors import UsageError
from search_space.packing import pack, ranges
from search_space.transformer import Groups, Rows

__all__ = ["TASKS", "Batch", "EncoderInputs", "Sample", "Specials", "Task", "lay_out"]

Ints = NDArray[np.int64]
Task = Literal["reconstruct", "parallel", "continue"]
TASKS: tuple[Task, ...] = ("reconstruct", "parallel", "continue")


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
    cuts: inner boundaries; segments alternate wrapped, raw, ..., starting wrapped, or raw where the first cut is 0.
        No cut wraps all.
    task: `continue` scores the raw segments; `reconstruct` without cuts wraps all and scores its tokens again, each
        after its predecessors; `parallel` does so with every decoder input masked, so that only latents can help.
        `reconstruct` with cuts is laid out as `continue` is: its tokens hold the question and the answer.
    document: whose tokens these are.
    quiet: raw tokens before this one are read and not scored, such as a question.

    Raises `UsageError` where tokens are not whole numbers or missing, for cuts that leave a segment empty or wrap
    nothing, and where `quiet` leaves nothing to score.
    """

    tokens: Ints
    cuts: tuple[int, ...]
    task: Task
    document: int
    quiet: int = 0

    def __post_init__(self) -> None:
        if self.tokens.ndim != 1 or self.tokens.dtype.kind not in "iu" or not self.tokens.size:
            what = f"{self.tokens.dtype} of shape {self.tokens.shape}"
            raise UsageError(f"tokens: {what} in document {self.document}; expected one or more whole numbers in a row")
        if self.task not in TASKS:
            raise UsageError(f"task: {self.task!r} is not one of {', '.join(TASKS)}")
        if self.cuts and self.task == "parallel":
            raise UsageError("cuts: parallel wraps all of its tokens; only continue and reconstruct have cuts")
        edges = (0, *self.cuts[self.cuts[:1] == (0,) :], len(self.tokens))
        if not all(map(lt, edges, edges[1:])) or self.cuts == (0,):
            last = len(self.tokens) - 1
            raise UsageError(
                f"cuts: {self.cuts} in {last + 1} tokens; expected ascending numbers from 0 to {last}, not 0 alone"
            )
        if self.quiet >= len(self.tokens):
            raise UsageError(f"quiet: {self.quiet} leaves none of {len(self.tokens)} tokens to score")

    def segments(self) -> list[tuple[int, int, bool]]:
        """(start, stop, wrapped) in order."""
        edges = (0, *self.cuts, len(self.tokens))
        return [(a, b, i % 2 == 0) for i, (a, b) in enumerate(pairwise(edges)) if a < b]

    @property
    def asks(self) -> bool:
        """Whether the tokens are asked for behind the sample."""
        return self.task != "continue" and not self.cuts


@dataclass
class EncoderInputs:
    rows: Rows
    token_RT: Tensor
    phase_RT: Tensor  # place of the token in its block, -1 where it has none
    blocks: Blocks
    spans: LatentRows | None


@dataclass
class Batch:
    """Everything the model reads of one step."""

    encoder: EncoderInputs | None
    rows: Rows
    token_RT: Tensor
    latent_RT: Tensor  # which latent stands here, -1 for a token
    phase_RT: Tensor
    place_P: Tensor  # scored positions of the flattened decoder rows
    target_P: Tensor
    task_P: Tensor  # index into TASKS
    document_P: Tensor
    offset_P: Tensor  # tokens between the end of the span, or of a question, and the scored one


def lay_out(
    samples: list[Sample], design: Design, specials: Specials, positions: Positions, groups: bool = True
) -> Batch:
    """The batch of `samples` for `design`.

    `positions` says where a latent stands for the decoder: `consecutive` as published, or `spread` at the place
    of its block, with reconstruction starting again at the span's own positions. `groups` says whether rows get
    the groups by which attention on a CPU takes them; a GPU has no use for them.

    Raises `UsageError` when there is no sample.
    """
    if not samples:
        raise UsageError("samples: there is none; a batch takes at least one")
    text = _Text(samples)
    has_encoder = design.control not in ("uncompressed", "blind")
    encoder = _encoder_inputs(text, design, specials, positions, groups) if has_encoder else None
    return _decoder_inputs(text, encoder, design, specials, positions, groups)


class _Text:
    """The samples of a step end to end, as arrays.

    token: of all samples.
    document, task, asks, quiet, length, first: of each sample; `first` is where its tokens begin among all.
    sample, start, stop, source: of each segment; edges in its sample, and where its tokens begin among all.
    wrapped, raw: numbers of the segments that are.
    """

    def __init__(self, samples: list[Sample]) -> None:
        self.token = np.concatenate([s.tokens for s in samples])
        self.document = np.array([s.document for s in samples])
        self.task = np.array([TASKS.index(s.task) for s in samples])
        self.asks = np.array([s.asks for s in samples])
        self.quiet = np.array([s.quiet for s in samples])
        self.length = np.array([len(s.tokens) for s in samples])
        self.first = np.cumsum(self.length) - self.length
        segments = np.array([(i, *segment) for i, s in enumerate(samples) for segment in s.segments()])
        self.sample, self.start, self.stop, wrapped = segments.T
        self.source = self.first[self.sample] + self.start
        self.wrapped, self.raw = np.flatnonzero(wrapped), np.flatnonzero(~wrapped.astype(bool))

    def scored(self, index: Ints) -> tuple[NDArray[np.bool], Ints]:
        """Of each raw token, by its `index` in its sample, whether it is scored, and how many came since the span.

        It is scored by the element before it, the first of a segment by the tag that closed the span; what begins a
        sample has none before it.
        """
        length = (self.stop - self.start)[self.raw]
        quiet = np.repeat(self.quiet[self.sample[self.raw]], length)
        return index >= np.maximum(quiet, 1), index - np.maximum(quiet, np.repeat(self.start[self.raw], length))


class _Grid:
    """Sequences packed into rows, which are filled column by column.

    first: of each sequence, its place in the flattened rows; place: of each element, sequence by sequence.
    """

    def __init__(self, lengths: Ints, groups: bool) -> None:
        self.lengths = lengths
        row, offset, capacity = pack(lengths)
        self.shape = (int(row.max()) + 1, capacity)
        self.first = row * capacity + offset
        self.place = ranges(self.first, lengths)
        self._segment = self.fill(-1, (self.place, np.repeat(np.arange(len(lengths)), lengths)))
        self._alone = self.shape[0] == len(lengths) and bool((lengths == capacity).all())
        grouped = groups and not self._alone
        self._groups = Groups.of(self.first, lengths, self._segment.numel()) if grouped else None

    def fill(self, empty: int, *parts: tuple[Ints, Ints | int]) -> Tensor:
        """(R, T): at each part's places its values, elsewhere `empty`."""
        out = np.full(self.shape, empty)
        for place, values in parts:
            out.reshape(-1)[place] = values
        return torch.from_numpy(out)

    def rows(self, position_RT: Tensor) -> Rows:
        return Rows(self._segment, position_RT, self._alone, self._groups)


def _encoder_inputs(
    text: _Text, design: Design, specials: Specials, positions: Positions, groups: bool
) -> EncoderInputs:
    n, w = design.ratio, design.window
    span_length = (text.stop - text.start)[text.wrapped]

    # Windows: the core they are for, and the overlap around it that never leaves the span.
    count = -(-span_length // w)
    of_span = np.repeat(np.arange(len(span_length)), count)
    start = ranges(0, count) * w
    core = np.minimum(w, span_length[of_span] - start)
    left = np.minimum(design.overlap, start)
    right = np.minimum(design.overlap, span_length[of_span] - start - core)
    right *= design.mask == "bidirectional"
    read = left + core + right
    latents = -(-core // n)
    markers = latents * POOLINGS[design.pooling].markers
    grid = _Grid(read + markers, groups)

    # A marker stands behind the text; where positions are spread it takes the position of its block's end.
    text_place, marker_place = ranges(grid.first, read), ranges(grid.first + read, markers)
    block = ranges(0, latents)
    block_size = np.minimum(n, np.repeat(core, latents) - block * n)
    marker_position = ranges(read, markers)
    if positions == "spread":
        marker_position = (np.repeat(left, latents) + block * n + block_size - 1)[: len(marker_place)]

    source = text.source[text.wrapped][of_span] + start - left
    block_first = np.repeat(grid.first + left, latents) + block * n
    in_block = np.arange(n) < block_size[:, None]
    return EncoderInputs(
        rows=grid.rows(grid.fill(0, (text_place, ranges(0, read)), (marker_place, marker_position))),
        token_RT=grid.fill(
            specials.mask, (text_place, text.token[ranges(source, read)]), (marker_place, specials.memory)
        ),
        phase_RT=grid.fill(-1, (text_place, ranges(start - left, read) % n)),
        blocks=Blocks(
            tokens_LN=torch.from_numpy(np.where(in_block, block_first[:, None] + np.arange(n), 0)),
            mask_LN=torch.from_numpy(in_block),
            markers_L=torch.from_numpy(marker_place),
        ),
        spans=_latent_rows(-(-span_length // n), groups) if ADAPTERS[design.adapter].attention else None,
    )


def _latent_rows(latents: Ints, groups: bool) -> LatentRows:
    grid = _Grid(latents, groups)
    rows = grid.rows(grid.fill(0, (grid.place, ranges(0, latents))))
    return LatentRows(rows, grid.fill(0, (grid.place, np.arange(len(grid.place)))), torch.from_numpy(grid.place))


@dataclass
class _Elements:
    """Places of the decoder's elements in the flattened rows, each kind in the order of the text."""

    opening: Ints  # the tag before a span
    read: Ints  # what is read of it
    closing: Ints  # the tag behind it
    raw: Ints
    asked: Ints  # what reconstruction asks for, behind the sample
    first_asked: Ints


def _decoder_grid(text: _Text, read: Ints, asked: Ints, groups: bool) -> tuple[_Grid, _Elements]:
    """Samples packed into rows, and where everything stands.

    `read` is how many elements stand for each wrapped segment, `asked` how many each sample asks for.
    """
    length, wrapped, raw = text.stop - text.start, text.wrapped, text.raw
    held = length.copy()
    held[wrapped] = read + 2
    grid = _Grid(np.add.reduceat(held, np.flatnonzero(text.start == 0)) + asked, groups)
    # Counted from the first sample to the last as if they were one row.
    begin = np.cumsum(held) - held + (np.cumsum(asked) - asked)[text.sample]
    question = np.cumsum(grid.lengths) - asked
    return grid, _Elements(
        opening=grid.place[begin[wrapped]],
        read=grid.place[ranges(begin[wrapped] + 1, read)],
        closing=grid.place[begin[wrapped] + 1 + read],
        raw=grid.place[ranges(begin[raw], length[raw])],
        asked=grid.place[ranges(question, asked)],
        first_asked=grid.place[question[asked > 0]],
    )


def _decoder_inputs(
    text: _Text, encoder: EncoderInputs | None, design: Design, specials: Specials, positions: Positions, groups: bool
) -> Batch:
    """Each sample's segments, a wrapped one as tags around what is read of it, and then what is asked for."""
    n = design.ratio if encoder else 1
    wrapped, raw, length = text.wrapped, text.raw, text.stop - text.start
    read = -(-length[wrapped] // n) * (design.control != "blind")
    asked = text.length * text.asks
    grid, at = _decoder_grid(text, read, asked, groups)

    raw_token, raw_index = text.token[ranges(text.source[raw], length[raw])], ranges(text.start[raw], length[raw])
    asked_source, place_asked = ranges(text.first, asked), ranges(0, asked)
    token_RT = grid.fill(
        specials.mask,
        (at.opening, specials.memory_start),
        (at.read, specials.memory if encoder else text.token[ranges(text.source[wrapped], read)]),
        (at.closing, specials.memory_end),
        (at.raw, raw_token),
        (at.asked, text.token[asked_source - 1]),
        (at.first_asked, specials.reconstruct),
        (at.asked[np.repeat(text.task == TASKS.index("parallel"), asked)], specials.mask),
    )
    spread_RT = grid.fill(
        0,
        (at.opening, text.start[wrapped]),
        (at.read, np.repeat(text.start[wrapped], read) + ranges(0, read) * n),
        (at.closing, text.stop[wrapped] - 1),
        (at.raw, raw_index),
        (at.asked, place_asked),
    )
    told, since = text.scored(raw_index)
    before = at.raw[told] - 1
    target = grid.fill(-1, (before, raw_token[told]), (at.asked, text.token[asked_source])).view(-1)[grid.place]
    offset = grid.fill(0, (before, since[told]), (at.asked, place_asked)).view(-1)[grid.place]
    scored = target >= 0
    return Batch(
        encoder=encoder,
        rows=grid.rows(spread_RT if positions == "spread" else grid.fill(0, (grid.place, ranges(0, grid.lengths)))),
        token_RT=token_RT,
        latent_RT=grid.fill(-1, (at.read, np.arange(len(at.read)) if encoder else -1)),
        phase_RT=grid.fill(-1, (at.asked, place_asked % n if encoder else -1)),
        place_P=torch.from_numpy(grid.place)[scored],
        target_P=target[scored],
        task_P=torch.from_numpy(np.repeat(text.task, grid.lengths))[scored],
        document_P=torch.from_numpy(np.repeat(text.document, grid.lengths))[scored],
        offset_P=offset[scored],
    )
