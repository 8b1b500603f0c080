from dataclasses import asdict, replace
from functools import cache

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from analysis import analyse
from analysis.gate import FEWEST_SEEDS, TURNS, decide, unfinished, winning
from analysis.ladder import analyse_ladder
from analysis.table import to_frame
from analysis.words import MINUS
from search_space.errors import UsageError
from sweeps.registry import winner
from tests.analysis.ladders import ARM, OTHER, SIZES, Truth, ladder, target
from tests.analysis.synthetic import BASELINE, odd_sweeps, sweep

BETTER = {BASELINE: Truth(2.0, 0.08, 1.0), ARM: Truth(1.9, 0.08, 1.0), OTHER: Truth(2.2, 0.08, 1.0)}
CLOSING = {BASELINE: Truth(2.0, 0.08, 1.0), ARM: Truth(1.9, 0.065, 1.0)}
NOISE = {BASELINE: Truth(2.0, 0.08, 1.0), ARM: Truth(2.0, 0.08, 1.0), OTHER: Truth(2.2, 0.08, 1.0)}
WORSE = {BASELINE: Truth(2.0, 0.08, 1.0), ARM: Truth(2.1, 0.08, 1.0)}
ALONE = {BASELINE: Truth(2.0, 0.08, 1.0), OTHER: Truth(2.2, 0.08, 1.0)}
LADDERS = {"better": BETTER, "closing": CLOSING, "noise": NOISE, "worse": WORSE, "alone": ALONE}


@cache
def climbed(name):
    if name == "none":
        return None
    return analyse_ladder(ladder(LADDERS[name], SIZES[:3], sigma=0.002), BASELINE, "parallel", target())


@cache
def swept(arm: float = 0.6, seeds: int = 3):
    frame = sweep({BASELINE: 0.8, ARM: arm, OTHER: 0.9}, arm_seeds=seeds, sigma=0.01, document_sigma=0.02)
    return analyse(frame), frame


def decided(climb="better", arm=0.6, seeds=3, design=None, force=False):
    analysis, frame = swept(arm, seeds)
    return decide(analysis, frame, climbed(climb) if isinstance(climb, str) else climb, design, force)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["none", *LADDERS]),
    st.sampled_from([0.6, 1.0]),
    st.sampled_from([1, 3]),
    st.sampled_from([None, BASELINE, ARM, OTHER]),
    st.booleans(),
)
def test_only_what_has_no_reason_against_it_is_promoted(climb, arm, seeds, design, force):
    found = decided(climb, arm, seeds, design, force)
    assert (found.status == "promoted") == (not found.reasons)
    assert (found.status == "forced") == (force and bool(found.reasons))
    assert found.reasons == decided(climb, arm, seeds, design, not force).reasons
    assert design in (None, found.design)
    if found.status == "promoted":
        assert climb != "none" and found.prediction is not None
        assert min(found.seeds, found.baseline_seeds) >= FEWEST_SEEDS
        if found.design != BASELINE:
            assert found.high < 0 and found.verdict == "better" and found.prediction.turned < TURNS
    if climb == "none":
        assert any(reason.startswith("no ladder") for reason in found.reasons)


def test_a_record_is_plain_data():
    found = decided()
    assert found.status == "promoted" and found.design == ARM and found.evidence == "ladder"
    again = yaml.safe_load(OmegaConf.to_yaml(OmegaConf.create(asdict(found))))
    assert again == asdict(found)
    assert again["rungs"][0]["rung"] == 1 and again["prediction"]["checks"]["gap"]
    top = climbed("better").of(ARM)
    assert (found.difference, found.low, found.high) == (
        top.gaps[-1].effect.difference, top.gaps[-1].effect.low, top.gaps[-1].effect.high,
    )  # fmt: skip
    assert found.level == "1,000,000" and found.prediction.loss == top.forecast.loss


def test_without_a_ladder_the_sweep_is_the_evidence():
    found = decided("none")
    effect = swept()[0].comparison.of(ARM)
    assert found.status == "refused" and found.evidence == "sweep" and found.prediction is None
    assert [reason.split(":")[0] for reason in found.reasons] == ["no ladder"]
    assert (found.low, found.high, found.rung, found.sigma) == (effect.low, effect.high, 2, swept()[0].comparison.sigma)
    assert decided("none", force=True) == replace(found, status="forced")


def reasons(**told):
    return " | ".join(decided(**told).reasons)


def test_reasons_name_their_numbers():
    assert "concat-w128-causal-mlp-O0-n8 has 1 seed at rung 2, at least 3 are needed" in reasons(climb="none", seeds=1)
    closing = reasons(climb="closing")
    forecast = climbed("closing").of(ARM).forecast
    assert forecast.turned > TURNS and "the gap may vanish or turn on the way to the target" in closing
    assert f"probability of {forecast.turned:.0%}; below 5% is needed" in closing
    assert "per tenfold of compute (95% interval +" in closing
    assert "it is worse than the baseline at 1,000,000: +0.0" in reasons(climb="worse")
    assert "it is worse than the baseline at rung 2: +0.2" in reasons(climb="none", arm=1.0, design=ARM)
    assert "may be noise" in reasons(climb="noise") and "to show it takes more than 1,000 seeds per design" in reasons(
        climb="noise"
    )
    assert f"{ARM} is not on the ladder: it was not trained there" in reasons(climb="alone")


def test_a_ladder_that_fails_its_own_check_refuses():
    levels = ladder(BETTER, SIZES[:3], sigma=0.002)
    last = levels[-1].frame
    last["parallel"] = last["parallel"].where(last["design"] != ARM, 0.85 * last["parallel"])
    found = decided(analyse_ladder(levels, BASELINE, "parallel", target()))
    assert found.status == "refused" and not found.prediction.trusted
    assert any("the ladder fails its own check: its gap at 1,000,000 was predicted as" in why for why in found.reasons)


def test_a_difference_that_only_counts_alone_does_not_stand_out():
    analysis, frame = swept()
    effects = tuple(replace(e, p_adjusted=0.2, verdict="undecided") for e in analysis.comparison.effects)
    rows = [replace(row, effect=next((e for e in effects if e.design == row.design), None)) for row in analysis.rows]
    many = replace(analysis, comparison=replace(analysis.comparison, effects=effects), rows=rows)
    assert "does not stand out among the arms compared: p = 0.200" in decide(many, frame, None, ARM).reasons[0]


def test_a_baseline_that_wins_says_that_nothing_better_was_found():
    found = decided("alone", arm=1.0)
    assert (found.status, found.design, found.verdict, found.difference) == ("promoted", BASELINE, "baseline", None)
    assert found.notes[0].startswith("nothing better than the baseline was found")
    assert found.prediction.gap is None and found.loss == found.baseline_loss
    beaten = decided("better", design=BASELINE)
    assert beaten.status == "refused" and f"{ARM} is better at 1,000,000: {MINUS}0.0" in beaten.reasons[0]
    assert f"{ARM} is better in the sweep: {MINUS}0." in decided("alone", design=BASELINE).reasons[0]


@pytest.mark.parametrize("name", odd_sweeps())
def test_the_winner_is_the_registry_s_and_odd_sweeps_have_a_record(name):
    frame = odd_sweeps()[name]
    analysis = analyse(frame)
    won, known = winning(analysis, frame), winner(analysis, frame)
    assert (won and won.design) == (known and known.evidence["design"])
    found = decide(analysis, frame, None, force=True)
    assert found.status == ("refused" if won is None else "forced") and found.reasons
    assert bool(unfinished(analysis, frame)) == (won is None or (frame["state"] == "running").any())


def test_an_unfinished_sweep_is_refused():
    frame = swept()[1].copy()
    frame.loc[frame["trial"] == 5, "state"] = "running"
    found = decide(analyse(frame), frame, None)
    assert found.status == "refused" and found.reasons[0] == "the sweep is unfinished: 1 trial running"
    assert unfinished(analyse(to_frame([])), to_frame([])) == ["the sweep has no trials"]


def test_a_design_that_was_stopped_early_is_refused():
    frame = sweep(arm_seeds=3, pruned=[OTHER])
    found = decide(analyse(frame), frame, None, OTHER)
    assert "it has come to rung 1 and not to 2, the last" in found.reasons
    levels = ladder(BETTER)
    top = levels[-1].frame
    top.drop(top.index[top["design"] == ARM], inplace=True)
    short = decided(analyse_ladder(levels, BASELINE, "parallel", target()))
    assert "it stands at 1,000,000 and not at 3,000,000, the largest level" in short.reasons


def test_what_cannot_be_decided_is_a_usage_error():
    with pytest.raises(UsageError, match=f"design: 'absent' is not one of {ARM}, "):
        decided(design="absent")
    with pytest.raises(UsageError, match="design: 'blind' is not one of"):
        decided(design="blind")
    with pytest.raises(UsageError, match="ladder: it is of the baseline .* by continue"):
        decided(replace(climbed("better"), metric="continue"))
