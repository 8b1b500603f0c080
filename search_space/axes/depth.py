"""Depth: transformer layers of an adapter that has attention (paper section 1; published only at 1)."""

from typing import Any

from search_space.axes.adapter import ADAPTERS
from search_space.axes.axis import Values, Whole, has_encoder

__all__ = ["AXIS"]


class Depth(Whole):
    name, default, least = "depth", 0, 0
    asked = "with an attention adapter"
    pattern = r"(?:-l(?P<depth>\d+))?"

    def idle(self, beside: Values) -> bool:
        return not has_encoder(beside) or not ADAPTERS[beside["adapter"]].attention

    def canonical(self, value: int, beside: Values) -> int:
        return 0 if self.idle(beside) else max(1, value)

    def write(self, value: Any) -> str:
        return f"-l{value}" if value > 1 else ""


AXIS = Depth()
