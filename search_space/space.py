"""A space: the choices of each axis, and the designs they span; or a list of designs.

An axis is asked for only where it means something and leaves a choice, with the choices that fit the ones already made,
so that a search spends no trial on twins or on what cannot be built.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any

from search_space import axes
from search_space.axes.axis import Axis, Impossible, Values
from search_space.design import Design
from search_space.errors import UsageError

__all__ = ["Pick", "Space"]

Pick = Callable[[str, list[Any]], Any]
"""Called with (question, choices), returns one of the choices; Optuna's `suggest_categorical` is one.

A question is an axis, followed by the ratio where that narrows the choices: Optuna wants the same question to have the
same choices always.
"""

_AXES = [axis for axis in axes.AXES if axis.name != "control"]


@dataclass(frozen=True)
class Space:
    """Choices per axis (see `Design`). designs: names; where there are any, the space is these and no axis is asked."""

    pooling: list[str] = field(default_factory=lambda: ["mean"])
    ratio: list[int] = field(default_factory=lambda: [16])
    window: list[int] = field(default_factory=lambda: [1024])
    overlap: list[int] = field(default_factory=lambda: [0])
    mask: list[str] = field(default_factory=lambda: ["causal"])
    adapter: list[str] = field(default_factory=lambda: ["mlp"])
    depth: list[int] = field(default_factory=lambda: [1])
    encoder: list[str] = field(default_factory=lambda: ["base"])
    decoder: list[str] = field(default_factory=lambda: ["base"])
    embeddings: list[str] = field(default_factory=lambda: ["base"])
    positions: list[str] = field(default_factory=lambda: ["base"])
    designs: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise `UsageError` for a choice that is repeated, cannot be, or fits no choice of the other axes."""
        for name, choices in {**self.axes(), "designs": self.designs}.items():
            if not choices and name != "designs":
                raise UsageError(f"space.{name}: no choices")
            if len(set(choices)) < len(choices):
                raise UsageError(f"space.{name}: {choices} repeats a choice")
        try:
            for name in self.designs:
                if Design.parse(name).control != "none":
                    raise UsageError(f"designs: {name} is a control; list it in controls=")
        except UsageError as error:
            raise UsageError(f"space.{error}") from error
        for axis in _AXES:
            for value in self.axes()[axis.name]:
                try:
                    axis.check(value)
                except Impossible as broken:
                    nearest = " or ".join(map(str, broken.nearest))
                    raise UsageError(f"space.{axis.name}: {broken.rule}; nearest possible: {nearest}") from None
        self._check_pairs()

    def _check_pairs(self) -> None:
        """Every window fits some ratio, and every ratio some window."""
        fits = {(n, w): _fits(axes.window.AXIS, w, {"ratio": n}) for n in self.ratio for w in self.window}
        for w in self.window:
            if not any(fits[n, w] for n in self.ratio):
                nearest = sorted({max(n, w // n * n) for n in self.ratio} | {-(-w // n) * n for n in self.ratio})
                raise UsageError(
                    f"space.window: {w} is not a multiple of ratio {' or '.join(map(str, self.ratio))}; nearest "
                    f"possible: {' or '.join(map(str, nearest))}"
                )
        for n in self.ratio:
            if not any(fits[n, w] for w in self.window):
                windows = ", ".join(map(str, self.window))
                raise UsageError(f"space.ratio: no window of {windows} is a multiple of {n}; nearest: a window of {n}")

    def axes(self) -> dict[str, list[Any]]:
        """Axis to choices."""
        return {f.name: list(getattr(self, f.name)) for f in fields(self) if f.name != "designs"}

    def choose(self, pick: Pick) -> Design:
        """The design that `pick` chooses, question by question."""
        if self.designs:
            return Design.parse(pick("design", list(self.designs)))
        chosen: dict[str, Any] = {}
        for axis in _AXES:
            if axis.idle(chosen):
                continue
            choices = self.axes()[axis.name]
            fitting = [value for value in choices if _fits(axis, value, chosen)]
            if len(fitting) == 1:
                chosen[axis.name] = fitting[0]
                continue
            narrowed = len(fitting) < len(choices)
            chosen[axis.name] = pick(f"{axis.name} at ratio {chosen['ratio']}" if narrowed else axis.name, fitting)
        return Design(**chosen)

    def answers(self, design: Design) -> dict[str, Any]:
        """What choosing `design` asks, and the answers."""
        asked: dict[str, Any] = {}

        def answer(question: str, choices: list[Any]) -> Any:
            return asked.setdefault(question, getattr(design, "name" if self.designs else question.split()[0]))

        self.choose(answer)
        return asked

    def members(self) -> Iterator[Design]:
        """Every design of the space once, in the order of the choices."""
        if self.designs:
            yield from map(Design.parse, self.designs)
            return
        seen: set[Design] = set()
        choices = self.axes()
        for values in product(*choices.values()):
            axes_of = dict(zip(choices, values, strict=True))
            if _possible(axes_of):
                design = Design(**axes_of)
                if design not in seen:
                    seen.add(design)
                    yield design

    def without(self, design: Design) -> str | None:
        """Why `design` is outside the space, in words; None where it is inside."""
        if self.designs:
            return None if design.name in self.designs else "it is not in space.designs"
        for axis in _AXES:
            value, choices = getattr(design, axis.name), self.axes()[axis.name]
            if value not in choices and not axis.idle(vars(design)):
                return f"{axis.name} {value} is not one of {', '.join(map(str, choices))}"
        return None

    def neighbours(self, design: Design) -> list[Design]:
        """The designs that differ from `design` in one choice of one axis, its ablations; of a list, all others."""
        if self.designs:
            return [other for other in self.members() if other != design]
        found = [
            design.but(**{axis.name: value})
            for axis in _AXES
            for value in self.axes()[axis.name]
            if _possible({**vars(design), axis.name: value})
        ]
        return list(dict.fromkeys(d for d in found if d != design))


def _fits(axis: Axis, value: Any, beside: Values) -> bool:
    try:
        axis.fit(value, beside)
    except Impossible:
        return False
    return True


def _possible(values: Values) -> bool:
    return all(_fits(axis, values[axis.name], values) for axis in _AXES)
