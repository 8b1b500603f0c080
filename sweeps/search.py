"""What the sampler and the study are made of: which sampler, objectives and constraints.

Notable choices:
- an infeasible trial without a value is told PRUNED after `trial.set_constraint(name, value > 0)`: TPE counts it among
  the bad ones, NSGA-II breeds from complete trials only. A FAIL is invisible to TPE, which then proposes its like most;
- controls answer no question of the space. Where all trials must share their parameters, as by Optuna's default, one
  control leaves no shared ones: TPE then draws each axis by itself and NSGA-II all of them at random. So TPE decomposes
  the space into groups, and NSGA-II looks at trials that have parameters;
- optuna-dashboard 0.21 reads constraints only as Optuna 4 wrote them, so `constrain` writes both forms;
- TPE's time grows with the trials that it looks at, to 12 ms for each of the first 1,000, so it sees no more than 250:
  the best, from which it takes its good ones (25 at most, whatever there is to choose from), those that are running,
  and of the others every so many. Up to 250 nothing changes;
- grid: the configuration plans all of it (`SweepConfig.planned`); what comes after that is random.
"""

import warnings
from bisect import insort
from math import inf
from typing import Literal

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.search_space import intersection_search_space
from optuna.trial import FrozenTrial, Trial, TrialState

from sweeps.config import SweepConfig

__all__ = ["SEEN", "Seen", "constrain", "directions", "make_sampler", "metric_names"]

SEEN = 250  # finished trials: fewer, and TPE would take fewer good ones
_BEST = 50  # of them
_POPULATION = 8  # sweeps have tens of trials, and the first population is random


class _NSGAII(NSGAIISampler):
    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        answered = [t for t in study.get_trials(deepcopy=False) if t.params]
        return {name: d for name, d in intersection_search_space(answered).items() if not d.single()}


def make_sampler(config: SweepConfig, seed: int) -> BaseSampler:
    match config.sampler:
        case "tpe":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                startup = config.startup
                return TPESampler(
                    seed=seed, n_startup_trials=startup, constant_liar=True, multivariate=True, group=True
                )
        case "random" | "grid":
            return RandomSampler(seed=seed)
        case "nsga2":
            return _NSGAII(seed=seed, population_size=_POPULATION)


class Seen:
    """Of the finished trials of a study, those that TPE is shown: at most `SEEN`, whatever the order they ended in."""

    def __init__(self) -> None:
        self._ranked: list[tuple[tuple[bool, bool, float, float], int]] = []
        self._numbers: list[int] = []

    def add(self, trial: FrozenTrial) -> None:
        """Take note of a trial that has ended; failed ones are nothing to TPE."""
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            insort(self._ranked, (_rank(trial), trial.number))
            insort(self._numbers, trial.number)

    def numbers(self) -> set[int]:
        if len(self._numbers) <= SEEN:
            return set(self._numbers)
        best = {number for _, number in self._ranked[:_BEST]}
        spread = [number for number in _evenly(self._numbers, SEEN) if number not in best]
        return best | set(_evenly(spread, SEEN - _BEST))


def _evenly(numbers: list[int], count: int) -> list[int]:
    return [numbers[i * len(numbers) // count] for i in range(count)]


def _rank(trial: FrozenTrial) -> tuple[bool, bool, float, float]:
    """TPE's order: feasible before infeasible, complete before pruned, those by how far they got, and by loss."""
    complete = trial.state == TrialState.COMPLETE
    step = 0 if complete else max(trial.intermediate_values, default=0)
    loss = trial.values[0] if trial.values else inf
    return any(value > 0 for value in trial.constraints.values()), not complete, -step, loss


def directions(config: SweepConfig) -> list[Literal["minimize"]]:
    """Of the objectives, in order; everything is minimised."""
    return ["minimize"] * len(config.objectives)


def metric_names(config: SweepConfig) -> list[str]:
    """Of the objectives, in order: the held-out loss in nats, prefill in FLOPs per raw token."""
    names = {"loss": f"heldout_{config.metric}", "prefill": "prefill_flops"}
    return [names[objective] for objective in config.objectives]


def constrain(trial: Trial, name: str, excess: float) -> None:
    """Say how far the running `trial` exceeds the limit `name`: above 0 makes it infeasible. Said again it is ignored.

    Samplers add up what several limits are exceeded by, so that wants one unit: a share of the limit.
    Raises `ValueError` for NaN.
    """
    if name not in trial.constraints:
        trial.set_constraint(name, excess)
    named = [value for key, value in trial.constraints.items() if not key.isdigit()]  # the old form has numbers
    trial.storage.set_trial_system_attr(trial._trial_id, "constraints", named)
