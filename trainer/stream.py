"""What is read at which step: a pure function of (corpus, recipe, seed, step), the same for every design.

Documents are cut into pieces. Each source of the corpus is an endless stream of its pieces, in a new order every
epoch; a step takes from each the pieces that begin in the next stretch of it, as long as the mixture says. Since any
step can be made from its number alone, a resumed run reads on exactly where it was, with any number of loader workers;
and since the step is divided among the ranks only afterwards, it holds the same samples for any number of them.
"""

import io
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from search_space.compressor import Size
from search_space.design import Design
from search_space.errors import UsageError
from search_space.layout import Batch, Sample, Specials, Task, lay_out
from trainer import interleave
from trainer.corpus import Corpus, Split
from trainer.recipe import Recipe

__all__ = ["Microbatches", "Piece", "TrainingSamples", "continued", "prompted", "prompts", "takes_groups"]

Ints = NDArray[np.int64]
SHORTEST = 16  # tokens; a document's last piece is dropped below this
MIXED = 2**30  # tokens of a split up to which its pieces are mixed as a whole; 4 GB of shards
SHARDS_AT_ONCE = 16  # whose pieces are mixed above that, so that what is read is near together


@dataclass(frozen=True)
class Piece:
    """A stretch of a document, as it comes up in some epoch."""

    document: int
    start: int
    length: int
    epoch: int


class Source:
    """The pieces of one source as an endless stream, one epoch after another."""

    def __init__(self, split: Split, number: int, piece: int, seed: int) -> None:
        documents = np.flatnonzero(split.source == number)
        at, self._start, self._length = _pieces(split.lengths[documents], piece)
        self._document = documents[at]
        self._shard = split.shard[self._document] if split.lengths.sum() > MIXED else np.zeros_like(at)
        self._seed = (seed, number)
        self.tokens = int(self._length.sum())
        self.longest = int(self._length.max(initial=0))
        self._epochs: dict[int, tuple[Ints, Ints]] = {}  # the last two: a step may begin in one and end in the next

    def _epoch(self, epoch: int) -> tuple[Ints, Ints]:
        """The order of the pieces and, in it, where each begins."""
        found = self._epochs.get(epoch)
        if found is None:
            found = self._shuffled(epoch)
            self._epochs = dict([*self._epochs.items(), (epoch, found)][-2:])
        return found

    def _shuffled(self, epoch: int) -> tuple[Ints, Ints]:
        """A large source is shuffled by shards, and piece by piece among a few shards."""
        rng = np.random.default_rng([*self._seed, epoch])
        order = rng.permutation(len(self._length))
        shards = rng.permutation(int(self._shard.max()) + 1) // SHARDS_AT_ONCE
        order = order[np.argsort(shards[self._shard[order]], kind="stable")]
        length = self._length[order]
        return order, np.cumsum(length) - length

    def between(self, start: int, stop: int) -> Iterator[Piece]:
        """The pieces whose first token is in [start, stop) of the stream."""
        for epoch in range(start // self.tokens, -(-stop // self.tokens)):
            order, begin = self._epoch(epoch)
            a, b = np.searchsorted(begin, [start - epoch * self.tokens, stop - epoch * self.tokens])
            for i in order[a:b].tolist():
                yield Piece(int(self._document[i]), int(self._start[i]), int(self._length[i]), epoch)

    def seen(self, stop: int) -> int:
        """Tokens of the pieces that begin before `stop`."""
        epoch, rest = divmod(stop, self.tokens)
        order, begin = self._epoch(epoch)
        before = int(np.searchsorted(begin, rest))
        return epoch * self.tokens + (int(begin[before - 1] + self._length[order[before - 1]]) if before else 0)


class _Stream(NamedTuple):
    """share: of a step's tokens. read: where step 0 begins."""

    name: str
    source: Source
    share: float
    read: int


class TrainingSamples:
    """The samples of each step. A source's stream may have been read before, up to some place; it then goes on there.

    Raises `UsageError` when a mixture names a source that is not there, and when the corpus is too small for a step.
    """

    def __init__(self, corpus: Corpus, recipe: Recipe, seed: int, read: Mapping[str, int] | None = None) -> None:
        """read: where the stream of each source begins, as `position` of what was trained on before has it."""
        self._split, self._recipe, self._seed, self._read = corpus.train, recipe, seed, dict(read or {})
        self._prompts = prompts(corpus) if recipe.format == "published" else []
        self._streams = self._mix(corpus, recipe.mixture)
        self._fewest = sum(int(self._budget * s.share) // s.source.longest for s in self._streams)
        if self._fewest < 1:
            raise UsageError(
                f"recipe.mixture: a step of {self._budget} tokens can be without a piece of any source; "
                "raise recipe.pieces"
            )

    @property
    def _budget(self) -> int:
        """Raw tokens of a step, on average."""
        return self._recipe.piece * self._recipe.pieces

    def _mix(self, corpus: Corpus, mixture: dict[str, float]) -> list[_Stream]:
        """The sources with their shares of a step's tokens: of `mixture`, or by their size where it is empty."""
        if unknown := sorted(set(mixture) - set(corpus.sources)):
            raise UsageError(f"recipe.mixture: {unknown[0]!r} is not one of {', '.join(corpus.sources)}")
        names = list(mixture) or corpus.sources
        sources = {name: self._source(corpus.sources.index(name)) for name in names}
        if empty := [name for name, source in sources.items() if mixture and not source.tokens]:
            raise UsageError(f"recipe.mixture: {empty[0]!r} has no piece of at least {SHORTEST} tokens in training")
        total = sum(s.tokens for s in sources.values())
        if total < self._budget:
            raise UsageError(
                f"corpus.source: {total} tokens of text in pieces of {self._recipe.piece} are too few for a step of "
                f"{self._budget}; give more text or lower recipe.pieces"
            )
        weights = {name: mixture.get(name, source.tokens) for name, source in sources.items() if source.tokens}
        whole = sum(weights.values())
        return [_Stream(name, sources[name], w / whole, self._read.get(name, 0)) for name, w in weights.items()]

    def _source(self, number: int) -> Source:
        """Made once for all stages of a plan: of 10 million documents it takes 2.5 s and 0.7 GB."""
        order = number, self._recipe.piece, self._seed
        if order not in self._split.orders:
            self._split.orders[order] = Source(self._split, *order)
        return self._split.orders[order]

    def check_parts(self, accumulate: int, ranks: int) -> None:
        """Raise `UsageError` where a step can have fewer pieces than parts."""
        if self._fewest < accumulate * ranks:
            raise UsageError(
                f"parallel.accumulate: {accumulate} batches on each of {ranks} ranks are more than the {self._fewest} "
                "pieces that a step has at least; raise recipe.pieces"
            )

    def raw_tokens(self, steps: int) -> int:
        """Raw tokens seen after `steps` steps."""
        return sum(s.source.seen(self._edge(steps, s)) for s in self._streams) - self._before

    @cached_property
    def _before(self) -> int:
        """Raw tokens of these sources that were seen before step 0."""
        return sum(s.source.seen(s.read) for s in self._streams)

    def position(self, steps: int) -> dict[str, int]:
        """Where the stream of each source stands after `steps` steps, in tokens from its beginning; also of those that
        this recipe does not read."""
        return self._read | {s.name: self._edge(steps, s) for s in self._streams}

    def _edge(self, step: int, stream: _Stream) -> int:
        """Where in a source's stream `step` begins."""
        return stream.read + int(step * self._budget * stream.share)

    def pieces(self, step: int) -> list[Piece]:
        """What is read in `step`, counted from 0."""
        return [p for s in self._streams for p in s.source.between(self._edge(step, s), self._edge(step + 1, s))]

    def __call__(self, step: int, rank: int = 0, ranks: int = 1) -> list[Sample]:
        """The samples of `step`, or of the share of it that is `rank`'s."""
        span = self._recipe.span_at(step)
        pieces = share_out(self.pieces(step), ranks)[rank] if ranks > 1 else self.pieces(step)
        return [sample for piece in pieces for sample in self._samples(piece, span)]

    def _samples(self, piece: Piece, span: int) -> Iterator[Sample]:
        """What is made of a piece depends on nothing but seed, epoch, piece and, in the curriculum, the span."""
        rng = np.random.default_rng([self._seed, 1, piece.epoch, piece.document, piece.start])
        tokens = self._split[piece.document][piece.start : piece.start + piece.length].astype(np.int64)
        goes_on = rng.random() < self._recipe.continuation
        if self._recipe.format == "published" and goes_on:
            yield continued(self._split, piece, tokens, rng)
        elif self._recipe.format == "published":
            prompt = self._prompts[rng.integers(len(self._prompts))]
            yield prompted(tokens[: interleave.TRAINABLE], prompt, piece.document)
        elif goes_on:
            yield Sample(tokens, interleave.curriculum(len(tokens), span, rng), "continue", piece.document)
        else:
            for start in range(0, len(tokens), span):
                task: Task = "parallel" if rng.random() < self._recipe.parallel else "reconstruct"
                yield Sample(tokens[start : start + span], (), task, piece.document)


def continued(split: Split, piece: Piece, tokens: Ints, rng: np.random.Generator) -> Sample:
    """`tokens` interleaved by the published rule for what they are: a chat, or text."""
    cuts: tuple[int, ...] = ()
    if split.chat[piece.document]:
        stop = piece.start + len(tokens)
        whole = ((role, max(a, piece.start), min(b, stop)) for role, a, b in split.messages(piece.document))
        messages = [(role, a - piece.start, b - piece.start) for role, a, b in whole if a < b]
        cuts = interleave.chat(messages, len(tokens), rng)
    return Sample(tokens, cuts or interleave.document(len(tokens), rng), "continue", piece.document)


def prompted(tokens: Ints, prompt: Ints, document: int) -> Sample:
    """`tokens` compressed, a question, and `tokens` again; only these are scored."""
    asked = len(tokens) + len(prompt)
    return Sample(np.concatenate([tokens, prompt, tokens]), (len(tokens),), "reconstruct", document, quiet=asked)


def share_out(pieces: list[Piece], ranks: int) -> list[list[Piece]]:
    """`pieces` divided into parts of nearly equal length, longest first into the emptiest (Graham 1969)."""
    parts: list[list[Piece]] = [[] for _ in range(ranks)]
    held = [0] * ranks
    for piece in sorted(pieces, key=lambda p: -p.length):
        emptiest = held.index(min(held))
        parts[emptiest].append(piece)
        held[emptiest] += piece.length
    return parts


class Microbatches(IterableDataset[Batch]):
    """One rank's share of the steps from `start` on, without end, each step as `accumulate` batches of one design.

    Loader workers take turns, which is the order in which a `DataLoader` with `batch_size=None` asks them.
    Raises what `check_parts` raises.
    """

    def __init__(
        self,
        samples: TrainingSamples,
        design: Design,
        size: Size,
        specials: Specials,
        start: int,
        accumulate: int = 1,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        samples.check_parts(accumulate, ranks)
        self._samples, self._design, self._specials, self._start = samples, design, specials, start
        self._positions, self._groups = size.of(design).positions, takes_groups()
        self._accumulate, self._rank, self._ranks = accumulate, rank, ranks

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in count(self._start * self._accumulate + first, stride):
            step, part = divmod(number, self._accumulate)
            samples = self._samples(step, part * self._ranks + self._rank, self._accumulate * self._ranks)
            batch = lay_out(samples, self._design, self._specials, self._positions, self._groups)
            yield _Parcel(batch) if worker else batch  # ty: ignore[invalid-yield]  (arrives as the batch)


class _Parcel:
    """A batch on its way to another process, where it arrives as the batch: its arrays in one piece, while torch would
    hand over some twenty small tensors by a file of shared memory each."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __reduce__(self) -> tuple[Any, ...]:
        packed = io.BytesIO()
        pickler = pickle.Pickler(packed, pickle.HIGHEST_PROTOCOL)
        pickler.dispatch_table = {Tensor: lambda tensor: (torch.from_numpy, (tensor.numpy(),))}
        pickler.dump(self._batch)
        return pickle.loads, (packed.getvalue(),)


def takes_groups() -> bool:
    """Whether packed rows attend by groups, as they do on a CPU (see `lay_out`). Asked in the trial's own process: a
    forked loader worker may not ask for the GPU."""
    return not torch.cuda.is_available()


def prompts(corpus: Corpus) -> list[Ints]:
    """The wordings of a reconstruction, as tokens."""
    encodings = corpus.tokenizer.encode_batch([f"\n\n{p}\n\n" for p in interleave.PROMPTS], add_special_tokens=False)
    return [np.array(e.ids, np.int64) for e in encodings]


def _pieces(lengths: Ints, piece: int) -> tuple[Ints, Ints, Ints]:
    """Document, start and length of every piece."""
    pieces = -(-lengths // piece)
    document = np.repeat(np.arange(len(lengths)), pieces)
    start = (np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * piece
    length = np.minimum(piece, lengths[document] - start)
    keep = length >= SHORTEST
    return document[keep], start[keep], length[keep]
