"""The trainer's step without the trainer: what `lclab bench train` runs beside it."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from statistics import fmean
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from search_space.compressor import Compressor, Size
from search_space.design import Design
from search_space.errors import UsageError
from search_space.layout import Batch
from trainer.corpus import Corpus
from trainer.module import CompressorModule
from trainer.recipe import Lesson, Recipe, precision_of
from trainer.stream import Microbatches, TrainingSamples

__all__ = ["SEED", "Loop", "Work", "clock_of"]

SEED = 0
_RUNGS = 100  # so that the first has one point of the curve, at its end


@dataclass(frozen=True)
class Work:
    """What is measured on: `steps` in a round, and so many `rounds`, of which the fastest counts."""

    design: Design
    size: Size
    recipe: Recipe
    corpus: Corpus
    steps: int = 8
    rounds: int = 5

    @staticmethod
    def check(steps: int, rounds: int) -> None:
        """Raise `UsageError` for a number below 1."""
        for name, value in (("steps", steps), ("rounds", rounds)):
            if value < 1:
                raise UsageError(f"{name}: {value} is not at least 1")

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def total(self) -> int:
        """Steps of all rounds, and of one to warm up."""
        return self.steps * (self.rounds + 1)

    def measured(self) -> Recipe:
        """The recipe at its last span, with a first rung of these steps and as little around them as can be."""
        span = [Lesson(1.0, self.recipe.curriculum[-1].span)]
        own = {"rungs": [1 / _RUNGS, 1.0], "curriculum": span, "checkpoint_every": self.total, "documents": 2}
        return replace(self.recipe, steps=_RUNGS * self.total, **own)

    def samples(self) -> TrainingSamples:
        return TrainingSamples(self.corpus, self.measured(), SEED)

    def microbatches(self) -> Microbatches:
        return Microbatches(self.samples(), self.design, self.size, self.corpus.specials, 0)

    def batches(self, steps: int) -> list[Batch]:
        return [move_data_to_device(batch, self.device) for batch in islice(self.microbatches(), steps)]


class Loop:
    """The trainer's step without Lightning around it.

    losses: of each step so far, nats per scored token.
    """

    def __init__(self, work: Work, design: Design, size: Size) -> None:
        torch.set_num_threads(1)
        warnings.filterwarnings("ignore", ".*Mismatch dtype between.*")  # as `pretrain` does
        self._recipe, self._device = work.measured(), work.device
        self._module = CompressorModule(design, size, self._recipe, SEED).to(work.device)
        parts: Any = self._module.configure_optimizers()
        self._optimizer, self._schedule = parts["optimizer"], parts["lr_scheduler"]["scheduler"]
        self._mixed = precision_of(self._recipe) == "bf16-mixed"
        self.losses: list[Tensor] = []

    def __call__(self, loss: Callable[[Compressor], Tensor], tokens: int = 1) -> None:
        """A step on a `loss` that is a sum over `tokens`."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._mixed):
            total = loss(self._module.model)
        total.backward()
        if tokens > 1:
            torch._foreach_mul_([p.grad for p in self._module.parameters() if p.grad is not None], 1 / tokens)
        torch.nn.utils.clip_grad_norm_(self._module.parameters(), self._recipe.optim.clip)
        self._optimizer.step()
        self._schedule.step()
        self._module.zero_grad(set_to_none=True)
        self.losses.append(total.detach() / tokens)

    def ours(self, batch: Batch) -> None:
        self(lambda model: model.loss(batch), len(batch.target_P))

    def loss(self, start: int, stop: int | None = None) -> float:
        return fmean(map(float, self.losses[start:stop]))


def clock_of(device: torch.device) -> Callable[[], float]:
    """CPU time of this thread, without the loader's; for a GPU the time until it has done what it was given."""
    if device.type == "cpu":
        return time.thread_time

    def done() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return done
