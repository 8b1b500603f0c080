"""Loss curves that a refactor must reproduce: what was trained for them, and where they are kept.

The text is made here by rule. `python -m tests.trainer.golden` trains them again and replaces what is kept: do so only
for a change that is meant to change the numbers, and say in docs/log.md why.
"""

import json
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from search_space.design import Design
from tests.tiny import SIZE
from trainer.optim import OptimConfig
from trainer.prepare import CorpusConfig, prepare
from trainer.pretrain import pretrain
from trainer.recipe import Lesson, Recipe
from trainer.tokenizer import SMALLEST_VOCAB
from trainer.trial import RungResult, TrialSpec

__all__ = ["CURVES", "KEPT", "corpus_of", "curve", "train"]

KEPT = Path(__file__).parents[1] / "assets" / "losses"
_STEPS = 30
_RECIPE = Recipe(
    steps=_STEPS,
    rungs=[0.5, 1.0],
    piece=64,
    pieces=3,
    curriculum=[Lesson(0.5, 32), Lesson(1.0, 64)],
    continuation=0.3,
    documents=6,
    precision="32-true",
    checkpoint_every=_STEPS,
)
_ADAMW = replace(_RECIPE, optim=OptimConfig(kind="adamw"))
CURVES = {
    "mean-w32-causal-mlp-O0-n8": (_RECIPE, 5e-4),
    "eos-w16-bidirectional-attn_mlp-O8-n4": (_ADAMW, 2e-5),
}
"""Design, recipe, and the relative difference that another machine may make.

The kept curves came back exactly on the machine that made them. With two threads, or with kernels for AVX2 or SSE in
place of AVX-512, they moved by up to 1.2e-4 with Muon, which rounds to bfloat16 on its way, and 6.6e-6 with AdamW.
A rate of AdamW off by a thousandth moves them by 3.3e-4 and 6.9e-4, a clipping norm off by a hundredth by 1.8e-4 and
7.7e-4.
"""

_WORDS = {
    "S": ["N V N.", "N V N, and S", "if S then S"],
    "N": ["the A B", "a B", "every B of N"],
    "A": ["small", "old", "patient", "green", "hidden"],
    "B": ["window", "river", "latent", "teacher", "machine", "letter", "garden"],
    "V": ["reads", "compresses", "follows", "forgets", "paints", "answers"],
}


def _sentence(rng: random.Random, symbol: str = "S", depth: int = 0) -> str:
    """`random.random` is the one source of chance that Python promises to keep."""
    choices = _WORDS[symbol]
    chosen = choices[0] if depth > 4 and symbol in "SN" else choices[int(rng.random() * len(choices))]
    return "".join(_sentence(rng, c, depth + 1) if c in _WORDS else c for c in chosen)


def _texts() -> Iterator[str]:
    rng = random.Random(0)
    for _ in range(30):
        yield "\n".join(_sentence(rng) for _ in range(20))


def corpus_of(folder: Path) -> Path:
    """The corpus, of single bytes, so that no other version of a tokenizer can divide the text otherwise."""
    text = folder / "text"
    text.mkdir()
    for i, document in enumerate(_texts()):
        (text / f"{i:02}.txt").write_text(document)
    config = CorpusConfig(str(text), vocab=SMALLEST_VOCAB, heldout=0.3)
    return prepare(config, folder / "corpora", workers=1).folder


def train(design: str, corpus: Path, folder: Path) -> list[RungResult]:
    """Both rungs, on one thread."""
    torch.set_num_threads(1)
    recipe, _ = CURVES[design]
    spec = TrialSpec(Design.parse(design), SIZE, recipe, 0, str(corpus))
    return [pretrain(spec, folder, rung) for rung in (1, 2)]


def curve(results: list[RungResult]) -> dict[str, Any]:
    """train: loss of each step. heldout: losses at the end of each rung. tokens: seen by then."""
    return {
        "tokens": [result.tokens for result in results],
        "train": [loss for _, loss, _ in results[-1].curve],
        "heldout": [result.heldout.loss for result in results],
    }


def main() -> None:
    """Replace what is kept."""
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        corpus = corpus_of(Path(scratch))
        for design in CURVES:
            found = curve(train(design, corpus, Path(scratch) / design))
            (KEPT / f"{design}.json").write_text(json.dumps(found, indent=1) + "\n")
            print(f"{design}: {found['train'][0]:.4f} to {found['train'][-1]:.4f}", file=sys.stderr)


if __name__ == "__main__":
    main()
