"""The recipe: how a design is trained, the same for every design of a sweep.

Progress is counted in steps; a step holds the same raw tokens for every design, so that a budget in steps is one in
raw tokens. Rungs are annealed (WSD-S): warm-up, constant, and a short decay before each rung's evaluation, then on
from there at the constant rate, since rankings flip while the rate decays.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from search_space.errors import UsageError
from trainer.optim import OptimConfig

__all__ = ["Lesson", "Recipe", "precision_of"]

Precision = Literal["auto", "32-true", "bf16-mixed"]


@dataclass(frozen=True)
class Lesson:
    """A stretch of the span-length curriculum: `span` tokens are wrapped at once until `until` of the steps."""

    until: float
    span: int


@dataclass(frozen=True)
class Recipe:
    """steps: optimizer steps of a full trial.
    rungs: where trials are compared, as shares of `steps`; the last is 1.
    decay: share of a rung's own steps, counted from the previous rung, in which the rate decays to `floor`;
    lowest: learning rate below which `floor` does not bring any weight's; a part that peaks below it stays at its peak.
    decay_shape: how. One rung with decay = 1 - warmup and `cosine` is the usual cosine schedule.
    piece: raw tokens of one stretch of a document, at most; a step has `pieces` times as many, give or take a piece.
    mixture: share of a step's tokens by source of the corpus; as large as the sources are, where it is empty.
    format: what is made of a piece. `spans` is for small models: wrapped spans of the curriculum's length.
        `published` wraps by the rules of paper section 3, which know the document's length and a chat's messages.
    continuation: share of pieces that are interleaved (wrapped, raw, ...) and scored on raw tokens; the others are
        reconstructed.
    curriculum: `spans`: span length by progress; the last stage ends at 1.
    parallel: `spans`: share of reconstructions in which the decoder's own inputs are masked.
    optim: the optimizer and its peak rates.
    precision: `auto` is bfloat16 where the hardware multiplies in it, else float32.
    documents: held-out documents, one span each; the same for every trial.
    checkpoint_every: steps between checkpoints. evaluate_every: steps between held-out evaluations beside those of the
        rungs, at the rate of the moment; 0 for none.
    """

    steps: int = 600
    rungs: list[float] = field(default_factory=lambda: [0.5, 1.0])
    warmup: float = 0.05
    decay: float = 0.1
    decay_shape: Literal["linear", "cosine"] = "linear"
    floor: float = 0.02
    lowest: float = 0.0
    piece: int = 128
    pieces: int = 6
    mixture: dict[str, float] = field(default_factory=dict)
    format: Literal["spans", "published"] = "spans"
    curriculum: list[Lesson] = field(default_factory=lambda: [Lesson(0.35, 32), Lesson(0.6, 64), Lesson(1.0, 128)])
    parallel: float = 0.5
    continuation: float = 0.0
    optim: OptimConfig = field(default_factory=OptimConfig)
    precision: Precision = "auto"
    documents: int = 48
    checkpoint_every: int = 100
    evaluate_every: int = 0

    def check(self) -> None:
        """Raise `UsageError` for the first field that cannot be."""
        for name in ("steps", "piece", "pieces", "documents", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"recipe.{name}: {getattr(self, name)} is not at least 1")
        if self.evaluate_every < 0 or not 0 <= self.lowest < math.inf:
            raise UsageError(
                f"recipe.evaluate_every, recipe.lowest: {self.evaluate_every} and {self.lowest} are not at least 0"
            )
        for name in ("warmup", "decay", "floor", "parallel", "continuation"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"recipe.{name}: {getattr(self, name)} is not between 0 and 1")
        self.optim.check()
        if any(weight <= 0 for weight in self.mixture.values()):
            raise UsageError(f"recipe.mixture: {dict(self.mixture)} has a share that is not above 0")
        _ascending("recipe.rungs", self.rungs)
        _ascending("recipe.curriculum", [s.until for s in self.curriculum])
        if any(s.span < 2 for s in self.curriculum):  # of two tokens one is wrapped and one raw
            raise UsageError("recipe.curriculum: a span is not at least 2 tokens")
        if len(set(self.rung_steps())) < len(self.rungs) or self.rung_steps()[0] < 1:
            raise UsageError(f"recipe.rungs: {self.rungs} of {self.steps} steps are not distinct steps")

    def rung_steps(self) -> list[int]:
        """The step that ends each rung."""
        return [round(self.steps * r) for r in self.rungs]

    def span_at(self, step: int) -> int:
        """Curriculum: tokens wrapped at once in `step`, counted from 0."""
        return next((s.span for s in self.curriculum if step < s.until * self.steps), self.curriculum[-1].span)

    def rate_at(self, step: int, peak: float = math.inf) -> float:
        """Learning-rate factor of `step`, counted from 0, in [floor, 1], of weights whose rate peaks at `peak`."""
        floor = max(self.floor, min(1.0, self.lowest / peak))
        warmup = max(1, round(self.warmup * self.steps))
        start = 0
        for end in self.rung_steps():
            if step < end:
                decay = max(1, round(self.decay * (end - start)))
                done = max(0.0, (step + 1 - (end - decay)) / decay)
                shaped = done if self.decay_shape == "linear" else (1 - math.cos(math.pi * done)) / 2
                annealed = 1 - (1 - floor) * shaped
                return min(annealed, (step + 1) / warmup)
            start = end
        return floor


def precision_of(recipe: Recipe) -> Literal["32-true", "bf16-mixed"]:
    """What `auto` is on this machine, else what the recipe says."""
    if recipe.precision != "auto":
        return recipe.precision
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported()
    else:
        capabilities = torch.cpu.get_capabilities()
        fast = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "arm_bf16"))
    return "bf16-mixed" if fast else "32-true"


def _ascending(field_name: str, shares: list[float]) -> None:
    if not shares or shares[-1] != 1 or any(a >= b for a, b in zip([0.0, *shares], shares, strict=False)):
        raise UsageError(f"{field_name}: {shares} must ascend from above 0 and end at 1")
