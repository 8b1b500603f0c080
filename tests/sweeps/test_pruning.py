"""Pruners against Optuna's own on histories played through a real study, and the promises of their interface."""

import warnings

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.pruners import BasePruner, MedianPruner, SuccessiveHalvingPruner, WilcoxonPruner
from optuna.trial import TrialState

from sweeps.pruning import Cutoff, Halving, Median, Pruner, Reached, Standings, Unpruned, Wilcoxon, make_pruner
from tests.sweeps.virtual import config

RUNGS = 3
KINDS: list[Pruner] = [Unpruned(), Median(2), Halving(2), Wilcoxon(), Cutoff(3)]

losses = st.integers(0, 12).map(lambda tenths: tenths / 10)  # few enough that many are equal
falls = st.lists(losses, min_size=RUNGS, max_size=RUNGS).map(lambda values: sorted(values, reverse=True))
histories = st.lists(falls, min_size=1, max_size=12)
documents = st.lists(losses, min_size=14, max_size=14)  # below, SciPy permutes tied ranks, which is slow


def play(curves: list[list[float]], order: st.DataObject, ours: Pruner, optunas: BasePruner, step: list[int]) -> int:
    """Report `curves` to a study, interleaved in an order that is drawn; how often the pruners were compared."""
    study = optuna.create_study(pruner=optunas)
    trials = [study.ask() for _ in curves]
    reached: list[list[int]] = [[] for _ in range(RUNGS)]  # numbers, by rung, in order of arrival
    running, compared = [(number, 0) for number in range(len(curves))], 0
    while running:
        number, rung = running.pop(order.draw(st.integers(0, len(running) - 1)))
        reached[rung].append(number)
        if rung == RUNGS - 1:
            study.tell(number, curves[number][rung])
            continue
        trials[number].report(curves[number][rung], step[rung])
        states = [t.state == TrialState.COMPLETE for t in study.get_trials(deepcopy=False)]
        there = Standings(Reached(n, curves[n][rung], [], states[n]) for n in reached[rung])
        prune = trials[number].should_prune()
        decision = ours.decide(number, rung + 1, there, to_come=len(running))
        assert decision == ("prune" if prune else "continue")
        compared += 1
        if prune:
            study.tell(number, state=TrialState.PRUNED)
        else:
            running.append((number, rung + 1))
    return compared


@settings(deadline=None)
@given(histories, st.data(), st.integers(0, 4))
def test_median_decides_as_optunas(curves: list[list[float]], order: st.DataObject, startup: int) -> None:
    optunas = MedianPruner(n_startup_trials=startup)
    assert play(curves, order, Median(startup), optunas, list(range(RUNGS))) >= len(curves)


@settings(deadline=None)
@given(histories, st.data(), st.integers(2, 4))
def test_halving_decides_as_optunas(curves: list[list[float]], order: st.DataObject, factor: int) -> None:
    optunas = SuccessiveHalvingPruner(min_resource=1, reduction_factor=factor)
    step = [factor**rung for rung in range(RUNGS)]  # where Optuna has its rungs
    assert play(curves, order, Halving(factor), optunas, step) >= len(curves)


@pytest.mark.filterwarnings("ignore:WilcoxonPruner is experimental")
@settings(deadline=None)
@given(st.lists(documents, min_size=1, max_size=4), documents)
def test_wilcoxon_decides_as_optunas(complete: list[list[float]], own: list[float]) -> None:
    study = optuna.create_study(pruner=WilcoxonPruner())
    means = [sum(d) / len(d) for d in [*complete, own]]
    for number, d in enumerate([*complete, own]):
        trial = study.ask()
        for step, loss in enumerate(d):
            trial.report(loss, step)
        if number < len(complete):
            study.tell(trial, means[number])
    reached = [Reached(n, mean, d) for n, (mean, d) in enumerate(zip(means, [*complete, own], strict=True))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (Wilcoxon().decide(len(complete), 1, Standings(reached), 0) == "prune") == trial.should_prune()


def test_wilcoxon_prunes_what_is_worse_everywhere_and_nothing_else() -> None:
    best = Reached(0, 1.0, [1.0 + d / 100 for d in range(20)])
    worse = Reached(1, 1.1, [d + 0.1 + i / 1000 for i, d in enumerate(best.documents)])
    assert Wilcoxon().decide(1, 1, Standings([best, worse]), 5) == "prune"
    assert Wilcoxon().decide(0, 1, Standings([best, worse]), 5) == "continue"
    for spared in (
        Reached(1, 1.1, []),  # no documents stored
        Reached(1, 1.1, worse.documents[:-1]),  # others than the best one's
        Reached(1, 1.0, best.documents),  # equal
        Reached(1, 1.1, [*[d + 0.1 for d in best.documents[:-1]], -9.0]),  # ranks say worse, the mean says better
    ):
        assert Wilcoxon().decide(1, 1, Standings([best, spared]), 5) == "continue"


@given(st.lists(losses, min_size=1, max_size=12), st.data(), st.integers(1, 14))
def test_cutoff_lets_the_best_go_on_whatever_the_order(values: list[float], data: st.DataObject, keep: int) -> None:
    order = data.draw(st.permutations(range(len(values))))
    fails = data.draw(st.sets(st.sampled_from(order)))  # never reach the rung; known at the end only
    reached: list[Reached] = []
    decided: dict[int, str] = {}
    arrivals = [n for n in order if n not in fails]
    for number in arrivals:
        reached.append(Reached(number, values[number], []))
        to_come = len(order) - len(reached)
        answers = {r.number: Cutoff(keep).decide(r.number, 1, Standings(reached), to_come) for r in reached}
        assert all(answers[n] == said for n, said in decided.items())  # nothing is taken back
        decided |= {n: said for n, said in answers.items() if said != "wait"}
    answers = {r.number: Cutoff(keep).decide(r.number, 1, Standings(reached), 0) for r in reached}
    assert all(answers[n] == said for n, said in decided.items())
    going = {n for n, said in answers.items() if said == "continue"}
    assert going == set(sorted(arrivals, key=lambda n: (values[n], n))[:keep])
    assert len(going) == min(keep, len(arrivals))
    assert {Cutoff(keep).decide(n, 2, Standings(reached), 3) for n in answers} <= {"continue"}


@pytest.mark.parametrize("pruner", KINDS, ids=lambda pruner: type(pruner).__name__)
@settings(max_examples=30, deadline=None)
@given(values=st.lists(losses, min_size=1, max_size=6), data=st.data())
def test_every_pruner_decides_alike_and_never_for_ever_waits(
    pruner: Pruner, values: list[float], data: st.DataObject
) -> None:
    reached = [Reached(n, value, data.draw(documents), data.draw(st.booleans())) for n, value in enumerate(values)]
    for trial in reached:
        for to_come in (0, 1, 9):
            decision = pruner.decide(trial.number, 1, Standings(reached), to_come)
            assert decision in (["continue", "prune"] if to_come == 0 else ["continue", "prune", "wait"])
            assert decision == pruner.decide(trial.number, 1, Standings(reversed(reached)), to_come)


@pytest.mark.parametrize("pruner", KINDS, ids=lambda pruner: type(pruner).__name__)
@given(values=st.lists(losses, min_size=1, max_size=8))
def test_the_first_of_equals_goes_on(pruner: Pruner, values: list[float]) -> None:
    """Some trial always reaches the end: the best one, of equals the first, is pruned by nobody."""
    reached = [Reached(n, value, [value] * 14) for n, value in enumerate(values)]
    first = min(reached, key=lambda r: (r.value, r.number))
    assert pruner.decide(first.number, 1, Standings(reached), 0) == "continue"


@given(values=st.lists(losses, min_size=1, max_size=20), data=st.data())
def test_standings_are_what_sorting_says(values: list[float], data: st.DataObject) -> None:
    reached = [Reached(n, value, [], complete=False) for n, value in enumerate(values)]
    kept, complete = (
        Standings(data.draw(st.permutations(reached))),
        data.draw(st.sets(st.sampled_from(range(len(values))))),
    )
    for number in complete:
        kept.completed(number)
    ranked = sorted((r.value, r.number) for r in reached)
    assert len(kept) == len(values) and kept.best().number == ranked[0][1]
    assert list(kept.complete()) == sorted(values[n] for n in complete)
    for one in reached:
        assert kept[one.number].complete == (one.number in complete)
        assert kept.better(one.number) == ranked.index((one.value, one.number))
        assert kept.lower(one.value) == sum(value < one.value for value in values)


def test_the_configuration_chooses() -> None:
    assert make_pruner(config("pruner=median")) == Median(2)
    chosen = [make_pruner(config(f"pruner={kind}", "factor=3", "keep=5")) for kind in ("halving", "wilcoxon", "cutoff")]
    assert chosen == [Halving(3), Wilcoxon(0.1), Cutoff(5)]
    assert isinstance(make_pruner(config("pruner=none")), Unpruned)
