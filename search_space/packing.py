"""Sequences of mixed length, packed into rows of one length, and gathered in groups of similar length.

Notable choices:
- the length of the rows is what is chosen: the shortest of which less than 2% stays empty. Fewer and longer rows are
  easier to fill, and a single row of everything has no empty position, so that there always is one. Attention does not
  pay for it, since it skips what its mask forbids, by groups on a CPU and by block masks on a GPU;
- each length is tried with two rules, longest sequence first: into the fullest row with room (best fit), which fills
  with short sequences what long ones leave, and into the emptiest (longest processing time, Graham 1969), which
  balances sequences of similar length;
- sequences of one length are placed together. Most windows of a step are full, so that the work grows with the
  number of different lengths and not with that of windows;
- the groups are those whose attention costs least by a price of pairs of positions, single ones and groups.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["alike", "pack", "ranges"]

Ints = NDArray[np.int64]
Steps = list[tuple[int, ...]]
_EMPTY = 50  # fewer than one position in so many holds nothing
_SLOT, _GROUP = 128, 8192  # what costs attention as much as so many pairs: rough figures, at width 128 (docs/log.md)


def pack(lengths: Ints) -> tuple[Ints, Ints, int]:
    """Row and offset of each sequence, and the length of the rows. There is a sequence, and none is empty.

    The rows' number and length do not depend on the order of `lengths`. Where all are equal, each has its own row.
    """
    sizes, counts = np.unique(lengths, return_counts=True)
    longest_first = list(zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True))
    total = int(lengths.sum())
    steps = _filled(longest_first, total, len(lengths))
    *step, placed = np.array(steps).T
    first, per_row, start, size = np.repeat(step, placed, axis=1)
    number = ranges(0, placed)
    row, offset = np.empty_like(lengths), np.empty_like(lengths)
    order = np.argsort(-lengths, kind="stable")
    row[order], offset[order] = first + number // per_row, start + number % per_row * size
    return row, offset, int((offset + lengths).max())


def ranges(starts: Ints | int, lengths: Ints) -> Ints:
    """`arange(start, start + length)` for each pair, one after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def alike(lengths: Ints) -> Ints:
    """How many sequences to take together, each time as long as their first; `lengths` descend.

    The least sum of positions times what attention pays for each, and of a price per group.
    """
    change = np.flatnonzero(np.diff(lengths, prepend=-1))
    size, edge = lengths[change], np.append(change, len(lengths))
    price = size * (size + _SLOT)  # of a sequence in a group that begins with this length
    best, begin = np.zeros(len(edge), np.int64), np.zeros(len(edge), np.int64)
    for stop in range(1, len(edge)):
        costs = best[:stop] + (edge[stop] - edge[:stop]) * price[:stop]
        begin[stop] = costs.argmin()
        best[stop] = costs.min() + _GROUP
    cuts = [len(edge) - 1]
    while cuts[-1]:
        cuts.append(int(begin[cuts[-1]]))
    return np.diff(edge[cuts[::-1]])


def _filled(longest_first: list[tuple[int, int]], total: int, count: int) -> Steps:
    """The steps for the shortest rows of which less than 2% stays empty."""
    return next(
        steps
        for rows, capacity in _shapes(total, longest_first[0][0], count)
        for fullest in (True, False)
        if (steps := _place(longest_first, rows, capacity, fullest))
    )


def _shapes(total: int, longest: int, count: int) -> Iterator[tuple[int, int]]:
    """(rows, room in one) of less than 2% waste, from the shortest on; each time 1% fewer rows, at last a single one.

    The room is the largest whole number below total / (0.98 rows), and there are no more rows than sequences.
    """
    rows = min(count, -(-_EMPTY * total // ((_EMPTY - 1) * longest)) - 1)
    while rows:
        yield rows, -(-_EMPTY * total // ((_EMPTY - 1) * rows)) - 1
        rows = min(rows - 1, rows * 99 // 100)


def _place(longest_first: list[tuple[int, int]], rows: int, room: int, fullest: bool) -> Steps | None:
    """Put all (length, how many) into `rows` of `room` by one of the two rules; None where they do not fit.

    Steps, in order of the sequences: first row, sequences per row, where they start, their length, how many in all.
    """
    capacity = room
    open_rows = [(room, 0, rows)]  # (room left, first row, rows in succession), by room
    steps = []
    for length, count in longest_first:
        while count:
            at = bisect_left(open_rows, (length,))
            if at == len(open_rows):
                return None
            room, first, rows = open_rows.pop(at if fullest else -1)
            per_row = min(room // length, count) if fullest else 1
            taken = min(rows, count // per_row)
            steps.append((first, per_row, capacity - room, length, taken * per_row))
            count -= taken * per_row
            if room > per_row * length:
                insort(open_rows, (room - per_row * length, first, taken))
            if rows > taken:
                insort(open_rows, (room, first + taken, rows - taken))
    return steps
