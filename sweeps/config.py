"""The configuration of a sweep: presets, files and overrides into one checked dataclass."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any, Literal, NamedTuple

from omegaconf import OmegaConf

from search_space.compressor import Size
from search_space.cost import Cost, cost
from search_space.design import CONTROLS, Design
from search_space.errors import UsageError
from search_space.layout import Task
from search_space.settings import read_settings
from search_space.space import Space
from trainer.parallel import Parallel
from trainer.prepare import CorpusConfig
from trainer.recipe import Recipe, precision_of

__all__ = ["PRESETS", "Limits", "Planned", "SweepConfig", "dump", "load", "presets"]

PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class Limits:
    """What a trial may take; one that takes more is infeasible. None: no limit.
    memory: GB (10^9 bytes) at the peak of a training step, by the memory model, known before training.
    seconds: of training a trial to its end, known when it gets there.
    """

    memory: float | None = None
    seconds: float | None = None


class Planned(NamedTuple):
    """A trial that the configuration wants. role: baseline, control, arm or rate. rate: factor on the learning rates,
    1 but in that role."""

    design: Design
    seed: int
    role: str
    rate: float = 1.0


@dataclass(frozen=True)
class SweepConfig:
    """name: folder, study and MLflow experiment of the sweep.
    metric: the held-out loss that designs are selected on. A recipe in the published format trains no parallel
    reconstruction, so its sweeps want `continue`, next-token loss.
    baseline: name of the design that others are compared with; seeds: how often it is trained.
    controls: trained once each, to give the losses a meaning.
    ablations: train every design that differs from the baseline in one choice before the sampler takes over.
    trials: how many in all. Where ablations and sampler want more, `trials` wins.
    sampler: `grid` plans every member of the space, the others choose after what is planned (see `sweeps.search`).
    replicates: seeds of every design that the grid or the sampler chooses.
    rates: factors at which every planned design is trained once more, with seed 0 and the peak learning rates times the
    factor, to see how much a comparison hangs on one rate for all.
    pruner: see `sweeps.pruning`. startup: complete trials before TPE learns and the median prunes.
    keep: how many go on after the cut-off. factor: of halving, one in so many goes on.
    objectives: what is minimised; `prefill` is FLOPs per raw token. limits: what makes a trial infeasible.
    workers: trials at a time. threads, gpus: of each process that trains; 0.5 GPUs lets two share one.
    address: a Ray cluster to use (HOST:PORT, `auto` on one of its machines, ray://HOST:PORT), else one is started here.
    study_url, tracking_url, artifacts_url: where Optuna's study, MLflow's tracking and its artifacts are kept, such as
    postgresql://USER@HOST/DATABASE and s3://BUCKET/FOLDER; in the home folder where empty.
    retries: of a trial after a fault of the machine. timeout: seconds without a step after which a trial is taken to
    hang; its start and its evaluations count.
    """

    name: str = "sweep"
    metric: Task = "parallel"
    baseline: str = "mean-w32-causal-mlp-O0-n8"
    seeds: int = 3
    controls: list[str] = field(default_factory=lambda: list(CONTROLS))
    ablations: bool = True
    trials: int = 16
    sampler: Literal["tpe", "random", "grid", "nsga2"] = "tpe"
    replicates: int = 1
    rates: list[float] = field(default_factory=list)
    pruner: Literal["none", "median", "halving", "wilcoxon", "cutoff"] = "halving"
    startup: int = 4
    keep: int = 4
    factor: int = 2
    objectives: list[Literal["loss", "prefill"]] = field(default_factory=lambda: ["loss"])
    limits: Limits = field(default_factory=Limits)
    workers: int = 2
    threads: int = 1
    gpus: float = 0.0
    address: str = ""
    retries: int = 2
    timeout: float = 1800.0
    study_url: str = ""
    tracking_url: str = ""
    artifacts_url: str = ""
    space: Space = field(default_factory=Space)
    size: Size = field(default_factory=Size)
    recipe: Recipe = field(default_factory=Recipe)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    parallel: Parallel = field(default_factory=Parallel)

    def check(self) -> None:
        """Raise `UsageError` for the first field that cannot be; nothing has been written by then."""
        ones = dict.fromkeys(["seeds", "trials", "workers", "threads", "replicates", "keep"], 1)
        for name, least in {**ones, "startup": 0, "retries": 0, "factor": 2}.items():
            if getattr(self, name) < least:
                raise UsageError(f"{name}: {getattr(self, name)} is not at least {least}")
        for name, limit in vars(self.limits).items():
            if limit is not None and not limit > 0:
                raise UsageError(f"limits.{name}: {limit} is not above 0")
        for rate in self.rates:
            if not 0 < rate < inf or rate == 1 or self.rates.count(rate) > 1:
                raise UsageError(f"rates: {rate} is not above 0, not 1, and there once; choose factors such as [0.5,2]")
        if not self.timeout > 0:
            raise UsageError(f"timeout: {self.timeout} seconds are not above 0")
        self._check_objectives()
        if not self.name or set(self.name) & set("/\\ :'\"") or self.name.startswith("."):
            raise UsageError(f"name: {self.name!r} cannot name a folder and a model; avoid / \\ : ' \" and spaces")
        for control in self.controls:
            if control not in CONTROLS:
                raise UsageError(f"controls: {control!r} is not one of {', '.join(CONTROLS)}")
        self._check_places()
        self.space.check()
        self.recipe.check()
        self.corpus.check()
        self.parallel.check()
        baseline = Design.parse(self.baseline)
        outside = self.space.without(baseline)
        if outside:
            raise UsageError(f"baseline: {self.baseline} is outside the space, {outside}; set baseline= or that axis")
        self._check_size()

    def _check_places(self) -> None:
        """Where trials run and what is known of them is kept."""
        share = self.gpus != int(self.gpus)
        if self.gpus < 0 or (share and (self.gpus > 1 or self.parallel.strategy != "one")):
            raise UsageError(f"gpus: {self.gpus} is neither a whole number nor, where a trial is one process, a share")
        if self.study_url and self.study_url == self.tracking_url:  # both keep an `alembic_version` there
            raise UsageError("tracking_url: is study_url; Optuna and MLflow want a database each")

    def _check_objectives(self) -> None:
        several = len(self.objectives) > 1
        if self.objectives not in (["loss"], ["loss", "prefill"]):
            raise UsageError(f"objectives: {self.objectives} is neither [loss] nor [loss, prefill]")
        if self.sampler == "nsga2" and not several:
            raise UsageError("sampler: nsga2 wants objectives=[loss,prefill]; with one objective: tpe, random, grid")
        if self.pruner != "none" and several:
            raise UsageError(
                f"pruner: {self.pruner} judges the loss alone and would prune what is cheap; with objectives="
                "[loss,prefill]: none"
            )

    def _check_size(self) -> None:
        """Every design fits the size, and no two are the same at it."""
        seen: dict[Design, Design] = {}
        for design in [*self.space.members(), *(design for design, *_ in self.planned())]:
            size = self.model_size()
            twin = seen.setdefault(size.resolve(design), design)
            if twin != design:
                raise UsageError(
                    f"space: {twin.name} and {design.name} are one design at this size, {size.resolve(design).name}; "
                    "leave out the choice that the size makes already"
                )

    def model_size(self) -> Size:
        """`size` with the corpus's vocabulary."""
        return replace(self.size, vocab=self.corpus.vocab)

    def cost(self, design: Design) -> Cost:
        """Of `design` in a batch of this sweep's recipe, and on a context of one of its pieces."""
        r, spread = self.recipe, self.parallel
        pieces = -(-r.pieces // (spread.accumulate * spread.ranks))
        interleaved, precision = r.continuation == 1, precision_of(r)
        return cost(design, self.model_size(), r.piece, pieces, interleaved, precision, r.optim.kind, spread.recompute)

    def recipe_at(self, rate: float) -> Recipe:
        """The recipe of a trial whose learning rates are those of all times `rate`."""
        return self.recipe if rate == 1 else replace(self.recipe, optim=self.recipe.optim.times(rate))

    def planned(self) -> list[Planned]:
        """The trials that come before the sampler's, in order."""
        baseline = Design.parse(self.baseline)
        plan = [Planned(baseline, seed, "baseline") for seed in range(self.seeds)]
        plan += [Planned(baseline.but(control=name), 0, "control") for name in self.controls]
        if self.ablations:
            plan += [Planned(design, 0, "arm") for design in self.space.neighbours(baseline)]
        if self.sampler == "grid":
            have = {(planned.design, planned.seed) for planned in plan}
            grid = ((design, seed) for seed in range(self.replicates) for design in self.space.members())
            plan += [
                Planned(d, seed, "baseline" if d == baseline else "arm") for d, seed in grid if (d, seed) not in have
            ]
        judged = dict.fromkeys(planned.design for planned in plan if planned.role != "control")
        plan += [Planned(design, 0, "rate", rate) for rate in self.rates for design in judged]
        return plan[: self.trials]


def presets() -> list[str]:
    return sorted(p.stem for p in PRESETS.glob("*.yaml"))


def load(preset: str, overrides: Sequence[str] = ()) -> SweepConfig:
    """The configuration of a preset's name or a YAML file's path, with `key=value` overrides.

    Raises `UsageError` with the field and the choices.
    """
    path = PRESETS / f"{preset}.yaml"
    if not path.exists():
        path = Path(preset)
        if path.suffix not in (".yaml", ".yml") or not path.is_file():
            raise UsageError(f"preset: {preset!r} is neither a preset ({', '.join(presets())}) nor a YAML file")
    config = read_settings(SweepConfig(name=path.stem), path, overrides, "space.window=[64,256]")
    config.check()
    return config


def dump(config: SweepConfig) -> str:
    """The resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def differences(old: str, new: str) -> list[str]:
    """Keys in which two resolved configurations differ."""
    a, b = (_flat(OmegaConf.to_container(OmegaConf.create(text))) for text in (old, new))
    return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    leaves: dict[str, Any] = {}
    for name, branch in tree.items():
        leaves |= _flat(branch, f"{prefix}.{name}" if prefix else str(name))
    return leaves
