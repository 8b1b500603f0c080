"""Packing: every sequence in one place, hardly anything empty, and rows no longer than that takes."""

from random import Random

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from search_space.packing import pack, ranges

few_lengths = st.lists(st.integers(1, 50), min_size=1, max_size=60)
many_equal = st.lists(st.sampled_from([1, 3, 16, 20, 64]), min_size=1, max_size=300)
far_apart = st.lists(st.integers(0, 16).map(lambda e: 2**e), min_size=1, max_size=60)
any_lengths = st.one_of(few_lengths, many_equal, far_apart)


either_way = pytest.mark.parametrize("dense", [True, False])


def rows_of(lengths: list[int], dense: bool = False) -> tuple[int, list[list[int]]]:
    """The row length, and what each row holds."""
    row, _, capacity = pack(np.array(lengths), dense)
    return capacity, [sorted(np.array(lengths)[row == r].tolist()) for r in range(int(row.max()) + 1)]


@either_way
@given(lengths=any_lengths)
@example([1])
@example([7] * 5)
@example([50, 1, 1, 1])
def test_every_sequence_has_a_place_of_its_own(dense: bool, lengths: list[int]) -> None:
    row, offset, capacity = pack(np.array(lengths), dense)
    taken = np.zeros((int(row.max()) + 1, capacity), int)
    for r, first, length in zip(row, offset, lengths, strict=True):
        assert 0 <= first <= capacity - length
        taken[r, first : first + length] += 1
    assert taken.max() == 1 and taken.sum() == sum(lengths)


@given(any_lengths)
@example([49])
@example([100] * 48 + [99])
@example([100] * 24 + [48])
def test_less_than_two_percent_is_empty(lengths: list[int]) -> None:
    """Of any batch whatever, and no more positions than without packing."""
    capacity, rows = rows_of(lengths)
    assert 49 * len(rows) * capacity < 50 * sum(lengths)
    assert len(rows) * capacity <= len(lengths) * max(lengths)


def price(lengths: list[int], dense: bool) -> int:
    """Where attention computes what its mask forbids: positions times what each pays."""
    capacity, rows = rows_of(lengths, dense)
    return len(rows) * capacity * (512 + capacity)


@given(any_lengths)
@example([74] * 3 + [42] * 9)
def test_dense_rows_cost_least(lengths: list[int]) -> None:
    """No more than a row for each, a single row of everything, and all that could be had with no empty position."""
    least, longest, total = price(lengths, dense=True), max(lengths), sum(lengths)
    assert total * (512 + longest) <= least <= min(len(lengths) * longest * (512 + longest), total * (512 + total))


def test_dense_rows_are_as_short_as_that_pays() -> None:
    """One document's windows with overlap: two lengths that fill no row, where full rows would be nine times longer."""
    windows = [1280, *[1536] * 14, 1280]
    assert rows_of(windows, dense=True)[0] == 1536
    assert rows_of(windows, dense=False)[0] == 12032


@either_way
@given(lengths=any_lengths, random=st.randoms(use_true_random=False))
def test_rows_do_not_depend_on_the_order(dense: bool, lengths: list[int], random: Random) -> None:
    shuffled = lengths.copy()
    random.shuffle(shuffled)
    (one, held), (other, also_held) = rows_of(lengths, dense), rows_of(shuffled, dense)
    assert one == other and sorted(held) == sorted(also_held)


@either_way
@given(lengths=any_lengths)
def test_pack_repeats_itself(dense: bool, lengths: list[int]) -> None:
    one, two = pack(np.array(lengths), dense), pack(np.array(lengths), dense)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@either_way
@given(length=st.integers(1, 40), count=st.integers(1, 200))
def test_equal_lengths_are_left_alone(dense: bool, length: int, count: int) -> None:
    assert rows_of([length] * count, dense) == (length, [[length]] * count)


@pytest.mark.parametrize(
    ("lengths", "at_most"),
    [
        pytest.param([13] * 8 + [8] * 8 + [6] * 3, 21, id="13+8 and 6+6+6, found by the fullest row alone"),
        pytest.param([13] * 4 + [12] * 6 + [11] * 4 + [10] * 7, 34, id="threes, found by the emptiest row alone"),
        pytest.param([1024] * 50 + [1000] * 50 + [24] * 50, 1024, id="full windows and what completes others"),
        pytest.param([900, 30, 30, 30, 10] * 30 + [500] * 60, 1000, id="long ones filled with short ones"),
        pytest.param([1000] * 98 + [50, 20], 1000, id="a row nearly empty among many"),
    ],
)
def test_rows_are_hardly_longer_than_needed(lengths: list[int], at_most: int) -> None:
    assert rows_of(lengths)[0] <= at_most


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 9)), min_size=1))
def test_ranges(pairs: list[tuple[int, int]]) -> None:
    starts, lengths = np.array(pairs).T
    assert ranges(starts, lengths).tolist() == [i for start, length in pairs for i in range(start, start + length)]
    assert ranges(3, lengths).tolist() == [i for _, length in pairs for i in range(3, 3 + length)]
