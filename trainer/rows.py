"""What becomes of every row of the sources: which documents are copies, which are held out, what is left out."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_space.errors import UsageError
from trainer.records import Slice
from trainer.sources import Source, Unit
from trainer.units import SPLITS, Look

__all__ = ["Rows"]


class Rows:
    """All rows of all units, in the order of the sources.

    looks: of the units. fate: of each row the number of its split, or -1; of copies the first stays, and a document
    is held out where its hash, as a number in [0, 1), is below `heldout`.
    """

    def __init__(self, sources: Sequence[Source], units: Sequence[Unit], looks: Sequence[Look], heldout: float) -> None:
        self.looks = looks
        self._sources, self._units, self._heldout = sources, units, heldout
        self._digest = np.concatenate([look.digest for look in looks])
        self.size = np.concatenate([look.size for look in looks])  # bytes
        self.fate = np.full(len(self.size), -1, np.int8)
        kept = self._without_copies()
        self.fate[kept] = self._digest[kept, 0] / 2**64 < heldout

    def check(self) -> None:
        """Raise `UsageError` where a split is empty."""
        kept = int((self.fate >= 0).sum())
        if not kept:
            given, reason = ", ".join(source.given for source in self._sources), self._first_reason()
            raise UsageError(
                f"corpus.source: {given!r} holds no readable text in its {len(self.size)} files or rows{reason}"
            )
        for number, split in enumerate(SPLITS):
            if not (self.fate == number).any():
                raise UsageError(
                    f"corpus.heldout: {self._heldout} of {kept} documents leaves none in {split}; "
                    "give more text or another share"
                )

    def _without_copies(self) -> NDArray[np.int64]:
        order = np.lexsort((self._digest[:, 1], self._digest[:, 0]))  # stable: the first of copies comes first
        order = order[self.size[order] > 0]
        new = np.ones(len(order), bool)
        new[1:] = (self._digest[order[1:]] != self._digest[order[:-1]]).any(1)
        return order[new]

    def _first_reason(self) -> str:
        return next((f"; the first: {place}: {reason}" for place, reason, _ in self.problems()), "")

    @property
    def chat(self) -> bool:
        return bool((np.concatenate([look.chat for look in self.looks]) & (self.fate >= 0)).any())

    def chosen(self, limit: int) -> list[NDArray[np.bool]]:
        """By unit, which rows are of the training split and, by hash, of a sample of about `limit` bytes of it."""
        train = self.fate == 0
        share = limit / int(self.size[train].sum())
        return self._by_unit(train & (self._digest[:, 1] / 2**64 < share))

    @cached_property
    def fates(self) -> list[NDArray[np.int8]]:
        """By unit."""
        return self._by_unit(self.fate)

    def _by_unit(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        return np.split(values, np.cumsum([len(look.size) for look in self.looks])[:-1])

    @cached_property
    def first(self) -> list[list[int]]:
        """Of each slice of each unit, the rows that its file has before it."""
        seen: Counter[tuple[int, str]] = Counter()
        out: list[list[int]] = []
        for unit, look in zip(self._units, self.looks, strict=True):
            out.append([])
            for piece, rows in zip(unit, look.rows, strict=True):
                out[-1].append(seen[piece.source, piece.name])
                seen[piece.source, piece.name] += rows
        return out

    def problems(self) -> Iterator[tuple[str, str, bool]]:
        """Place, reason and whether it is broken."""
        for unit, look, first in zip(self._units, self.looks, self.first, strict=True):
            for number, row, reason, broken in look.problems:
                yield self._place(unit[number], first[number] + row), reason, broken

    def copies(self) -> Iterator[str]:
        """Places of documents that an earlier one is the same as."""
        for unit, look, first, fate in zip(self._units, self.looks, self.first, self.fates, strict=True):
            ends = np.cumsum(look.rows)
            for row in np.flatnonzero((fate < 0) & (look.size > 0)).tolist():
                number = int(np.searchsorted(ends, row, side="right"))
                yield self._place(unit[number], first[number] + row - int(ends[number]) + look.rows[number])

    def _place(self, piece: Slice, row: int) -> str:
        """With the source's name where there are several."""
        place = piece.place(row)
        return place if len(self._sources) == 1 else f"{self._sources[piece.source].name}: {place}"

    def write_skipped(self, file: Path) -> dict[str, int]:
        """Everything left out with its place and reason, a line each; how many of each kind."""
        counts = dict.fromkeys(("broken", "empty", "copies"), 0)
        with file.open("w") as out:
            for place, reason, broken in self.problems():
                counts["broken" if broken else "empty"] += 1
                out.write(json.dumps({"place": place, "reason": reason, "broken": broken}) + "\n")
            for place in self.copies():
                counts["copies"] += 1
                known = {"place": place, "reason": "copy of an earlier document", "broken": False}
                out.write(json.dumps(known) + "\n")
        return counts
