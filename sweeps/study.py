"""The trials of a sweep: kept in Optuna's storage, mirrored in memory.

Notable choices:
- one driver at a time writes (see `SweepFolder.locked`), so a mirror that was read once stays right: an event costs a
  few short transactions and no reading, however many trials there are, and samplers and pruners never touch the
  database;
- a trial is written with its choices and what it is in one transaction, so that it is there whole or not at all;
- a sampler may be shown a part of the trials, so that what it costs does not grow with them;
- a database that is locked or away is waited for.
"""

import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Literal

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from search_space.space import Pick
from sweeps.search import Seen, constrain

__all__ = ["STATES", "Study", "state_of"]

STATES = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
Direction = Literal["minimize", "maximize"]
LOCKED_SECONDS = 600  # that a locked SQLite file is waited for


def state_of(trial: FrozenTrial) -> str:
    """One of `STATES`, or `infeasible`: Optuna knows that one as pruned or complete, with a constraint above 0."""
    return "infeasible" if trial.state.is_finished() and "infeasible" in trial.user_attrs else STATES[trial.state]


class _Mirror(InMemoryStorage):
    """shown: what is there of the trials for whoever asks for all; None is all."""

    shown: list[FrozenTrial] | None = None

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if self.shown is None:
            return super().get_all_trials(study_id, deepcopy, states)
        return [trial for trial in self.shown if states is None or trial.state in states]


class Study:
    """The study `name` in `storage`, created where needed. optuna: the mirror, an Optuna study.

    seen: what a sampler sees of the finished trials, if not all of them.
    """

    def __init__(
        self,
        name: str,
        directions: Sequence[Direction],
        storage: str | BaseStorage,
        seen: Seen | None = None,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        opened = _open(storage) if isinstance(storage, str) else storage
        kept = optuna.create_study(study_name=name, storage=opened, directions=directions, load_if_exists=True)
        self._study, self._kept = kept, kept._storage
        self._mirror, self._seen = _Mirror(), seen
        self.optuna = optuna.create_study(study_name=name, directions=directions, storage=self._mirror)
        self._running: set[int] = set()
        self._ids: list[int] = []  # in the storage; in the mirror a trial's id is its number
        for trial in kept.get_trials(deepcopy=False):
            self._mirror.create_new_trial(self.optuna._study_id, template_trial=trial)
            self._ids.append(trial._trial_id)
            self._take_note(trial)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, number: int) -> FrozenTrial:
        return self._mirror.get_trial(number)

    def trials(self) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False)

    def name_metrics(self, names: list[str]) -> None:
        """What the values are, for those who look at the study."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            for study in (self.optuna, self._study):
                if study.metric_names != names:
                    study.set_metric_names(names)

    def new(
        self,
        choose: Callable[[Pick], Mapping[str, Any]],
        answers: Mapping[str, Any] | None = None,
        constraints: Callable[[Mapping[str, Any]], Mapping[str, float]] = lambda attributes: {},
    ) -> int:
        """The number of a new running trial.

        `choose` makes its choices and says its attributes. They are the sampler's, or `answers`. constraints: by name
        (see `constrain`), of the attributes, as far as they are known before the trial has run.
        """
        if self._seen:
            self._mirror.shown = [self[n] for n in sorted(self._seen.numbers() | self._running)]
        try:
            number = self._chosen(choose, answers, constraints)
        finally:
            self._mirror.shown = None
        self._ids.append(self._kept.create_new_trial(self._study._study_id, template_trial=self[number]))
        self._take_note(self[number])
        return number

    def _take_note(self, trial: FrozenTrial) -> None:
        if not trial.state.is_finished():
            self._running.add(trial.number)
            return
        self._running.discard(trial.number)
        if self._seen:
            self._seen.add(trial)

    def _chosen(
        self,
        choose: Callable[[Pick], Mapping[str, Any]],
        answers: Mapping[str, Any] | None,
        constraints: Callable[[Mapping[str, Any]], Mapping[str, float]],
    ) -> int:
        """The number of a new trial in the mirror."""
        number = self._mirror.create_new_trial(self.optuna._study_id)
        trial = Trial(self.optuna, number)

        def given(question: str, choices: list[Any]) -> Any:
            kind, answer = CategoricalDistribution(choices), (answers or {})[question]
            self._mirror.set_trial_param(number, question, kind.to_internal_repr(answer), kind)
            return answer

        attributes = choose(trial.suggest_categorical if answers is None else given)
        for name, value in attributes.items():
            self._mirror.set_trial_user_attr(number, name, value)
        for name, value in constraints(attributes).items():
            constrain(trial, name, value)
        return number

    def note(self, number: int, name: str, value: Any) -> None:
        """Set an attribute of a trial."""
        self._mirror.set_trial_user_attr(number, name, value)
        self._kept.set_trial_user_attr(self._ids[number], name, value)

    def report(self, number: int, step: int, value: float) -> None:
        self._mirror.set_trial_intermediate_value(number, step, value)
        self._kept.set_trial_intermediate_value(self._ids[number], step, value)

    def constrain(self, number: int, name: str, excess: float) -> None:
        """By what share a trial exceeds a limit; above 0 it is infeasible, and samplers learn from it."""
        before = dict(self[number].system_attrs)
        constrain(Trial(self.optuna, number), name, excess)
        self._carry(number, before)

    def tell(self, number: int, state: TrialState, values: Sequence[float] | None = None) -> None:
        """End a trial. A pruned one gets its last report as its value, as Optuna wants it."""
        before = dict(self[number].system_attrs)
        self.optuna.tell(number, values, state)
        self._carry(number, before)
        told = self[number]
        self._kept.set_trial_state_values(self._ids[number], told.state, told.values)
        self._take_note(told)

    def _carry(self, number: int, before: Mapping[str, Any]) -> None:
        """What Optuna has noted of a trial, into the storage."""
        for name, value in self[number].system_attrs.items():
            if before.get(name) != value:
                self._kept.set_trial_system_attr(self._ids[number], name, value)


def _open(url: str) -> BaseStorage:
    if url.startswith("sqlite"):
        return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": LOCKED_SECONDS}})
    return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
