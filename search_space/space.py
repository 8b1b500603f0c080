"""A space: the choices of each axis, and the designs they span.

Conditional axes are asked for only where they mean something, so that a search does not spend trials on twins.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any

from search_space.axes.adapter import ADAPTERS
from search_space.design import Design
from search_space.errors import UsageError

__all__ = ["Pick", "Space"]

Pick = Callable[[str, list[Any]], Any]
"""Called with (axis, choices), returns one of the choices; Optuna's `suggest_categorical` is one."""


@dataclass(frozen=True)
class Space:
    """Choices per axis (see `Design`)."""

    pooling: list[str] = field(default_factory=lambda: ["mean"])
    ratio: list[int] = field(default_factory=lambda: [16])
    window: list[int] = field(default_factory=lambda: [1024])
    overlap: list[int] = field(default_factory=lambda: [0])
    mask: list[str] = field(default_factory=lambda: ["causal"])
    adapter: list[str] = field(default_factory=lambda: ["mlp"])
    depth: list[int] = field(default_factory=lambda: [1])

    def check(self) -> None:
        """Raise `UsageError` for an axis without choices, with a repeated choice or with one that cannot be built."""
        for axis, choices in self.axes().items():
            if not choices:
                raise UsageError(f"space.{axis}: no choices")
            if len(set(choices)) < len(choices):
                raise UsageError(f"space.{axis}: {choices} repeats a choice")
        try:
            for _ in self.designs():
                pass
        except UsageError as error:
            raise UsageError(f"space.{error}") from error

    def axes(self) -> dict[str, list[Any]]:
        return {f.name: list(getattr(self, f.name)) for f in fields(self)}

    def choose(self, pick: Pick) -> Design:
        """The design that `pick` chooses, axis by axis."""
        axes = self.axes()
        chosen = {axis: pick(axis, axes[axis]) for axis in ("pooling", "ratio", "window", "mask", "adapter")}
        if chosen["window"] > chosen["ratio"]:
            chosen["overlap"] = pick("overlap", axes["overlap"])
        if ADAPTERS[chosen["adapter"]].attention:
            chosen["depth"] = pick("depth", axes["depth"])
        return Design(**chosen)

    def designs(self) -> Iterator[Design]:
        """Every design of the space once, in the order of the choices."""
        axes = self.axes()
        seen: set[Design] = set()
        for values in product(*axes.values()):
            design = Design(**dict(zip(axes, values, strict=True)))
            if design not in seen:
                seen.add(design)
                yield design

    def without(self, design: Design) -> str | None:
        """Why `design` is outside the space, in words; None where it is inside."""
        for axis, choices in self.axes().items():
            value = getattr(design, axis)
            idle = {"overlap": design.window == design.ratio, "depth": not ADAPTERS[design.adapter].attention}
            if value not in choices and not idle.get(axis):
                return f"{axis} {value} is not one of {', '.join(map(str, choices))}"
        return None

    def neighbours(self, design: Design) -> list[Design]:
        """The designs that differ from `design` in one choice of one axis: its ablations."""
        found = [design.but(**{axis: value}) for axis, choices in self.axes().items() for value in choices]
        return list(dict.fromkeys(d for d in found if d != design))
