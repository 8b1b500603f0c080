"""Does one learning rate serve all sizes: the best rate of each size, by training at several.

The rates of the recipe are multiplied by factors, those of Muon and AdamW and of every part alike, and the best factor
is the vertex of the parabola, in the logarithm of the factor, through the lowest loss and its two neighbours. Sizes
share corpus, order of the data, seed and steps.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from search_space.compressor import Size
from search_space.design import Design
from search_space.transformer import Shape
from trainer.pretrain import pretrain
from trainer.recipe import Recipe
from trainer.trial import Diverged, TrialSpec

__all__ = ["BestRate", "best_rates", "square", "vertex"]


@dataclass(frozen=True)
class BestRate:
    """losses: held-out loss of reconstruction by factor, in nats per token; infinite where training diverged.
    best: factor of the lowest loss; NaN where that was at an end of the factors.
    """

    size: Size
    losses: dict[float, float]
    best: float


def best_rates(
    design: Design,
    sizes: Sequence[Size],
    recipe: Recipe,
    corpus: Path,
    folder: Path,
    factors: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0),
    seed: int = 0,
    tick: Callable[[str], None] = lambda what: None,
) -> Iterator[BestRate]:
    """The best factor of each size, as soon as it is known. `folder` keeps the trials, so that a second call goes on
    where the first was stopped; another recipe wants another folder."""
    for number, size in enumerate(sizes):
        losses = {}
        for factor in sorted(factors):
            tick(f"width {size.decoder.width}, {size.decoder.layers} layers, rates times {factor:g}")
            spec = TrialSpec(design, size, replace(recipe, optim=recipe.optim.times(factor)), seed, str(corpus))
            try:
                result = pretrain(spec, folder / f"{number}-{factor:g}", len(recipe.rungs))
                losses[factor] = result.heldout.loss["reconstruct"]
            except Diverged:
                losses[factor] = float("inf")
        yield BestRate(size, losses, vertex(losses))


def square(width: int, layers: int, vocab: int) -> Size:
    """Encoder and decoder of one shape, which has the proportions of the default one."""
    heads = max(1, width // 32)
    shape = Shape(layers, width, heads, heads, feedforward=2 * width)
    return Size(vocab, encoder=shape, decoder=shape)


def vertex(losses: dict[float, float]) -> float:
    """The factor at which the parabola through the lowest loss and its neighbours is lowest; NaN where one is missing
    or infinite."""
    factors = sorted(losses)
    lowest = factors.index(min(factors, key=losses.__getitem__))
    around = factors[lowest - 1 : lowest + 2] if lowest else []
    if len(around) < 3 or not np.isfinite([losses[f] for f in around]).all():
        return float("nan")
    a, b, _ = np.polyfit(np.log2(around), [losses[f] for f in around], 2)
    return float(2 ** (-b / (2 * a)))
