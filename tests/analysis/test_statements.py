"""What is said of every shape of sweep, and that it is true."""

import pytest

from analysis import analyse
from search_space.errors import UsageError
from tests.analysis.synthetic import BASELINE, ENCODERLESS, TRUTH, odd_sweeps, sweep

SAID = {
    "empty": "the sweep has no trials",
    "waiting": "So far (0 trials finished, 1 running), nothing can be said yet, because no trial has reached a rung",
    "running": "So far (3 trials finished, 2 running), against the baseline",
    "failed": "all 7 trials failed (most often: loss is NaN at step 12)",
    "single seed": "no design has two seeds at rung 2, so the noise is unknown; the lowest loss is that of concat",
    "no baseline": "the sweep has no baseline; the lowest loss is that of concat",
    "baseline failed": "its baseline has reached no rung; the lowest loss is that of concat",
    "baseline only": "Only the baseline mean-w128-causal-mlp-O0-n8 has been tried",
    "normal": "better beyond noise is concat-w128-causal-mlp-O0-n8 by",
    "three seeds": "3 designs cannot be told apart from it",
}


@pytest.mark.parametrize("name", odd_sweeps())
def test_learnt_is_one_true_sentence(name):
    analysis = analyse(odd_sweeps()[name])
    assert SAID[name] in analysis.learnt
    for sentence in [analysis.learnt, *analysis.statements]:
        assert sentence[0].isupper()
        assert sentence.endswith(".")
        assert "None" not in sentence
        assert "nan" not in sentence


@pytest.mark.parametrize("name", ["single seed", "no baseline", "baseline failed"])
def test_no_claim_without_noise(name):
    analysis = analyse(odd_sweeps()[name])
    assert "beyond noise" not in analysis.learnt
    assert "earns its keep" not in " ".join(analysis.statements)


def said(**kwargs) -> str:
    return " ".join(analyse(sweep(arm_seeds=3, **kwargs)).statements)


def test_the_encoder():
    assert "The encoder earns its keep" in said()
    assert "cannot be said" in said(controls={ENCODERLESS: TRUTH[BASELINE]})
    assert "does harm" in said(controls={ENCODERLESS: 0.4})
    assert "ncoder" not in said(controls={})


def test_floor_and_ceiling():
    assert "closes 8" in said()
    assert "out of order" in said(controls={"uncompressed": 4.0, "blind": 2.0})
    assert "With raw tokens in place of latents" in said(controls={"uncompressed": 0.02})
    assert "Without any context" in said(controls={"blind": 4.0})


def test_next_token_loss_that_ranks_the_other_way():
    assert "Next-token loss ranks the designs differently" in said()
    frame = sweep()
    frame["continue"] = frame["parallel"]
    assert "Next-token" not in " ".join(analyse(frame).statements)


def test_rows_are_best_first_controls_last():
    rows = analyse(sweep(pruned=["eos-w128-causal-mlp-O0-n8"])).rows
    roles = [row.role == "control" for row in rows]
    assert roles == sorted(roles)
    assert rows[0].design.startswith("concat")
    compared = [row for row in rows if row.role != "control"]
    assert [row.rung for row in compared] == [2] * 6 + [1]
    losses = [row.losses["parallel"] or 0 for row in compared if row.rung == 2]
    assert losses == sorted(losses)


def test_another_metric_and_no_metric():
    assert analyse(sweep(), "reconstruct").metric == "reconstruct"
    with pytest.raises(UsageError, match="metric"):
        analyse(sweep(), "accuracy")


def test_a_table_is_read_by_the_metric_that_its_sweep_selects_on():
    frame = sweep(arm_seeds=3)
    assert analyse(frame).metric == "parallel"
    by_parallel = [row.design for row in analyse(frame).rows]
    frame["metric"] = "continue"
    analysis = analyse(frame)
    assert analysis.metric == "continue"
    assert [row.design for row in analysis.rows if row.role == "arm"] != by_parallel
    assert analysis.rows[0].design == "mean-w128-causal-mlp-O0"  # the worst by the other
    frame["metric"] = "accuracy"
    with pytest.raises(UsageError, match="metric"):
        analyse(frame)
