"""Axes that a sweep's `size` decides for all designs, unless a design says otherwise.

Their default is `base`: what the size says. So a design is the same arm at every size it is trained at, and only a
sweep that varies one of these axes has it in its names.
"""

from typing import Any

from search_space.axes.axis import Axis

__all__ = ["BASE", "OfSize"]

BASE = "base"


class OfSize(Axis):
    """`base`, or something else than the sweep's size says."""

    default = BASE

    def write(self, value: Any) -> str:
        return "" if value == BASE else f"-{value}"
