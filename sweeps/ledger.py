"""The ledger of a sweep: Optuna's study, driven by ask and tell. It is the truth that everything else shows.

Notable choices:
- planned trials (baseline seeds, controls, ablations) are enqueued, the rest is the sampler's; a design the sampler
  proposes again gets its next seed, so that no design is trained twice with the same seed;
- a trial carries its design, seed and role as attributes; what was asked but not finished stays RUNNING and is taken
  up again by the next driver;
- controls are no compressors: a constraint marks them infeasible, and their rung values are kept from the pruner.
"""

import warnings
from dataclasses import dataclass

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from search_space.design import Design
from sweeps.config import SweepConfig
from trainer.trial import RungResult

__all__ = ["Assignment", "Ledger"]

_RUNG = "rung {}"  # user attribute: value at a rung that the trial went on from


@dataclass(frozen=True)
class Assignment:
    """A trial that is to be trained: its number, what it is, and the rung to reach next (from 1)."""

    number: int
    design: Design
    seed: int
    role: str
    rung: int


class Ledger:
    """Opens the study of `config`, creating it where needed."""

    def __init__(self, config: SweepConfig, storage: str | BaseStorage) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.config = config
        self.rungs = len(config.recipe.rungs)
        self.study = optuna.create_study(
            study_name=config.name,
            storage=storage,
            pruner=_pruner(config),
            direction="minimize",
            load_if_exists=True,
        )
        self.study.sampler = _sampler(config, seed=len(self.trials()))  # a continued sweep draws on, not again

    def plan(self) -> None:
        """Enqueue the trials that come before the sampler's, those that are not there yet."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self.study.set_metric_names([f"heldout_{self.config.metric}"])
        have = {(t.user_attrs.get("design"), t.user_attrs.get("seed")) for t in self.trials()}
        for design, seed, role in self.config.planned():
            if (design.name, seed) not in have:
                params = {} if role == "control" else self.config.space.answers(design)
                self.study.enqueue_trial(params, {"design": design.name, "seed": seed, "role": role})

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def trial(self, number: int) -> FrozenTrial:
        return self.trials()[number]

    def best(self) -> tuple[str, float] | None:
        """Name and value of the best complete compressor so far."""
        done = [t for t in self.trials() if t.state == TrialState.COMPLETE and t.user_attrs["role"] != "control"]
        best = min(done, key=lambda t: t.value or 0.0, default=None)
        return None if best is None else (best.user_attrs["design"], float(best.value or 0.0))

    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        return sum(t.state.is_finished() for t in self.trials()) >= self.config.trials

    def unfinished(self) -> list[Assignment]:
        """Trials that an earlier driver left running, oldest first."""
        return [self._assign(t) for t in self.trials() if t.state == TrialState.RUNNING]

    def ask(self) -> Assignment | None:
        """The next trial, or None when there are as many as the sweep wants."""
        trials = self.trials()
        started = [t for t in trials if t.state != TrialState.WAITING]
        if len(started) >= self.config.trials:
            return None
        return self._assign(self.study.ask())

    def record(self, number: int, result: RungResult) -> str:
        """Take note of a rung: `continue`, or `pruned` or `complete` when that ended the trial.

        What says that the rung is done is written last, so that a driver killed in here is followed by one that
        takes the same note again, to the same effect.
        """
        trial, frozen = self._open(number)
        value, role = result.heldout.loss[self.config.metric], frozen.user_attrs["role"]
        if role != "control" and result.tokens not in frozen.intermediate_values:
            trial.report(value, step=result.tokens)
        if result.rung == self.rungs:
            if not frozen.constraints:
                trial.set_constraint("is a control", 1.0 if role == "control" else -1.0)
            self.study.tell(number, value)
            return "complete"
        if role == "arm" and trial.should_prune():
            self.study.tell(number, state=TrialState.PRUNED)
            return "pruned"
        trial.set_user_attr(_RUNG.format(result.rung), value)
        return "continue"

    def fail(self, number: int, reason: str) -> None:
        """End a trial that cannot be trained. It has no value."""
        trial, _ = self._open(number)
        trial.set_user_attr("reason", reason)
        self.study.tell(number, state=TrialState.FAIL)

    def retry(self, number: int, reason: str) -> bool:
        """Count a fault of the machine; False when the trial has had its retries."""
        trial, frozen = self._open(number)
        faults = [*frozen.user_attrs.get("faults", []), reason]
        trial.set_user_attr("faults", faults)
        return len(faults) <= self.config.retries

    def _open(self, number: int) -> tuple[Trial, FrozenTrial]:
        frozen = self.trial(number)
        return Trial(self.study, frozen._trial_id), frozen

    def _assign(self, trial: Trial | FrozenTrial) -> Assignment:
        live, frozen = self._open(trial.number)
        attrs = frozen.user_attrs
        if attrs.get("role") != "control":
            # Answers are kept by Optuna: asking again after a crash in the middle gives the same design.
            design = self.config.space.choose(live.suggest_categorical)
            if "design" not in attrs:
                live.set_user_attr("seed", self._free_seed(design))
                live.set_user_attr("role", "baseline" if design.name == self.config.baseline else "arm")
                live.set_user_attr("design", design.name)  # last: it says that the others are there
                attrs = self.trial(trial.number).user_attrs
        done = sum(_RUNG.format(r) in attrs for r in range(1, self.rungs + 1))
        return Assignment(trial.number, Design.parse(attrs["design"]), attrs["seed"], attrs["role"], done + 1)

    def _free_seed(self, design: Design) -> int:
        taken = {t.user_attrs["seed"] for t in self.trials() if t.user_attrs.get("design") == design.name}
        return next(s for s in range(len(taken) + 1) if s not in taken)


def _sampler(config: SweepConfig, seed: int) -> BaseSampler:
    if config.sampler == "random":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, constant_liar=True, n_startup_trials=config.startup)


def _pruner(config: SweepConfig) -> BasePruner:
    if config.pruner == "none":
        return NopPruner()
    return MedianPruner(n_startup_trials=config.startup)
