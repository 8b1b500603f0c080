"""The driver and its ledger on virtual time, with workers that die, trials that diverge and drivers that stop."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from search_space.design import Design
from sweeps.ledger import Assignment, Ledger
from tests.sweeps.virtual import Chance, config, result_of, run
from tests.sweeps.virtual import job_for as job

CONFIG = config()


def url(folder: Path) -> str:
    return f"sqlite:///{folder}/optuna.db"


def check_ended_well(ledger: Ledger) -> None:
    """Every trial in one final state, no design twice with a seed, values only where they belong."""
    trials = ledger.trials()
    assert len(trials) == CONFIG.trials and ledger.finished()
    twice = Counter((t.user_attrs["design"], t.user_attrs["seed"]) for t in trials)
    assert max(twice.values()) == 1
    for trial in trials:
        assert Design.parse(trial.user_attrs["design"]).name == trial.user_attrs["design"]
        if trial.state == TrialState.COMPLETE:
            assert trial.value is not None
        elif trial.state == TrialState.FAIL:
            assert trial.value is None and trial.user_attrs["reason"]
        else:
            assert trial.state == TrialState.PRUNED and trial.user_attrs["role"] == "arm"
        if trial.user_attrs["role"] == "control":
            assert not trial.intermediate_values and not trial.params


def test_plan_comes_first_and_in_order(tmp_path: Path) -> None:
    ledger = run(CONFIG, url(tmp_path), Chance(0))
    check_ended_well(ledger)
    plan = [(d.name, seed, role) for d, seed, role in CONFIG.planned()]
    began = [(t.user_attrs["design"], t.user_attrs["seed"], t.user_attrs["role"]) for t in ledger.trials()]
    assert began[: len(plan)] == plan
    assert [role for *_, role in plan][:5] == ["baseline"] * 2 + ["control"] * 3
    assert len(plan) < CONFIG.trials, "the sampler should get its turn"


def test_best_is_a_compressor(tmp_path: Path) -> None:
    ledger = run(CONFIG, url(tmp_path), Chance(0))
    best, value = ledger.best() or ("", 0.0)
    trial = ledger.study.best_trial
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
        trial = ledger.study.best_trial
        job_ = job(chosen, Assignment(trial.number, Design.parse(best[metric]), trial.user_attrs["seed"], "arm", 2))
        assert value == trial.value == result_of(job_).heldout.loss[metric]
        assert ledger.study.metric_names == [f"heldout_{metric}"]
    assert best["parallel"] != best["continue"]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_stops_deaths_and_divergence_lose_and_double_nothing(data: st.DataObject) -> None:
    storage = InMemoryStorage()
    finished: list[tuple[int, int]] = []
    for life in range(30):
        chance = Chance(data.draw(st.integers(0, 10**6)), dies=0.2, diverges=0.1)
        stop = data.draw(st.integers(1, 6)) if life < 25 else None
        ledger = run(CONFIG, storage, chance, slots=data.draw(st.integers(1, 4)), stop_after=stop)
        finished += chance.finished
        if ledger.finished():
            break
    check_ended_well(ledger)
    rungs = len(CONFIG.recipe.rungs)
    for trial in ledger.trials():
        reached = [r for n, r in finished if n == trial.number]
        if trial.state == TrialState.COMPLETE:
            assert set(reached) == set(range(1, rungs + 1))
        # A rung is trained again only where its result was still on its way when the driver stopped.
        assert len(trial.intermediate_values) <= rungs


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
    ledger.plan()
    assignment = ledger.ask()
    assert assignment is not None
    for r in range(1, rung):
        ledger.record(assignment.number, result_of(job(CONFIG, assignment)))
        assignment = ledger.unfinished()[0]
        assert assignment.rung == r + 1
    trial, _ = ledger._open(assignment.number)
    result = result_of(job(CONFIG, assignment))
    trial.report(result.heldout.loss["parallel"], step=result.tokens)
    check_ended_well(run(CONFIG, url(tmp_path), Chance(0)))


@pytest.mark.parametrize("axes", range(6))
def test_killed_while_choosing(tmp_path: Path, axes: int) -> None:
    """A sampler's trial of which only the first few axes were chosen is taken up with the same choices."""
    everything = config("ablations=false", "controls=[]", "seeds=1", "trials=3")
    ledger = Ledger(everything, url(tmp_path))
    trial, asked = ledger.study.ask(), 0
    for axis, choices in list(everything.space.axes().items())[:axes]:
        trial.suggest_categorical(axis, choices)
        asked += 1
    ledger = run(everything, url(tmp_path), Chance(0))
    first = ledger.trial(trial.number)
    assert first.state == TrialState.COMPLETE
    assert asked <= len(first.params) or "overlap" in trial.params or "depth" in trial.params
    assert ledger.finished()


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
