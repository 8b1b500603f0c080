"""What to run next: the knowledge gradient against its definition by simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import analyse
from analysis.following import MOST, chances_best, following, knowledge_gradient
from tests.analysis.synthetic import sweep

CLOSE = {"a": 0.50, "b": 0.51, "c": 0.52, "d": 0.9, "e": 1.5, "f": 2.5}


def test_worth_is_the_expected_fall_of_the_least_mean():
    mean, precision, sigma = np.array([0.0, 0.05, -0.02, 0.3]), np.array([50.0, 200.0, 400.0, 100.0]), 0.1
    random = np.random.default_rng(0)
    for d, worth in enumerate(knowledge_gradient(mean, precision, sigma)):
        truth = random.normal(mean[d], precision[d] ** -0.5, 400_000)
        seen = truth + random.normal(0, sigma, truth.size)
        after = (precision[d] * mean[d] + seen / sigma**2) / (precision[d] + 1 / sigma**2)
        others = np.delete(mean, d).min()
        falls = mean.min() - np.minimum(after, others)
        assert worth == pytest.approx(falls.mean(), abs=4 * falls.std() / np.sqrt(truth.size))


def test_chances_are_those_of_a_simulation():
    mean, sd = np.array([0.0, 0.05, -0.02, 0.3, 0.0]), np.array([0.1, 0.05, 0.02, 0.1, 1e-3])
    drawn = np.random.default_rng(0).normal(mean, sd, (400_000, 5)).argmin(axis=1)
    np.testing.assert_allclose(chances_best(mean, sd), np.bincount(drawn, minlength=5) / 400_000, atol=0.004)


@settings(deadline=None)
@given(
    mean=st.lists(st.floats(-2, 2), min_size=2, max_size=8),
    precision=st.floats(1, 1e6),
    sigma=st.floats(1e-3, 1),
    shift=st.floats(-3, 3),
)
def test_worth_is_never_negative_and_only_differences_count(mean, precision, sigma, shift):
    means, precisions = np.array(mean), np.full(len(mean), precision)
    worth = knowledge_gradient(means, precisions, sigma)
    assert (worth >= 0).all()
    np.testing.assert_allclose(worth, knowledge_gradient(means + shift, precisions, sigma), atol=1e-9)


def test_the_next_seeds_are_those_of_the_best_and_its_rivals():
    frame = sweep(CLOSE, baseline="b", sigma=0.05, document_sigma=0.001)
    found = following(frame, "parallel", analyse(frame).rows)
    assert 1 <= len(found) <= MOST
    assert [n.worth for n in found] == sorted((n.worth for n in found), reverse=True)
    assert {n.design for n in found[:2]} <= {"a", "b", "c"}
    assert all(n.worth > 0 and n.reason and "nan" not in n.reason for n in found)
    assert sum(n.chance_best for n in found) <= 1 + 1e-9
    of_b = next((n for n in found if n.design == "b"), None)
    assert of_b is None or (of_b.role, of_b.seeds) == ("baseline", 3)


def test_an_arm_that_is_as_good_with_fewer_seeds_is_worth_more():
    worth = knowledge_gradient(np.array([0.0, 0.01, 0.01]), np.array([400.0, 400.0, 100.0]), 0.1)
    assert worth[2] > worth[1]


@pytest.mark.parametrize(
    ("kwargs", "why"), [({"baseline_seeds": 1}, "hence no interval"), ({"arm_seeds": 3}, "What to run next")]
)
def test_what_cannot_be_told_is_said(kwargs, why):
    truth = CLOSE if "baseline_seeds" in kwargs else {"a": 0.1, "b": 1.0, "c": 10.0}
    frame = sweep(truth, baseline="b", sigma=0.01, document_sigma=0.001, controls={}, **kwargs)
    analysis = analyse(frame)
    assert analysis.following == []
    assert any(why in sentence for sentence in analysis.unsaid)
