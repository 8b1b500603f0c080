"""The sum of errors against scipy's t, against simulation, and what a residual adds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.quantiles import SMALLEST, half_width, two_sided, with_lack


@given(df=st.integers(1, 200), x=st.floats(0.01, 30), error=st.floats(1e-3, 1e3))
def test_one_error_is_students(df, x, error):
    assert two_sided(x * error, [error], [df]) == pytest.approx(max(2 * stats.t.sf(x, df), SMALLEST), rel=1e-6)
    assert half_width([error], [df]) == pytest.approx(error * stats.t.isf(0.025, df), rel=1e-9)


@settings(deadline=None)
@given(df=st.integers(1, 200), x=st.floats(0.01, 6))
def test_the_integral_is_students_where_the_second_error_hardly_counts(df, x):
    assert two_sided(x, [1.0, 2e-5], [df, 30]) == pytest.approx(2 * stats.t.sf(x, df), rel=1e-4)


@pytest.mark.parametrize(
    ("errors", "dfs"),
    [((1.0, 1.0), (2, 31)), ((0.3, 1.0), (2, 31)), ((1.0, 0.5, 0.3), (2, 31, 5)), ((1.0, 2.0), (1, 3))],
)
def test_the_posterior_is_that_of_a_simulation(errors, dfs):
    random = np.random.default_rng(0)
    variances = [e**2 * df / random.chisquare(df, 1_000_000) for e, df in zip(errors, dfs, strict=True)]
    total = np.sum(variances, axis=0)
    drawn, weights = np.abs(np.sqrt(total) * random.standard_normal(len(total))), total / np.prod(variances, axis=0)
    assert np.average(drawn > half_width(errors, dfs), weights=weights) == pytest.approx(0.05, abs=0.002)
    assert two_sided(8.0, errors, dfs) == pytest.approx(np.average(drawn > 8, weights=weights), rel=0.1)


@pytest.mark.parametrize("df", [2, 8])
@pytest.mark.parametrize("size", [0.3, 1.0, 3.0])
def test_intervals_of_two_errors_cover(df, size):
    random = np.random.default_rng(1)
    errors = random.normal(0, np.hypot(size, 1), 3000)
    first, second = (s * np.sqrt(random.chisquare(n, 3000) / n) for s, n in ((size, df), (1.0, 47)))
    covered = [two_sided(*of, [df, 47]) > 0.05 for of in zip(errors, zip(first, second, strict=True), strict=True)]
    assert 0.93 < np.mean(covered) < 0.97


@settings(deadline=None)
@given(errors=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=3), df=st.integers(1, 60), alpha=st.floats(1e-4, 0.5))
def test_half_width_is_where_the_p_value_is_alpha(errors, df, alpha):
    dfs = [df, 31, 7][: len(errors)]
    assert two_sided(half_width(errors, dfs, alpha), errors, dfs) == pytest.approx(alpha, rel=1e-4)


def test_without_any_error():
    assert half_width([0.0], [3]) == 0
    assert (two_sided(0.0, [0.0], [3]), two_sided(1e-9, [0.0], [3])) == (1.0, SMALLEST)


def test_a_residual_bounds_a_sigma_that_is_known_on_two_degrees_of_freedom():
    """Residuals as large as noise explains: much narrower than sigma alone, and as wide as with sigma known."""
    alone = half_width([1.0], [2])
    known = with_lack((1.0, 2), (1.0, 400), (1.0, 0.0), (1.0, 1.0))
    assert half_width([], [], other=known) == pytest.approx(1.96, rel=0.02)
    assert half_width([], [], other=known) < alone / 2


def test_lack_of_fit_beyond_noise_widens():
    known = with_lack((1.0, 400), (5.0, 400), (1.0, 0.0), (1.0, 1.0))
    assert half_width([], [], other=known) == pytest.approx(1.96 * np.sqrt(5), rel=0.02)


def test_residuals_that_noise_cannot_explain_leave_sigma_as_it_is():
    known = with_lack((1.0, 30), (1e-6, 30), (1.0, 0.0), (1.0, 1.0))
    assert half_width([], [], other=known) == pytest.approx(stats.t.isf(0.025, 30), rel=1e-3)
