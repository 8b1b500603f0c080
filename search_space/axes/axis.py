"""What every axis of a design has: choices, a condition, a canonical form and its part of the name.

An axis that means nothing beside the others (the overlap where a window is one block) is `idle`: a search does not ask
for it, and the canonical form puts it at its neutral value, so that no two designs build the same computation.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

__all__ = ["Axis", "Choice", "Impossible", "Values", "Whole", "has_encoder", "has_windows"]

Values = Mapping[str, Any]
"""The axes decided so far, by name; those that are missing are at their defaults."""


class Impossible(Exception):
    """A value that cannot be: the rule that it breaks, and the nearest values that keep it."""

    def __init__(self, rule: str, *nearest: Any) -> None:
        super().__init__(rule)
        self.rule, self.nearest = rule, nearest


class Axis:
    """One axis. `asked` says in words when it means anything; `pattern` reads its part of a name."""

    name: str
    default: Any
    asked: str = "always"
    pattern: str

    def check(self, value: Any) -> None:
        """Raise `Impossible` for what can be no value of this axis, whatever the others are."""

    def fit(self, value: Any, beside: Values) -> None:
        """Raise `Impossible` for a value that the other axes rule out."""

    def idle(self, beside: Values) -> bool:
        """Whether the axis means nothing beside the others."""
        return False

    def canonical(self, value: Any, beside: Values) -> Any:
        """The value that stands for all those that build the same computation."""
        return self.default if self.idle(beside) else value

    def write(self, value: Any) -> str:
        """Its part of a design's name."""
        return f"-{value}"

    def read(self, text: str | None) -> Any:
        """The value of a part of a name, None where the name leaves it out."""
        return self.default if text is None else text


class Choice(Axis, ABC):
    """One of a few words."""

    @abstractmethod
    def choices(self) -> tuple[str, ...]:
        """The words, in order; read anew each time, since a registry behind them may have grown."""

    def check(self, value: Any) -> None:
        if value not in self.choices():
            near = get_close_matches(str(value), self.choices(), n=1, cutoff=0) or self.choices()[:1]
            raise Impossible(f"{value!r} is not one of {', '.join(self.choices())}", *near)


class Whole(Axis):
    """A whole number of at least `least`."""

    least: int

    def check(self, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < self.least:
            near = max(self.least, int(value)) if isinstance(value, int | float) and value < 1e9 else self.default
            raise Impossible(f"{value!r} is not a whole number of at least {self.least}", near)

    def read(self, text: str | None) -> Any:
        return self.default if text is None else int(text)


def has_encoder(beside: Values) -> bool:
    """Whether anything is compressed."""
    return beside.get("control", "none") in ("none", "encoderless")


def has_windows(beside: Values) -> bool:
    """Whether tokens meet before they are pooled."""
    return beside.get("control", "none") == "none"
