"""The driver and its ledger on virtual time, with workers that die, trials that diverge and drivers that stop."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from search_space.design import Design
from sweeps.config import SweepConfig
from sweeps.executor import Failed, Job
from sweeps.ledger import Assignment, Ledger
from sweeps.study import state_of
from tests.sweeps.virtual import Chance, config, result_of, run
from tests.sweeps.virtual import job_for as job
from trainer.trial import RungResult

CONFIG = config()


def url(folder: Path) -> str:
    return f"sqlite:///{folder}/optuna.db"


def check_ended_well(ledger: Ledger, chosen: SweepConfig = CONFIG) -> None:
    """Every trial in one final state, no design twice with a seed, values only where they belong."""
    trials = ledger.trials()
    assert len(trials) == chosen.trials and ledger.finished()
    twice = Counter((t.user_attrs["design"], t.user_attrs["seed"], t.user_attrs.get("rate")) for t in trials)
    assert max(twice.values()) == 1
    for trial in trials:
        assert Design.parse(trial.user_attrs["design"]).name == trial.user_attrs["design"]
        state, role = state_of(trial), trial.user_attrs["role"]
        if state == "complete":
            assert trial.value is not None
        elif state == "failed":
            assert trial.value is None and trial.user_attrs["reason"]
        elif state == "infeasible":
            assert trial.user_attrs["reason"]
        else:
            assert state == "pruned" and role == "arm"
        if role in ("control", "rate"):
            assert not trial.intermediate_values and not trial.params
    assert ledger.states == Counter(map(state_of, trials))
    kept = Ledger(chosen, ledger.study._kept)
    assert told(kept) == told(ledger), "the mirror and what is kept are the same"
    assert +kept.states == +ledger.states and kept.best() == ledger.best()


def test_plan_comes_first_and_in_order(tmp_path: Path) -> None:
    ledger = run(CONFIG, url(tmp_path), Chance(0))
    check_ended_well(ledger)
    plan = [(planned.design.name, planned.seed, planned.role) for planned in CONFIG.planned()]
    began = [(t.user_attrs["design"], t.user_attrs["seed"], t.user_attrs["role"]) for t in ledger.trials()]
    assert began[: len(plan)] == plan
    assert [planned.role for planned in CONFIG.planned()][:5] == ["baseline"] * 2 + ["control"] * 3
    assert len(plan) < CONFIG.trials, "the sampler should get its turn"


def test_best_is_a_compressor(tmp_path: Path) -> None:
    ledger = run(CONFIG, url(tmp_path), Chance(0))
    best, value = ledger.best() or ("", 0.0)
    trial = ledger.study.optuna.best_trial
    assert (trial.user_attrs["design"], trial.value) == (best, value)
    assert trial.user_attrs["role"] != "control"


def test_another_metric_selects_another_design(tmp_path: Path) -> None:
    """In these made-up trials next-token loss falls where parallel reconstruction rises."""
    best = {}
    for metric in ("parallel", "continue"):
        (tmp_path / metric).mkdir()
        chosen = config(f"metric={metric}", "pruner=none")
        ledger = run(chosen, url(tmp_path / metric), Chance(0))
        best[metric], value = ledger.best() or ("", 0.0)
        trial = ledger.study.optuna.best_trial
        job_ = job(chosen, Assignment(trial.number, Design.parse(best[metric]), trial.user_attrs["seed"], "arm", 2))
        assert value == trial.value == result_of(job_).heldout.loss[metric]
        assert ledger.study.optuna.metric_names == [f"heldout_{metric}"]
    assert best["parallel"] != best["continue"]


PRUNERS = ["none", "median", "halving", "wilcoxon", "cutoff"]
SAMPLERS = ["random", "grid", "tpe"]


@st.composite
def sweeps(draw: st.DrawFn) -> SweepConfig:
    chosen = {
        "pruner": draw(st.sampled_from(PRUNERS)),
        "sampler": draw(st.sampled_from(SAMPLERS)),
        "replicates": draw(st.integers(1, 3)),
        "keep": draw(st.integers(1, 4)),
        "trials": draw(st.integers(4, 16)),
        "timeout": 150,
        "rates": draw(st.sampled_from([[], [0.5]])),
    }
    return config(*(f"{key}={value}" for key, value in chosen.items()))


@settings(max_examples=40, deadline=None)
@given(chosen=sweeps(), data=st.data())
def test_stops_and_faults_lose_and_double_nothing(chosen: SweepConfig, data: st.DataObject) -> None:
    storage, seen = InMemoryStorage(), dict[int, int]()
    for life in range(30):
        chance = Chance(data.draw(st.integers(0, 10**6)), dies=0.2, diverges=0.1, hangs=0.05, too_large=0.05)
        stop = data.draw(st.integers(1, 6)) if life < 25 else None
        ledger = run(chosen, storage, chance, data.draw(st.integers(1, 4)), stop, seen)
        if ledger.finished():
            break
    check_ended_well(ledger, chosen)
    for trial in ledger.trials():
        rungs = len(chosen.recipe.rungs)
        assert trial.state != TrialState.COMPLETE or seen[trial.number] == rungs
        assert len(trial.intermediate_values) == (seen.get(trial.number, 0) if trial.params else 0)
        faults = trial.user_attrs.get("faults", [])
        assert len(faults) <= chosen.retries + 1 and faults.count(f"no step for {chosen.timeout:g} s") <= 2
        role, above = trial.user_attrs["role"], max(trial.constraints.values()) > 0
        assert above == (state_of(trial) == "infeasible" or role in ("control", "rate"))


class Killed(Exception):
    """The driver is gone, with all that it had in memory."""


class Mortal(InMemoryStorage):
    """Storage whose writer is killed before one of its writes."""

    left = -1

    def _write(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        self._write()
        return super().create_new_trial(study_id, template_trial)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._write()
        super().set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._write()
        super().set_trial_system_attr(trial_id, key, value)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._write()
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        self._write()
        return super().set_trial_state_values(trial_id, state, values)


def told(ledger: Ledger) -> list[tuple[Any, ...]]:
    """All of a study but times and notes for the driver's own use."""
    attrs = ("design", "seed", "role", "reason", "infeasible")
    return [
        (
            t.number,
            t.state,
            t.values,
            t.params,
            t.intermediate_values,
            t.constraints,
            [t.user_attrs.get(a) for a in attrs],
        )
        for t in ledger.trials()
    ]


@settings(max_examples=40, deadline=None)
@given(chosen=sweeps(), lives=st.lists(st.integers(1, 25), max_size=12), stops=st.booleans())
def test_resumed_equals_uninterrupted(chosen: SweepConfig, lives: list[int], stops: bool) -> None:
    """One worker, so that the order of reports is the same: killed before any write, or stopped, nothing differs."""
    undisturbed = run(chosen, InMemoryStorage(), Chance(0), slots=1)
    storage = Mortal()
    for life in lives:
        storage.left = -1 if stops else life
        with suppress(Killed):
            run(chosen, storage, Chance(0), slots=1, stop_after=life if stops else None)
    storage.left = -1
    resumed = run(chosen, storage, Chance(0), slots=1)
    assert told(resumed) == told(undisturbed)
    check_ended_well(resumed, chosen)


def test_machine_faults_are_retried_a_bounded_number_of_times(tmp_path: Path) -> None:
    ledger = run(CONFIG, url(tmp_path), Chance(0, dies=1.0))
    check_ended_well(ledger)
    for trial in ledger.trials():
        assert trial.state == TrialState.FAIL
        assert len(trial.user_attrs["faults"]) == CONFIG.retries + 1


def test_divergence_is_not_retried(tmp_path: Path) -> None:
    chance = Chance(0, diverges=1.0)
    ledger = run(CONFIG, url(tmp_path), chance)
    check_ended_well(ledger)
    assert all("faults" not in t.user_attrs and "nan" in t.user_attrs["reason"] for t in ledger.trials())


@pytest.mark.parametrize("rung", [1, 2])
def test_killed_after_report_before_the_rest(tmp_path: Path, rung: int) -> None:
    """The study has a trial's value at a rung, but not what should have followed: the next driver takes it up."""
    ledger = Ledger(CONFIG, url(tmp_path))
    ledger.take_up()
    assignment = ledger.next()
    assert assignment is not None
    for r in range(1, rung):
        ledger.record(assignment.number, result_of(job(CONFIG, assignment)))
        assignment = ledger.next()
        assert assignment is not None and assignment.rung == r + 1
    result = result_of(job(CONFIG, assignment))
    ledger.study.report(assignment.number, result.tokens, result.heldout.loss["parallel"])
    check_ended_well(run(CONFIG, url(tmp_path), Chance(0)))


def test_a_design_proposed_again_gets_its_next_seed(tmp_path: Path) -> None:
    one = config("ablations=false", "controls=[]", "trials=5", "space.pooling=[mean]", "space.window=[16]",
                 "space.overlap=[0]", "space.adapter=[mlp]")  # fmt: skip
    ledger = run(one, url(tmp_path), Chance(0))
    assert sorted(t.user_attrs["seed"] for t in ledger.trials()) == [0, 1, 2, 3, 4]
    assert {t.user_attrs["role"] for t in ledger.trials()} == {"baseline"}


def test_more_trials_and_seeds_continue_a_finished_sweep(tmp_path: Path) -> None:
    run(CONFIG, url(tmp_path), Chance(0))
    ledger = run(config("trials=13", "seeds=4"), url(tmp_path), Chance(1))
    assert len(ledger.trials()) == 13 and ledger.finished()
    baseline = [t for t in ledger.trials() if t.user_attrs["role"] == "baseline"]
    assert {0, 1, 2, 3} <= {t.user_attrs["seed"] for t in baseline}


def test_what_needs_too_much_memory_is_told_and_never_trained(tmp_path: Path) -> None:
    gigabytes = {d.name: CONFIG.cost(d).memory / 1e9 for d in CONFIG.space.members()}
    limit = (gigabytes[CONFIG.baseline] + max(gigabytes.values())) / 2
    chosen, trained = config(f"limits.memory={limit}", "sampler=grid", "trials=16"), set[str]()

    def train(job: Job) -> tuple[float, RungResult]:
        trained.add(job.spec.design.name)
        return 1.0, result_of(job)

    ledger = run(chosen, url(tmp_path), train)
    check_ended_well(ledger, chosen)
    told_so = {t.user_attrs["design"] for t in ledger.trials() if state_of(t) == "infeasible"}
    assert told_so == {name for name, need in gigabytes.items() if need > limit} and not told_so & trained
    assert all("limits.memory" in t.user_attrs["reason"] for t in ledger.trials() if state_of(t) == "infeasible")


def test_what_trains_for_too_long_is_infeasible_whatever_its_loss(tmp_path: Path) -> None:
    chosen = config("limits.seconds=0.5", "pruner=none")  # every made-up trial takes a second
    ledger = run(chosen, url(tmp_path), Chance(0))
    check_ended_well(ledger, chosen)
    states = {(t.user_attrs["role"] == "control", state_of(t), t.value is None) for t in ledger.trials()}
    assert states == {(True, "complete", False), (False, "infeasible", False)} and ledger.best() is None


def test_a_design_that_ran_out_of_memory_is_not_tried_with_another_seed(tmp_path: Path) -> None:
    chosen, tried = config("sampler=grid", "replicates=3", "trials=40"), list[str]()

    def train(job: Job) -> tuple[float, RungResult | Failed]:
        if job.spec.design.pooling != "concat":
            return 1.0, result_of(job)
        tried.append(job.spec.design.name)
        return 1.0, Failed(job, "OutOfMemory: out of memory after step 0", "memory")

    ledger = run(chosen, url(tmp_path), train, slots=1)
    check_ended_well(ledger, chosen)
    refused = [t.user_attrs["design"] for t in ledger.trials() if state_of(t) == "infeasible"]
    assert len(set(tried)) == len(tried) < len(refused) and set(refused) == set(tried)


@pytest.mark.parametrize("sampler", ["nsga2", "tpe"])
def test_two_objectives_are_told_both(tmp_path: Path, sampler: str) -> None:
    chosen = config("objectives=[loss,prefill]", "pruner=none", f"sampler={sampler}", "trials=24")
    ledger = run(chosen, url(tmp_path), Chance(0, dies=0.1, diverges=0.1, too_large=0.1))
    trials = ledger.trials()
    assert len(trials) == 24 and ledger.finished() and ledger.best()
    for trial in trials:
        if state_of(trial) == "complete":
            prefill = chosen.cost(Design.parse(trial.user_attrs["design"])).prefill_flops
            loss, second = trial.values or []
            assert second == prefill
            assert trial.user_attrs["role"] == "control" or loss == trial.intermediate_values[trial.last_step or 0]
    assert {t.user_attrs["role"] for t in ledger.study.optuna.best_trials} <= {"baseline", "arm"}
