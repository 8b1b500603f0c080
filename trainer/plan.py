"""The plan of a promoted run: one design, a model size, its initial weights, and the stages that train it.

Plain data, read from and written as one YAML file; `trainer.stages` runs it, `sweeps.scale_up` makes it. Tokens are
counted as the decoder counts them: raw tokens that it reads, and one latent in place of N wrapped ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from search_space.compressor import Size
from search_space.design import Design
from search_space.errors import UsageError
from search_space.layout import Task
from search_space.settings import read_settings
from trainer.optim import OptimConfig, PartConfig
from trainer.parallel import Parallel
from trainer.recipe import Lesson, Precision, Recipe

__all__ = ["PARTS", "Plan", "Rates", "Stage", "dump", "load"]

PARTS: tuple[Literal["adapter", "encoder", "decoder"], ...] = ("adapter", "encoder", "decoder")


@dataclass(frozen=True)
class Rates:
    """Of each part: peak learning rates, where 0 freezes it, or weight decay.

    Where Muon trains the matrices it is Muon's rate, and AdamW's for the rest is in proportion to those of `optim`.
    """

    adapter: float = 0.0
    encoder: float = 0.0
    decoder: float = 0.0


@dataclass(frozen=True)
class Stage:
    """steps: optimizer steps. warmup: of them, from 0 to the peak rates, which then follow a cosine to the plan's
    lowest rate.
    encoder_tokens, decoder_tokens: the stage's budget, which decides its steps.
    pieces: of `length` raw tokens, in one step.
    reconstruct: share of the pieces that are asked for verbatim; the others are interleaved.
    mixture: share of a step's raw tokens by source of the corpus; as large as the sources are, where it is empty.
    """

    name: str
    rates: Rates
    steps: int
    warmup: int
    encoder_tokens: int
    decoder_tokens: int
    pieces: int
    reconstruct: float = 0.0
    mixture: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """name: folder and MLflow experiment of the run.
    design: its name, without shapes; `size` has them. metric: the held-out loss that was predicted.
    encoder, decoder: folders with initial weights as Hugging Face keeps Qwen3; random where empty.
    corpus: the folder that `lclab data prepare` made; tokenizer: SHA-256 of its tokenizer.json.
    batch: decoder tokens of a step, on average. length: raw tokens of a piece, at most.
    optim: what all stages share; the peak rates are theirs. decay: weight decay by part. lowest: rate at a stage's end.
    evaluate_every, checkpoint_every: steps.
    tracking_url: of MLflow; beside the run where empty.
    evidence: the decision record of the promotion.
    """

    name: str
    design: str
    stages: list[Stage]
    corpus: str
    tokenizer: str = ""
    encoder: str = ""
    decoder: str = ""
    metric: Task = "continue"
    seed: int = 0
    batch: int = 4_194_304
    length: int = 16_384
    format: Literal["spans", "published"] = "published"
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(kind="adamw", scaling="none"))
    decay: Rates = field(default_factory=lambda: Rates(adapter=0.01, encoder=0.01, decoder=0.0))
    lowest: float = 1e-6
    precision: Precision = "auto"
    documents: int = 256
    evaluate_every: int = 1000
    checkpoint_every: int = 250
    size: Size = field(default_factory=Size)
    parallel: Parallel = field(default_factory=Parallel)
    tracking_url: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def recipe(self, stage: Stage) -> Recipe:
        """How `stage` is trained."""
        rest = self.optim.adamw_rate / self.optim.muon_rate if self.optim.kind == "muon" else 1.0
        rates = ((name, getattr(stage.rates, name)) for name in PARTS)
        parts = {name: PartConfig(rate, rate * rest, getattr(self.decay, name)) for name, rate in rates}
        warmup = stage.warmup / stage.steps
        return Recipe(
            steps=stage.steps,
            rungs=[1.0],
            warmup=warmup,
            decay=1 - warmup,
            decay_shape="cosine",
            floor=0.0,
            lowest=self.lowest,
            piece=self.length,
            pieces=stage.pieces,
            mixture=stage.mixture,
            format=self.format,
            curriculum=[Lesson(1.0, self.length)],
            parallel=0.0,
            continuation=1 - stage.reconstruct,
            optim=replace(self.optim, **parts),
            precision=self.precision,
            documents=self.documents,
            checkpoint_every=self.checkpoint_every,
            evaluate_every=self.evaluate_every,
        )

    def check(self) -> None:
        """Raise `UsageError` for the first field that cannot be."""
        if not self.stages:
            raise UsageError("stages: there is none; a plan has at least one")
        names = [stage.name for stage in self.stages]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"stages: the name {twice!r} stands twice")
        if not self.name or set(self.name) & set("/\\ :'\"") or self.name.startswith("."):
            raise UsageError(f"name: {self.name!r} cannot name a folder and a model; avoid / \\ : ' \" and spaces")
        for name in ("batch", "length", "documents", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}: {getattr(self, name)} is not at least 1")
        if not 0 <= self.lowest < inf:
            raise UsageError(f"lowest: {self.lowest} is not a rate of at least 0")
        for number, stage in enumerate(self.stages):
            self._check_stage(stage, f"stages[{number}]")
        self.parallel.check()
        self.size.of(Design.parse(self.design))

    def _check_stage(self, stage: Stage, where: str) -> None:
        if not stage.name or set(stage.name) & set("/\\ :'\""):
            raise UsageError(f"{where}.name: {stage.name!r} cannot name a folder; avoid / \\ : ' \" and spaces")
        for name in ("steps", "pieces"):
            if getattr(stage, name) < 1:
                raise UsageError(f"{where}.{name}: {getattr(stage, name)} is not at least 1")
        if not 0 <= stage.warmup <= stage.steps:
            raise UsageError(f"{where}.warmup: {stage.warmup} is not between 0 and its {stage.steps} steps")
        if not 0 <= stage.reconstruct <= 1:
            raise UsageError(f"{where}.reconstruct: {stage.reconstruct} is not between 0 and 1")
        if not any(vars(stage.rates).values()):
            raise UsageError(f"{where}.rates: all are 0, which leaves nothing to train")
        try:
            self.recipe(stage).check()
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error


def load(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """The plan in a YAML file, with `key=value` overrides. Raises `UsageError` with the field and the choices."""
    plan = read_settings(Plan, path, overrides, "parallel.nodes=2")
    plan.check()
    return plan


def dump(plan: Plan) -> str:
    """The plan as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(plan))
