"""Window W: tokens encoded together, apart from those of other windows; a multiple of N (paper section 1)."""

from typing import Any

from search_space.axes import ratio
from search_space.axes.axis import Impossible, Values, Whole, has_encoder, has_windows

__all__ = ["AXIS"]


class Window(Whole):
    name, default, least = "window", 1024, 1
    asked = "where tokens meet before they are pooled"
    pattern = r"-w(?P<window>\d+)"

    def fit(self, value: int, beside: Values) -> None:
        n = beside["ratio"]
        if value % n:
            below = value // n * n
            nearest = (below, below + n) if below else (n,)
            raise Impossible(f"{value} is not a multiple of ratio {n}", *nearest)

    def idle(self, beside: Values) -> bool:
        return not has_windows(beside)

    def canonical(self, value: int, beside: Values) -> int:
        if not self.idle(beside):
            return value
        return beside.get("ratio", ratio.PUBLISHED) if has_encoder(beside) else self.default

    def write(self, value: Any) -> str:
        return f"-w{value}"


AXIS = Window()
