"""What the tests of this package share: tiny sizes, samples, weights that depend on nothing but their name, and
hypothesis strategies for designs and samples."""

import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

from search_space.axes.adapter import ADAPTERS
from search_space.axes.pooling import POOLINGS
from search_space.axes.positions import Positions
from search_space.compressor import Compressor, Size
from search_space.design import CONTROLS, MASKS, Design
from search_space.layout import TASKS, Sample, Specials, Task
from search_space.transformer import Shape

WORDS = 35  # ids below are text, the special tokens stand behind them
SPECIALS = Specials(memory_start=35, memory_end=36, memory=37, reconstruct=38, mask=39)
VOCAB = 40

# Two encoder layers: with one, a single marker behind its window is blind to the mask inside the window.
# Heads times head width differs from the width, and query heads from key-value heads, as in the published shapes.
ENCODER = Shape(layers=2, width=16, heads=4, kv_heads=2, head_width=8, feedforward=24)
DECODER = Shape(layers=2, width=16, heads=2, kv_heads=1, head_width=8, feedforward=32)
SHARED = Size(vocab=VOCAB, encoder=ENCODER, decoder=DECODER)
APART = Size(
    vocab=VOCAB, encoder=ENCODER, decoder=replace(DECODER, width=24), embeddings="separate", positions="consecutive"
)
ENCODERS = ("base", "base", "l1", "l3h2k2e4f8")
DECODERS = ("base", "base", "l1", "h4k2e4", "l3f8t0")

# The 16 released from-scratch configurations, then the four that only figures show (paper section 5).
PUBLISHED = [
    "mean-w1024-causal-mlp-O0",
    "mean-w1024-bidirectional-mlp-O0",
    "mean-w1024-bidirectional-mlp-O32",
    "mean-w1024-bidirectional-mlp-O256",
    "mean-w1024-bidirectional-attn_mlp-O0",
    "mean-w1024-bidirectional-attn_mlp-O32",
    "mean-w1024-bidirectional-attn_mlp-O256",
    "mean-w1024-bidirectional-mlp_attn-O0",
    "mean-w256-bidirectional-mlp-O0",
    "mean-w16-bidirectional-mlp-O0",
    "concat-w1024-causal-mlp-O0",
    "concat-w1024-bidirectional-mlp-O0",
    "concat-w16-bidirectional-mlp-O0",
    "eos-w1024-causal-mlp-O0",
    "eos-w1024-bidirectional-mlp-O0",
    "eos-w16-bidirectional-mlp-O0",
    "mean-w16-causal-mlp-O0",
    "mean-w256-causal-mlp-O0",
    "eos-w16-causal-mlp-O0",
    "mean-w1024-causal-mlp-O256",
]


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Weights drawn by seed and name, so that two models agree wherever names and shapes do.

    Nothing stays at its start: norms leave 1, biases and silenced layers leave 0.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                weight.copy_(0.3 * noise + (1.0 if "norm" in name else 0.0))
            elif "embed" in name or "phase" in name:
                weight.copy_(0.7 * noise)
            else:
                weight.copy_(noise * weight.shape[1] ** -0.5)


def build(design: Design, size: Size = SHARED, seed: int = 0) -> Compressor:
    model = Compressor(design, size)
    randomise(model, seed)
    return model


def make(task: Task, length: int, cuts: tuple[int, ...] = (), document: int = 0, seed: int = 0) -> Sample:
    tokens = np.random.default_rng([seed, document]).integers(0, WORDS, length)
    return Sample(tokens, cuts, task, document)


def mixture() -> list[Sample]:
    """Every task, ragged lengths, several wrapped spans, one that ends wrapped, one that starts raw, one question."""
    return [
        make("continue", 29, (9, 14, 25), document=0),
        make("reconstruct", 13, document=1),
        make("continue", 21, (17,), document=2),
        make("parallel", 10, document=3),
        make("continue", 16, (3, 7), document=4),
        make("reconstruct", 1, document=5),
        make("continue", 18, (0, 5, 12), document=6),
        replace(make("reconstruct", 19, (8,), document=7), quiet=11),
    ]


def combinations(**choices: list[Any]) -> Iterator[dict[str, Any]]:
    for values in product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


@st.composite
def designs(
    draw: st.DrawFn,
    ratios: st.SearchStrategy[int],
    blocks: st.SearchStrategy[int],
    controls: tuple[str, ...] = CONTROLS,
) -> Design:
    """Valid designs; `blocks` is the number of blocks in a window. Half of them are compressors.

    They fit every size here: an encoder of another width has an embedding of its own.
    """
    ratio = draw(ratios)
    window = ratio * draw(blocks)
    embeddings = draw(st.sampled_from(("base", "separate")))
    return Design(
        pooling=draw(st.sampled_from(tuple(POOLINGS))),
        ratio=ratio,
        window=window,
        overlap=draw(st.integers(0, 2 * window)),
        mask=draw(st.sampled_from(MASKS)),
        adapter=draw(st.sampled_from(tuple(ADAPTERS))),
        depth=draw(st.integers(0, 3)),
        encoder=draw(st.sampled_from(ENCODERS + ("d24", "l1d8h2k2") * (embeddings == "separate"))),
        decoder=draw(st.sampled_from(DECODERS)),
        embeddings=embeddings,
        positions=draw(st.sampled_from(("base", "spread", "consecutive"))),
        control=draw(st.sampled_from(("none",) * max(1, len(controls)) + controls)),
    )


@st.composite
def samples(draw: st.DrawFn, longest: int = 32) -> list[Sample]:
    """One to four samples of any task, with ragged lengths and up to five segments."""
    out = []
    for document in range(draw(st.integers(1, 4))):
        task = draw(st.sampled_from(TASKS))
        length = draw(st.integers(2 if task == "continue" else 1, longest))
        cuts: tuple[int, ...] = ()
        quiet = 0
        if task == "continue" or (task == "reconstruct" and length > 1 and draw(st.booleans())):
            cuts = tuple(sorted(draw(st.sets(st.integers(1, length - 1), min_size=1, max_size=4))))
            quiet = draw(st.integers(0, cuts[0]))  # what follows the first span is scored, so that something is
            cuts = (0,) * (len(cuts) > 2 and draw(st.booleans())) + cuts
        out.append(replace(make(task, length, cuts, document, seed=draw(st.integers(0, 9))), quiet=quiet))
    return out


tiny_designs = designs(st.integers(2, 4), st.integers(1, 4))
positions: st.SearchStrategy[Positions] = st.sampled_from(("spread", "consecutive"))
