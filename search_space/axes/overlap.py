"""Overlap O: neighbouring tokens encoded with a window and discarded afterwards (paper section 1).

Left and right of the window for a bidirectional mask, left only for a causal one; never beyond the span. Where a window
is one block the field does not use it.
"""

from typing import Any

from search_space.axes.axis import Values, Whole, has_windows

__all__ = ["AXIS"]


class Overlap(Whole):
    name, default, least = "overlap", 0, 0
    asked = "where the window is wider than the ratio"
    pattern = r"-O(?P<overlap>\d+)"

    def idle(self, beside: Values) -> bool:
        return not has_windows(beside) or beside["window"] == beside["ratio"]

    def write(self, value: Any) -> str:
        return f"-O{value}"


AXIS = Overlap()
