"""Packing: every sequence in one place, hardly anything empty, and rows no longer than that takes."""

from random import Random

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from search_space.packing import alike, pack, ranges

few_lengths = st.lists(st.integers(1, 50), min_size=1, max_size=60)
many_equal = st.lists(st.sampled_from([1, 3, 16, 20, 64]), min_size=1, max_size=300)
far_apart = st.lists(st.integers(0, 16).map(lambda e: 2**e), min_size=1, max_size=60)
any_lengths = st.one_of(few_lengths, many_equal, far_apart)


def rows_of(lengths: list[int]) -> tuple[int, list[list[int]]]:
    """The row length, and what each row holds."""
    row, _, capacity = pack(np.array(lengths))
    return capacity, [sorted(np.array(lengths)[row == r].tolist()) for r in range(int(row.max()) + 1)]


@given(lengths=any_lengths)
@example([1])
@example([7] * 5)
@example([50, 1, 1, 1])
def test_every_sequence_has_a_place_of_its_own(lengths: list[int]) -> None:
    row, offset, capacity = pack(np.array(lengths))
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


@given(lengths=any_lengths, random=st.randoms(use_true_random=False))
def test_rows_do_not_depend_on_the_order(lengths: list[int], random: Random) -> None:
    shuffled = lengths.copy()
    random.shuffle(shuffled)
    (one, held), (other, also_held) = rows_of(lengths), rows_of(shuffled)
    assert one == other and sorted(held) == sorted(also_held)


@given(lengths=any_lengths)
def test_pack_repeats_itself(lengths: list[int]) -> None:
    one, two = pack(np.array(lengths)), pack(np.array(lengths))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@given(length=st.integers(1, 40), count=st.integers(1, 200))
def test_equal_lengths_are_left_alone(length: int, count: int) -> None:
    assert rows_of([length] * count) == (length, [[length]] * count)


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


def price(lengths: list[int], groups: list[int]) -> int:
    """Every sequence as long as the first of its group: what its attention costs, and what a group does."""
    cost, at = 0, 0
    for count in groups:
        cost += count * lengths[at] * (lengths[at] + 128) + 8192
        at += count
    assert at == len(lengths)
    return cost


@given(st.lists(st.integers(1, 200), min_size=1, max_size=9), st.data())
def test_no_other_groups_cost_less(lengths: list[int], data: st.DataObject) -> None:
    lengths = sorted(lengths, reverse=True)
    groups = alike(np.array(lengths)).tolist()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(lengths) - 1)))))
    other = np.diff([0, *(c for c in cuts if c < len(lengths)), len(lengths)]).tolist()
    assert min(groups) > 0
    assert price(lengths, groups) <= price(lengths, other)


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([64] * 40, [40]),
        ([39] * 20 + [38, 37], [22]),
        ([2000, 1000, 500], [1, 1, 1]),
        ([1536] * 14 + [1280, 1280] + [200] * 3, [14, 2, 3]),
    ],
)
def test_similar_lengths_are_taken_together(lengths: list[int], groups: list[int]) -> None:
    assert alike(np.array(lengths)).tolist() == groups


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 9)), min_size=1))
def test_ranges(pairs: list[tuple[int, int]]) -> None:
    starts, lengths = np.array(pairs).T
    assert ranges(starts, lengths).tolist() == [i for start, length in pairs for i in range(start, start + length)]
    assert ranges(3, lengths).tolist() == [i for _, length in pairs for i in range(3, 3 + length)]
