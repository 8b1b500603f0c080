"""Importance: the axis that matters has the largest share, and what cannot be had is said to be missing."""

from itertools import product

import numpy as np
import pytest

from analysis.axes import axis_effects
from analysis.importance import importance
from tests.analysis.synthetic import BASELINE, sweep


def names() -> list[str]:
    designs = product(("mean", "concat", "eos"), (128, 64, 32), ("causal", "bidirectional"))
    found = [f"{p}-w{w}-{m}-mlp-O0-n8" for p, w, m in designs]
    return [BASELINE, *(n for n in found if n != BASELINE)]


@pytest.mark.parametrize(("axis", "word"), [("mask", "bidirectional"), ("window", "w64")])
def test_the_axis_that_decides_has_the_largest_share(axis, word):
    frame = sweep({n: 0.5 if word in n else 0.8 for n in names()}, sigma=0.01, document_sigma=0.01)
    found = importance(frame, "parallel", axis_effects(frame, "parallel"))
    assert {i.axis for i in found} == {"pooling", "window", "mask"}
    first, *rest = found
    assert first.axis == axis
    assert first.effect == pytest.approx(np.log(0.8 / 0.5), rel=0.1)
    for name in ("ped_anova", "fanova"):
        shares = [getattr(i, name) for i in found]
        assert sum(shares) == pytest.approx(1)
        assert getattr(first, name) == max(shares)
    assert first.fanova is not None and first.fanova > 0.9
    assert all(i.effect is not None and i.effect < 0.1 for i in rest)


def test_the_same_table_gives_the_same_shares_in_any_order():
    frame = sweep({n: 0.5 + 0.01 * i for i, n in enumerate(names())})
    effects = axis_effects(frame, "parallel")
    assert importance(frame, "parallel", effects) == importance(
        frame.sample(frac=1, random_state=0), "parallel", effects
    )


def test_too_few_designs_have_none_and_equal_designs_no_share():
    few = sweep({n: 0.5 for n in names()[:3]})
    assert importance(few, "parallel", axis_effects(few, "parallel")) == ()
    equal = sweep({n: 0.5 for n in names()}, sigma=0, document_sigma=0)
    equal["parallel"] = 1.0
    assert all(i.fanova is None for i in importance(equal, "parallel", ()))
