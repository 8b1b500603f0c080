"""What goes into a trial and what comes out: plain data, importable without Lightning."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from search_space.compressor import Size
from search_space.design import Design
from trainer.recipe import Recipe

__all__ = ["Diverged", "Heldout", "Interrupted", "OutOfMemory", "Progress", "RungResult", "Stalled", "TrialSpec"]

Progress = Callable[[int, int], bool]
"""Called with (step, raw tokens seen) after every step; returning False asks to stop there."""


class Diverged(RuntimeError):
    """The loss is not a finite number any more."""


class OutOfMemory(RuntimeError):
    """A tensor did not fit; the trial would end so again."""


class Stalled(RuntimeError):
    """No batch came for too long; the machine's fault, or its file system's."""


class Interrupted(RuntimeError):
    """Stopped on request, with a checkpoint written."""


@dataclass(frozen=True)
class TrialSpec:
    """Everything that determines a trial's result. corpus: folder of the corpus."""

    design: Design
    size: Size
    recipe: Recipe
    seed: int
    corpus: str


@dataclass(frozen=True)
class Heldout:
    """loss, accuracy: per task, mean over documents (nats per token; share of tokens guessed right).
    documents: per task, the loss of each document, in the order of the held-out set.
    distance: per task, mean loss of the tokens from so many behind the span on, up to the next entry's.
    """

    loss: dict[str, float]
    accuracy: dict[str, float]
    documents: dict[str, list[float]]
    distance: dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class RungResult:
    """rung: counted from 1. step, tokens: seen by its end. seconds: of training, over all runs of this trial.
    curve: (raw tokens, mean training loss since the last point, learning-rate factor), from the start.
    recovered: what was wrong with checkpoints that had to be passed over.
    """

    rung: int
    step: int
    tokens: int
    seconds: float
    train_loss: float
    heldout: Heldout
    curve: list[tuple[int, float, float]]
    recovered: list[str]

    @staticmethod
    def path(folder: Path, rung: int) -> Path:
        return folder / f"rung-{rung}.json"

    def save(self, folder: Path) -> None:
        """Whole or not at all."""
        path = self.path(folder, self.rung)
        scratch = path.with_name(f"{path.name}.{os.getpid()}.part")
        with scratch.open("w") as stream:
            json.dump(asdict(self), stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(scratch, path)

    @classmethod
    def load(cls, path: Path) -> "RungResult":
        data = json.loads(path.read_text())
        data["heldout"] = Heldout(**data["heldout"])
        for task, losses in data["heldout"].distance.items():
            data["heldout"].distance[task] = [(first, loss) for first, loss in losses]
        data["curve"] = [(tokens, loss, rate) for tokens, loss, rate in data["curve"]]
        return cls(**data)

    @classmethod
    def load_all(cls, folder: Path) -> "list[RungResult]":
        """The rungs a trial has reached, in order."""
        return sorted((cls.load(p) for p in folder.glob("rung-*.json")), key=lambda r: r.rung)
