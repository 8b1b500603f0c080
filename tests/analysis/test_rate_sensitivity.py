"""Sensitivity to the learning rate by hand, and that such trials change nothing else."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis import analyse
from analysis.rates import sensitivities
from analysis.table import to_frame
from tests.analysis.synthetic import BASELINE, sweep, trial

ARM = "concat-w128-causal-mlp-O0-n8"


def at_rate(number: int, design: str, loss: float, rate: float, **kwargs) -> list[dict]:
    return [row | {"rate": rate} for row in trial(number, design, loss, role="rate", **kwargs)]


def table() -> pd.DataFrame:
    rows = [
        *trial(0, BASELINE, 1.0, role="baseline"),
        *trial(1, BASELINE, 4.0, role="baseline", seed=1),  # no other rate has this seed
        *trial(2, ARM, 0.5),
        *at_rate(3, BASELINE, 0.8, 0.5),
        *at_rate(4, BASELINE, 1.6, 2.0),
        *at_rate(5, ARM, 0.6, 0.5, reached=1, state="running"),
        *at_rate(6, ARM, 1.0, 2.0, reached=0, state="failed", reason="loss is NaN at step 3"),
    ]
    return to_frame(rows)


def test_by_hand():
    arm, base = sensitivities(table(), "parallel")
    assert (base.design, base.role, base.rung, base.factors) == (BASELINE, "baseline", 2, (0.5, 1.0, 2.0))
    assert base.losses == pytest.approx((0.8, 1.0, 1.6))
    assert (base.best, base.cost, base.steepest) == (0.5, pytest.approx(np.log(1 / 0.8)), pytest.approx(np.log(1.6)))
    assert (arm.design, arm.role, arm.rung, arm.factors) == (ARM, "arm", 1, (0.5, 1.0))
    assert (arm.best, arm.cost, arm.steepest) == (1.0, 0.0, pytest.approx(np.log(0.6 / 0.5)))


def test_without_a_loss_at_one_or_at_another_rate_nothing_is_said():
    assert sensitivities(sweep(), "parallel") == ()
    frame = table()
    assert sensitivities(frame[frame["role"] == "rate"], "parallel") == ()
    failed = frame[(frame["role"] != "rate") | (frame["state"] == "failed")]
    assert sensitivities(failed, "parallel") == ()
    assert any("no design has a loss at two" in sentence for sentence in analyse(failed).unsaid)


def test_trials_at_another_rate_change_nothing_else():
    frame = sweep(arm_seeds=2)
    more = to_frame([*at_rate(900, BASELINE, 0.1, 0.5), *at_rate(901, "elsewhere", 0.1, 0.5)])
    analysis = analyse(pd.concat([more, frame], ignore_index=True))
    assert [s.design for s in analysis.sensitivities] == [BASELINE]
    plain = analyse(frame)
    assert replace(analysis, sensitivities=[], unsaid=plain.unsaid) == replace(plain, sensitivities=[])
