"""What is read at which step: a pure function of (corpus, recipe, seed, step), the same for every design.

Documents are cut into pieces; each epoch visits all pieces in an order of its own; a step takes the next few. Since
any step can be made from its number alone, a resumed run reads on exactly where it was, with any number of workers.
"""

from collections.abc import Iterator
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from search_space.compressor import Size
from search_space.design import Design
from search_space.errors import UsageError
from search_space.layout import Batch, Sample, Specials, Task, lay_out
from trainer.corpus import Corpus, Split
from trainer.recipe import Recipe

__all__ = ["Steps", "TrainingSamples", "check_fit", "heldout_batches", "heldout_samples"]

Ints = NDArray[np.int64]
SHORTEST = 16  # tokens; a document's last piece is dropped below this
_HELDOUT_SEED = 20_260_609


class TrainingSamples:
    """The samples of each step. Raises `UsageError` when the corpus is too small for one step."""

    def __init__(self, split: Split, recipe: Recipe, seed: int) -> None:
        self.split, self.recipe, self.seed = split, recipe, seed
        self.documents, self.starts, self.lengths = _pieces(split.lengths, recipe.piece)
        if len(self.documents) < recipe.pieces:
            raise UsageError(
                f"corpus.source: {len(self.documents)} pieces of {recipe.piece} tokens are too few for a step of "
                f"{recipe.pieces}; give more text or lower recipe.pieces"
            )
        self._per_epoch = len(self.documents) // recipe.pieces
        self._epoch = -1
        self._order: Ints = np.empty(0, np.int64)

    def pieces_of(self, step: int) -> Ints:
        """Which pieces make `step`, counted from 0."""
        epoch, at = divmod(step, self._per_epoch)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.documents))
            self._epoch = epoch
        return self._order[at * self.recipe.pieces : (at + 1) * self.recipe.pieces]

    def raw_tokens(self, steps: int) -> Ints:
        """Raw tokens seen after each of the first `steps` steps."""
        return np.cumsum([int(self.lengths[self.pieces_of(s)].sum()) for s in range(steps)])

    def __call__(self, step: int) -> list[Sample]:
        rng = np.random.default_rng([self.seed, 1, step])
        span = self.recipe.span_at(step)
        samples: list[Sample] = []
        for piece in self.pieces_of(step):
            document, start, length = (int(a[piece]) for a in (self.documents, self.starts, self.lengths))
            tokens = self.split[document][start : start + length].astype(np.int64)
            if rng.random() < self.recipe.continuation:
                samples.append(Sample(tokens, interleave(length, span, rng), "continue", document))
            else:
                samples.extend(self._reconstructions(tokens, span, rng, document))
        return samples

    def _reconstructions(self, tokens: Ints, span: int, rng: np.random.Generator, document: int) -> Iterator[Sample]:
        for start in range(0, len(tokens), span):
            task: Task = "parallel" if rng.random() < self.recipe.parallel else "reconstruct"
            yield Sample(tokens[start : start + span], (), task, document)


def interleave(length: int, span: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Cuts of a piece into wrapped and raw segments in turn, starting wrapped and ending raw (paper section 3).

    As many pairs as spans of `span` tokens fit when half of the tokens are raw; each segment's share of the piece
    varies by 20%.
    """
    pairs = max(1, length // (2 * span))
    shares = rng.uniform(0.8, 1.2, 2 * pairs)
    cuts = np.round(np.cumsum(shares)[:-1] / shares.sum() * length).astype(int)
    return tuple(int(c) for c in cuts)


class Steps(IterableDataset[Batch]):
    """The steps from `start` on, without end, each as the batch of one design.

    Loader workers take turns, which is the order in which a `DataLoader` with `batch_size=None` asks them.
    """

    def __init__(self, samples: TrainingSamples, design: Design, size: Size, specials: Specials, start: int) -> None:
        self._samples, self._design, self._specials = samples, design, specials
        self._positions, self._start = size.of(design).positions, start
        self._dense = _dense()

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in count(self._start + first, stride):
            yield lay_out(self._samples(step), self._design, self._specials, self._positions, self._dense)


def heldout_samples(split: Split, recipe: Recipe) -> dict[Task, list[Sample]]:
    """Per task, one sample of each held-out document: the same stretches whatever the design and the seed."""
    rng = np.random.default_rng(_HELDOUT_SEED)
    documents = np.flatnonzero(split.lengths >= recipe.piece)[: recipe.documents]
    if len(documents) < 2:
        raise UsageError(
            f"recipe.documents: only {len(documents)} held-out documents have {recipe.piece} tokens; "
            "give more text, raise corpus.heldout or lower recipe.piece"
        )
    out: dict[Task, list[Sample]] = {"reconstruct": [], "parallel": [], "continue": []}
    for document in documents:
        start = int(rng.integers(split.lengths[document] - recipe.piece + 1))
        tokens = split[int(document)][start : start + recipe.piece].astype(np.int64)
        for task in ("reconstruct", "parallel"):
            out[task].append(Sample(tokens, (), task, int(document)))
        out["continue"].append(Sample(tokens, (recipe.piece // 2,), "continue", int(document)))
    return out


def heldout_batches(corpus: Corpus, recipe: Recipe, design: Design, size: Size) -> Iterator[Batch]:
    """The held-out samples as batches no larger than a training step."""
    positions, dense = size.of(design).positions, _dense()
    for samples in heldout_samples(corpus.heldout, recipe).values():
        for i in range(0, len(samples), recipe.pieces):
            yield lay_out(samples[i : i + recipe.pieces], design, corpus.specials, positions, dense)


def check_fit(corpus: Corpus, recipe: Recipe) -> None:
    """Raise `UsageError` where the corpus has too little text for the recipe, in training or held out."""
    TrainingSamples(corpus.train, recipe, seed=0)
    heldout_samples(corpus.heldout, recipe)


def _dense() -> bool:
    """Whether attention computes what its mask forbids (see `lay_out`). Asked in the trial's own process: a forked
    loader worker may not ask for the GPU."""
    return not torch.cuda.is_available()


def _pieces(lengths: Ints, piece: int) -> tuple[Ints, Ints, Ints]:
    """Document, start and length of every piece."""
    pieces = -(-lengths // piece)
    document = np.repeat(np.arange(len(lengths)), pieces)
    start = (np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * piece
    length = np.minimum(piece, lengths[document] - start)
    keep = length >= SHORTEST
    return document[keep], start[keep], length[keep]
