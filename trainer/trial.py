"""What goes into a trial and what comes out: plain data, importable without Lightning."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from search_space.compressor import Size
from search_space.design import Design
from search_space.files import write_json
from trainer.recipe import Recipe

__all__ = [
    *("Diverged", "Interrupted", "OutOfMemory", "Stalled"),
    *("Evaluation", "Heldout", "Progress", "RungResult", "TrialSpec"),
]

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
    """Everything that determines a trial's result, but for weights that it begins with.

    corpus: folder of the corpus. read: how far each source was read before, in tokens (see `trainer.stream`).
    """

    design: Design
    size: Size
    recipe: Recipe
    seed: int
    corpus: str
    read: dict[str, int] = field(default_factory=dict)


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


class Evaluation(NamedTuple):
    """A held-out evaluation on the way: raw tokens seen by then, and the loss per task."""

    step: int
    tokens: int
    loss: dict[str, float]


@dataclass(frozen=True)
class RungResult:
    """rung: counted from 1. step, tokens: seen by its end. seconds: of training, over all runs of this trial.
    curve: (raw tokens, mean training loss since the last point, learning-rate factor), from the start.
    recovered: what was wrong with checkpoints that had to be passed over.
    evaluations: between rungs, where the recipe asks for them.
    """

    rung: int
    step: int
    tokens: int
    seconds: float
    train_loss: float
    heldout: Heldout
    curve: list[tuple[int, float, float]]
    recovered: list[str]
    evaluations: list[Evaluation] = field(default_factory=list)

    @staticmethod
    def path(folder: Path, rung: int) -> Path:
        return folder / f"rung-{rung}.json"

    def save(self, folder: Path) -> None:
        write_json(self.path(folder, self.rung), asdict(self))

    @classmethod
    def load(cls, path: Path) -> "RungResult":
        data = json.loads(path.read_text())
        data["heldout"] = Heldout(**data["heldout"])
        for task, losses in data["heldout"].distance.items():
            data["heldout"].distance[task] = [(first, loss) for first, loss in losses]
        data["curve"] = [(tokens, loss, rate) for tokens, loss, rate in data["curve"]]
        data["evaluations"] = [Evaluation(*entry) for entry in data.get("evaluations", [])]
        return cls(**data)

    @classmethod
    def load_all(cls, folder: Path) -> "list[RungResult]":
        """The rungs a trial has reached, in order."""
        return sorted((cls.load(p) for p in folder.glob("rung-*.json")), key=lambda r: r.rung)
