"""The ledger of a sweep: which trial is trained next, and what becomes of it. The scheduling of a sweep, without time.

Notable choices:
- planned trials (baseline seeds, controls, ablations, a grid) come first, the rest is the sampler's; a design the
  sampler proposes again gets its next seed, so that no design is trained twice with the same seed;
- a trial carries its design, seed and role as attributes; what was begun but not finished stays RUNNING and is taken
  up again by the next driver;
- a trial that waits for a pruner's decision holds no worker;
- controls are no compressors, and trials at other learning rates have no like: a constraint marks both infeasible,
  and their losses are kept from the pruner;
- a design that ran out of memory is not trained again, with whatever seed.
"""

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import nan
from typing import Any
from zlib import crc32

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from search_space.design import Design
from search_space.space import Pick
from sweeps.config import Planned, SweepConfig
from sweeps.pruning import Reached, Standings, make_pruner
from sweeps.search import Seen, directions, make_sampler, metric_names
from sweeps.study import Study, state_of
from trainer.trial import RungResult

__all__ = ["Assignment", "Ledger"]

_WENT_ON = "rung {}"  # attribute: value at a rung that the trial went on from
_DOCUMENTS = "documents {}"  # attribute: losses of the documents at a rung
# Constraints. A control is no compressor; by how much a trial does not fit is not known.
_CONTROL, _MEMORY, _SECONDS, _UNFIT = "is a control", "limits.memory", "limits.seconds", "does not fit"
_APART = ("control", "rate")  # roles whose losses are no answers of the search


@dataclass(frozen=True)
class Assignment:
    """A trial that is to be trained: its number, what it is, and the rung to reach next (from 1)."""

    number: int
    design: Design
    seed: int
    role: str
    rung: int
    rate: float = 1.0


class Ledger:
    """The sweep of `config`, whose study in `storage` is created where needed.

    states: how many trials are in each. changed: numbers of trials to be shown anew; whoever shows them empties it.
    """

    def __init__(self, config: SweepConfig, storage: str | BaseStorage) -> None:
        self.config, self.rungs = config, len(config.recipe.rungs)
        # With two objectives TPE's good trials are a front, and NSGA-II looks for its own population.
        seen = Seen() if config.sampler == "tpe" and len(config.objectives) == 1 else None
        self.study = Study(config.name, directions(config), storage, seen)
        self.states: Counter[str] = Counter()
        self.changed: set[int] = set()
        self._pruner = make_pruner(config)
        self._reached = [Standings() for _ in range(self.rungs)]
        self._level: Counter[int] = Counter()  # running compressors by the rungs they have reached
        self._seeds: dict[tuple[str, float], set[int]] = {}  # by design and factor on the rates
        self._unfit: dict[str, str] = {}  # designs that cannot be trained, and why
        self._ready: deque[int] = deque()  # trials that are to be trained further
        self._waiting: list[list[int]] = [[] for _ in range(self.rungs)]  # for a decision, by rung
        self._best: tuple[str, float] | None = None
        self._planned = deque(config.planned())
        for trial in self.trials():
            self._recall(trial)
        self._planned = deque(p for p in self._planned if not self._begun(p.design.name, p.seed, p.rate))
        self._apart = sum(planned.role in _APART for planned in self._planned)  # that are still to be begun
        self._replicas = deque(self._missing())

    def take_up(self) -> None:
        """Begin to drive the sweep: decide what an earlier driver left undecided. Who only reads does not call it."""
        self.study.name_metrics(metric_names(self.config))
        self._settle()

    def trials(self) -> list[FrozenTrial]:
        return self.study.trials()

    def trial(self, number: int) -> FrozenTrial:
        return self.study[number]

    def best(self) -> tuple[str, float] | None:
        """Name and loss of the best complete and feasible compressor so far."""
        return self._best

    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        return len(self.study) - self.states["running"] >= self.config.trials

    def next(self) -> Assignment | None:
        """What to train next, trials that go on before new ones; None where nothing is to be trained now."""
        while not self._ready and len(self.study) < self.config.trials:
            self._begin()
        return self._assignment(self._ready.popleft()) if self._ready else None

    def record(self, number: int, result: RungResult) -> None:
        """Take note of a rung.

        What says that the trial went on from it, or ended there, is written last, so that a driver killed in here is
        followed by one that takes the same note again, to the same effect.
        """
        trial, value = self.study[number], result.heldout.loss[self.config.metric]
        role, rung = trial.user_attrs["role"], result.rung
        if role not in _APART and result.tokens not in trial.intermediate_values:
            documents = result.heldout.documents[self.config.metric] if self.config.pruner == "wilcoxon" else []
            if documents and rung < self.rungs:
                self.study.note(number, _DOCUMENTS.format(rung), documents)
            self.study.report(number, result.tokens, value)
            self._arrive(number, rung, value, documents)
        if rung == self.rungs:
            self._complete(number, result)
        elif role == "arm":
            self._waiting[rung - 1].append(number)
        else:
            self._go_on(number, rung, value)
        self._settle()

    def fail(self, number: int, reason: str) -> None:
        """End a trial that cannot be trained. It has no value."""
        self.study.note(number, "reason", reason)
        self._tell(number, TrialState.FAIL)
        self._settle()

    def infeasible(self, number: int, reason: str) -> None:
        """End a trial that does not fit the machine, and with it its design.

        Told PRUNED, which is what samplers learn from where there is no value (see `sweeps.search`).
        """
        self._unfit[self.study[number].user_attrs["design"]] = reason
        self.study.note(number, "reason", reason)
        self.study.note(number, "infeasible", "design")
        if max(self.study[number].constraints.values()) <= 0:
            self.study.constrain(number, _UNFIT, 1.0)
        self._tell(number, TrialState.PRUNED)
        self._settle()

    def note_fault(self, number: int, reason: str) -> list[str]:
        """Put a fault that was not the trial's on record; all of the trial's."""
        faults = [*self.study[number].user_attrs.get("faults", []), reason]
        self.study.note(number, "faults", faults)
        self.changed.add(number)
        return faults

    def retry(self, number: int, reason: str, most: int | None = None) -> None:
        """Let a trial go on after a fault of the machine, unless it has had its retries.

        most: retries after this very reason.
        """
        faults = self.note_fault(number, reason)
        if len(faults) > self.config.retries or (most is not None and faults.count(reason) > most):
            self.fail(number, reason)
        else:
            self._ready.appendleft(number)

    def _begin(self) -> None:
        """A new trial, ready to be trained or, where its design is known not to fit, ended."""
        # What a sampler draws hangs on the trial's number and what is known by then, not on when a driver was started.
        self.study.optuna.sampler = make_sampler(self.config, crc32(f"{self.config.name} {len(self.study)}".encode()))
        planned = self._planned.popleft() if self._planned else self._next_replica()
        design, seed, role, rate = planned or (None, None, None, 1.0)
        apart = role in _APART
        self._apart -= apart

        def choose(pick: Pick) -> dict[str, Any]:
            chosen = design if design and apart else self.config.space.choose(pick)
            name = chosen.name
            kind = role or ("baseline" if name == self.config.baseline else "arm")
            found = {"design": name, "seed": self._free_seed(name) if seed is None else seed, "role": kind}
            return found | ({} if rate == 1 else {"rate": rate})

        answers = None if design is None else {} if apart else self.config.space.answers(design)
        number = self.study.new(choose, answers, self._constraints)
        trial = self.study[number]
        name = trial.user_attrs["design"]
        self._recall(trial)
        if design is None and trial.user_attrs["role"] == "arm":
            self._replicas.extend((name, s) for s in range(self.config.replicates) if not self._begun(name, s))
        if name in self._unfit:
            self.infeasible(number, self._unfit[name])
        elif trial.constraints.get(_MEMORY, 0.0) > 0:
            limit = self.config.limits.memory
            self.infeasible(number, f"a step needs {self._gigabytes(name):.2f} GB, limits.memory is {limit:g}")

    def _next_replica(self) -> Planned | None:
        """The next seed of a design that the sampler has chosen; None where it is to choose another."""
        if not self._replicas:
            return None
        name, seed = self._replicas.popleft()
        return Planned(Design.parse(name), seed, "arm")

    def _constraints(self, attributes: Mapping[str, Any]) -> dict[str, float]:
        known = {_CONTROL: 1.0 if attributes["role"] in _APART else -1.0}
        if self.config.limits.memory is not None:
            known[_MEMORY] = self._gigabytes(attributes["design"]) / self.config.limits.memory - 1
        return known

    def _gigabytes(self, design: str) -> float:
        return self.config.cost(Design.parse(design)).memory / 1e9

    def _recall(self, trial: FrozenTrial) -> None:
        """Take a trial of the study into account, whatever has become of it."""
        attrs, number, state = trial.user_attrs, trial.number, state_of(trial)
        name = attrs["design"]
        self._seeds.setdefault((name, attrs.get("rate", 1.0)), set()).add(attrs["seed"])
        self.states[state] += 1
        self.changed.add(number)
        if state == "running":
            self._level[0] += attrs["role"] not in _APART
            self._ready.append(number)
        for rung, step in enumerate(sorted(trial.intermediate_values), 1):
            self._arrive(number, rung, trial.intermediate_values[step], attrs.get(_DOCUMENTS.format(rung), []))
            undecided = attrs["role"] == "arm" and rung < self.rungs and _WENT_ON.format(rung) not in attrs
            if state == "running" and undecided:
                self._ready.remove(number)
                self._waiting[rung - 1].append(number)
        if trial.state == TrialState.COMPLETE:
            self._finish(trial)
        elif state == "infeasible" and attrs["infeasible"] == "design":
            self._unfit[name] = attrs["reason"]

    def _arrive(self, number: int, rung: int, value: float, documents: list[float]) -> None:
        self._reached[rung - 1].add(Reached(number, value, documents, complete=False))
        if self.study[number].state == TrialState.RUNNING:
            self._level[rung - 1] -= 1
            self._level[rung] += 1

    def _go_on(self, number: int, rung: int, value: float) -> None:
        self.study.note(number, _WENT_ON.format(rung), value)
        self.changed.add(number)
        self._ready.appendleft(number)  # before new ones: it is warm

    def _complete(self, number: int, result: RungResult) -> None:
        attrs = self.study[number].user_attrs
        limit = self.config.limits.seconds
        if limit is not None and attrs["role"] not in _APART and _SECONDS not in self.study[number].constraints:
            self.study.constrain(number, _SECONDS, result.seconds / limit - 1)
        values = [result.heldout.loss[self.config.metric]]
        if len(self.config.objectives) > 1:
            values.append(self.config.cost(Design.parse(attrs["design"])).prefill_flops)
        if limit is not None and self.study[number].constraints.get(_SECONDS, 0.0) > 0:
            self.study.note(number, "reason", f"trained for {result.seconds:.0f} s, limits.seconds is {limit:g}")
            self.study.note(number, "infeasible", "trial")
        self._tell(number, TrialState.COMPLETE, values)
        self._finish(self.study[number])

    def _finish(self, trial: FrozenTrial) -> None:
        """Take a complete trial into account: it may be the best one, and it is what others are measured by."""
        if trial.user_attrs["role"] in _APART:
            return
        for reached in self._reached:
            if trial.number in reached:
                reached.completed(trial.number)
        loss = (trial.values or [nan])[0]
        if state_of(trial) == "complete" and (self._best is None or loss < self._best[1]):
            self._best = trial.user_attrs["design"], loss

    def _settle(self) -> None:
        """Decide on the trials that wait; a pruner that lets many of them wait is asked about all after every event."""
        for rung, waiting in enumerate(self._waiting, 1):
            for number in list(waiting):
                reached = self._reached[rung - 1]
                decision = self._pruner.decide(number, rung, reached, self._to_come(rung))
                if decision == "wait":
                    continue
                waiting.remove(number)
                if decision == "continue":
                    self._go_on(number, rung, reached[number].value)
                else:
                    self._tell(number, TrialState.PRUNED)

    def _to_come(self, rung: int) -> int:
        """Compressors that may still reach `rung`."""
        begun = sum(self._level[below] for below in range(rung))
        return begun + max(0, self.config.trials - len(self.study) - self._apart)

    def _tell(self, number: int, state: TrialState, values: list[float] | None = None) -> None:
        trial = self.study[number]
        if trial.user_attrs["role"] not in _APART:
            self._level[len(trial.intermediate_values)] -= 1
        self.study.tell(number, state, values)
        self.states["running"] -= 1
        self.states[state_of(self.study[number])] += 1
        if number in self._ready:
            self._ready.remove(number)
        self.changed.add(number)

    def _assignment(self, number: int) -> Assignment:
        attrs = self.study[number].user_attrs
        done = sum(_WENT_ON.format(r) in attrs for r in range(1, self.rungs + 1))
        design, rate = Design.parse(attrs["design"]), attrs.get("rate", 1.0)
        return Assignment(number, design, attrs["seed"], attrs["role"], done + 1, rate)

    def _begun(self, design: str, seed: int, rate: float = 1.0) -> bool:
        return seed in self._seeds.get((design, rate), ())

    def _missing(self) -> Iterator[tuple[str, int]]:
        """Seeds of the sampler's designs that an earlier driver did not get to."""
        planned = {design.name for design, *_ in self.config.planned()}
        for name, _ in self._seeds:
            if name not in planned and Design.parse(name).control == "none":
                yield from ((name, s) for s in range(self.config.replicates) if not self._begun(name, s))

    def _free_seed(self, design: str) -> int:
        taken = self._seeds.get((design, 1.0), ())
        return next(s for s in range(len(taken) + 1) if s not in taken)
