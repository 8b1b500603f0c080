"""The held-out set: fixed stretches of fixed documents with fixed spans, the same for every design and seed."""

import numpy as np

from search_space.compressor import Size
from search_space.design import Design
from search_space.errors import UsageError
from search_space.layout import Batch, Sample, Task, lay_out
from trainer import interleave
from trainer.corpus import Corpus
from trainer.parallel import Parallel
from trainer.recipe import Recipe
from trainer.stream import Piece, TrainingSamples, continued, prompted, prompts, takes_groups

__all__ = ["check_fit", "heldout_batches", "heldout_samples"]

_SEED = 20_260_609


def heldout_samples(corpus: Corpus, recipe: Recipe) -> dict[Task, list[Sample]]:
    """Per task, one sample of each held-out document.

    `spans` takes a stretch of `recipe.piece` tokens of each document that has as many; `published` takes documents
    from twice the shortest segment on, up to `recipe.piece` tokens, and wraps and asks as in training.
    Raises `UsageError` where fewer than two documents are long enough.
    """
    split, published = corpus.heldout, recipe.format == "published"
    least = min(recipe.piece, 2 * interleave.SHORTEST) if published else recipe.piece
    documents = np.flatnonzero(split.lengths >= least)[: recipe.documents].tolist()
    if len(documents) < 2:
        raise UsageError(
            f"recipe.documents: only {len(documents)} held-out documents have {least} tokens; "
            "give more text, raise corpus.heldout or lower recipe.piece"
        )
    rng = np.random.default_rng(_SEED)
    question = prompts(corpus)[0] if published else None
    out: dict[Task, list[Sample]] = {"reconstruct": [], "parallel": [], "continue": []}
    for document in documents:
        length = min(recipe.piece, int(split.lengths[document]))
        start = int(rng.integers(split.lengths[document] - length + 1))
        tokens = split[document][start : start + length].astype(np.int64)
        short = tokens[: interleave.TRAINABLE]
        out["parallel"].append(Sample(short, (), "parallel", document))
        if question is None:
            out["reconstruct"].append(Sample(tokens, (), "reconstruct", document))
            out["continue"].append(Sample(tokens, (length // 2,), "continue", document))
        else:
            out["reconstruct"].append(prompted(short, question, document))
            own = np.random.default_rng([_SEED, document])
            out["continue"].append(continued(split, Piece(document, start, length, 0), tokens, own))
    return out


def heldout_batches(
    corpus: Corpus, recipe: Recipe, design: Design, size: Size, rank: int = 0, ranks: int = 1, accumulate: int = 1
) -> list[Batch]:
    """The held-out samples as batches no larger than those of training; of them every `ranks`-th from `rank` on.

    Each rank has as many, since ranks that share a model take every step together; some batches are then scored twice.
    """
    positions, most = size.of(design).positions, max(1, recipe.pieces // (ranks * accumulate))
    groups = [
        samples[i : i + most]
        for samples in heldout_samples(corpus, recipe).values()
        for i in range(0, len(samples), most)
    ]
    own = [groups[i % len(groups)] for i in range(rank, -(-len(groups) // ranks) * ranks, ranks)]
    return [lay_out(samples, design, corpus.specials, positions, takes_groups()) for samples in own]


def check_fit(corpus: Corpus, recipe: Recipe, parallel: Parallel, seed: int = 0) -> None:
    """Raise `UsageError` where the corpus has too little text for the recipe, in training or held out, or a step too
    few pieces to be divided."""
    TrainingSamples(corpus, recipe, seed).check_parts(parallel.accumulate, parallel.ranks)
    heldout_samples(corpus, recipe)
