"""Samplers among controls and infeasible designs, the grid's plan, Pareto fronts, and what the dashboard shows."""

import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna import Study
from optuna.samplers._tpe.sampler import _split_trials, default_gamma
from optuna.trial import FrozenTrial, Trial, TrialState

from search_space.design import Design
from sweeps.config import SweepConfig
from sweeps.search import SEEN, Seen, constrain, directions, make_sampler, metric_names
from tests.sweeps.virtual import config

TWO = ["objectives=[loss,prefill]", "pruner=none"]
SAMPLERS = {"tpe": ["sampler=tpe"], "tpe, two objectives": ["sampler=tpe", *TWO], "nsga2": ["sampler=nsga2", *TWO]}


def study_of(chosen: SweepConfig, seed: int = 0, storage: str | None = None) -> Study:
    sampler = make_sampler(chosen, seed)
    return optuna.create_study(storage=storage, study_name="kinds", sampler=sampler, directions=directions(chosen))


def tell_control(study: Study) -> None:
    """As the sweep does: a trial that is asked no question of the space, and is infeasible with a good value."""
    study.enqueue_trial({}, {"role": "control"})
    trial = study.ask()
    constrain(trial, "is a control", 1.0)
    study.tell(trial, [0.0] * len(study.directions))


def values_of(design: Design, study: Study) -> list[float]:
    """Made up: what is worst for the loss is cheapest."""
    loss = (design.window == 4) + (design.pooling == "mean") + (design.overlap == 8) / 2
    return [loss, 3.0 - loss][: len(study.directions)]


def infeasible_proposals(chosen: SweepConfig, seed: int, trials: int = 40) -> int:
    """How many of a sampler's proposals fall into an infeasible half of the space, told without a value."""
    study, found = study_of(chosen, seed), 0
    tell_control(study)
    for _ in range(trials):
        trial = study.ask()
        design = chosen.space.choose(trial.suggest_categorical)
        too_large = design.pooling == "mean"
        constrain(trial, "memory", 0.5 if too_large else -0.5)
        if too_large:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, values_of(design, study))
        found += too_large
    return found


@pytest.mark.parametrize("kind", SAMPLERS)
def test_samplers_learn_what_is_infeasible(kind: str) -> None:
    chosen, by_chance = config(*SAMPLERS[kind]), config("sampler=random")
    learnt, drawn = (sum(infeasible_proposals(c, seed) for seed in range(3)) for c in (chosen, by_chance))
    assert learnt < 0.75 * drawn, (learnt, drawn)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_control_does_not_end_the_search_over_axes_together(kind: str) -> None:
    chosen = config(*SAMPLERS[kind])
    study = study_of(chosen)
    tell_control(study)
    for _ in range(20):
        trial = study.ask()
        study.tell(trial, values_of(chosen.space.choose(trial.suggest_categorical), study))
    shared = {name for _ in range(20) for name in study.ask().relative_params}
    assert {"pooling", "window", "adapter"} <= shared  # NSGA-II leaves out what it mutates


@pytest.mark.parametrize("overrides", [["sampler=random"], ["sampler=grid"], *SAMPLERS.values()], ids=str)
def test_the_same_seed_proposes_the_same(overrides: list[str]) -> None:
    chosen = config(*overrides)

    def proposals(seed: int) -> list[Design]:
        study, designs = study_of(chosen, seed), []
        for _ in range(15):
            trial = study.ask()
            designs.append(chosen.space.choose(trial.suggest_categorical))
            study.tell(trial, values_of(designs[-1], study))
        return designs

    assert proposals(1) == proposals(1) != proposals(2)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(1, 60))
def test_the_grid_is_every_member_with_every_seed_once(
    seeds: int, replicates: int, ablations: bool, trials: int
) -> None:
    overrides = [f"seeds={seeds}", f"replicates={replicates}", f"ablations={str(ablations).lower()}", "sampler=grid"]
    whole = config(*overrides, "trials=1000")
    plan, members = whole.planned(), list(whole.space.members())
    assert len(plan) == len({(design, seed) for design, seed, *_ in plan})
    grid = {(design, seed) for design in members for seed in range(replicates)}
    more = {(design, seed) for design, seed, role, _ in plan if role != "control"} - grid
    assert {(design, seed) for design, seed, *_ in plan} >= grid
    assert {design.name for design, _ in more} <= {whole.baseline}
    assert all((role == "baseline") == (d.name == whole.baseline) for d, _, role, _ in plan if role != "control")
    without = config(*overrides[:3], "trials=1000").planned()
    assert plan[: len(without)] == without
    later = [seed for _, seed, *_ in plan[len(without) :]]
    assert later == sorted(later)  # the whole space once before any second seed
    assert config(*overrides, f"trials={trials}").planned() == plan[:trials]


def test_only_the_grid_plans_the_space() -> None:
    assert config("replicates=3", "trials=100").planned() == config("trials=100").planned()


def test_objectives_have_names_and_directions() -> None:
    assert (directions(config()), metric_names(config())) == (["minimize"], ["heldout_parallel"])
    two = config("metric=continue", *TWO)
    assert (directions(two), metric_names(two)) == (["minimize"] * 2, ["heldout_continue", "prefill_flops"])


points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), max_size=12)


@settings(deadline=None, max_examples=40)
@given(points, st.sampled_from([1, 2]))
def test_best_is_what_no_feasible_trial_dominates(told: list[tuple[int, int, bool]], objectives: int) -> None:
    study = study_of(config(*(TWO if objectives == 2 else [])))
    for loss, prefill, feasible in told:
        trial = study.ask()
        constrain(trial, "memory", -1.0 if feasible else 1.0)
        study.tell(trial, [float(loss), float(prefill)][:objectives])
    study.tell(study.ask(), state=TrialState.PRUNED)
    fair = {n: t[:objectives] for n, t in enumerate(told) if t[2]}

    def dominated(by: int, number: int) -> bool:
        return fair[by] != fair[number] and all(a <= b for a, b in zip(fair[by], fair[number], strict=True))

    front = {n for n in fair if not any(dominated(other, n) for other in fair)}
    found = sorted(study.best_trials, key=lambda trial: trial.values)
    assert {t.number for t in found} == front
    losses = [t.values[0] for t in found if t.values]
    assert losses == sorted(losses)


@contextmanager
def dashboard(storage: str) -> Generator[str]:
    """Address of a running optuna-dashboard."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [Path(sys.executable).parent / "optuna-dashboard", storage, "--port", port, "--server", "wsgiref"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def read_json(address: str, tries: int = 300) -> dict:
    opener = build_opener(ProxyHandler({}))
    for _ in range(tries - 1):
        try:
            return json.load(opener.open(address, timeout=30))
        except URLError:  # not up yet
            time.sleep(0.1)
    return json.load(opener.open(address, timeout=30))


@pytest.mark.slow
def test_the_dashboard_shows_every_kind_of_trial(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'optuna.db'}"
    chosen = config()
    study = study_of(chosen, storage=storage)
    tell_control(study)

    def ask() -> Trial:
        trial = study.ask()
        chosen.space.choose(trial.suggest_categorical)
        return trial

    complete, pruned, failed, never_trained, too_slow, running = (ask() for _ in range(6))
    complete.report(2.0, 1000)
    constrain(complete, "memory", -0.5)
    constrain(complete, "seconds", -0.25)
    study.tell(complete, 2.0)
    pruned.report(3.0, 1000)
    study.tell(pruned, state=TrialState.PRUNED)
    study.tell(failed, state=TrialState.FAIL)
    constrain(never_trained, "memory", 1.5)
    study.tell(never_trained, state=TrialState.PRUNED)
    constrain(too_slow, "seconds", 0.5)
    study.tell(too_slow, 1.0)
    running.report(2.5, 1000)
    assert [t.number for t in study.best_trials] == [complete.number] == [study.best_trial.number]
    with dashboard(storage) as address:
        shown = read_json(f"{address}/api/studies/1")["trials"]
    assert [(t["state"], t.get("values"), t["constraints"]) for t in shown] == [
        ("Complete", [0.0], [1.0]),
        ("Complete", [2.0], [-0.5, -0.25]),
        ("Pruned", [3.0], []),
        ("Fail", None, []),
        ("Pruned", None, [1.5]),
        ("Complete", [1.0], [0.5]),
        ("Running", None, []),
    ]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(SEEN - 20, SEEN + 120), st.sampled_from(["none", "halving"]))
def test_what_tpe_sees_holds_all_good_ones_and_does_not_grow(seed: int, count: int, pruner: str) -> None:
    """Its good ones are those that it would take of all trials."""
    trials = finished(count, random.Random(seed), pruner)
    study = optuna.create_study()
    study.add_trials(trials)
    everything = study.get_trials(deepcopy=False)
    done, seen = [t for t in everything if t.state != TrialState.RUNNING], Seen()
    for trial in random.Random(seed).sample(done, len(done)):  # in the order in which they end
        seen.add(trial)
    known = [everything[number] for number in sorted(seen.numbers())]
    again = Seen()
    for trial in done:  # as a driver reads them
        again.add(trial)
    assert again.numbers() == seen.numbers()
    assert len(known) == min(SEEN, len(done)) and all(t.state != TrialState.RUNNING for t in known)
    good = [_split_trials(study, each, default_gamma(len(each)))[0] for each in (done, known)]
    assert [t.number for t in good[0]] == [t.number for t in good[1]]


def finished(count: int, dice: random.Random, pruner: str) -> list[FrozenTrial]:
    """Complete, pruned, infeasible and running trials."""
    made = []
    for _ in range(count):
        loss, draw = dice.random(), dice.random()
        if draw < 0.05:
            made.append(optuna.trial.create_trial(state=TrialState.RUNNING))
            continue
        attrs = {"constraints": [1.0 if draw < 0.15 else -1.0]}
        if draw < 0.5 and pruner != "none":
            step = dice.randint(1, 3)
            made.append(
                optuna.trial.create_trial(
                    state=TrialState.PRUNED, value=loss, intermediate_values={step: loss}, system_attrs=attrs
                )
            )
        else:
            made.append(optuna.trial.create_trial(value=loss, system_attrs=attrs))
    return made
