"""A table as data: cells with what is shown, what is sorted by and where it leads, for HTML and Markdown alike."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import expm1

from analysis.words import DASH, MINUS, interval, large, number, p_value, percent, signed

__all__ = [
    *("LARGEST", "Cell", "Column", "Grid", "Line"),
    *("between", "change", "changes", "heading", "loss", "p", "share", "size", "verdict", "word"),
]

Key = float | int | str | None
LARGEST = 20.0  # log ratio, past any of losses; an interval may be as good as unbounded


@dataclass(frozen=True)
class Cell:
    """text: as shown. key: what a click on the header sorts by, None going last. below: a second, smaller line.

    style: CSS classes. title: shown on hovering. bar: a share of the cell's width to fill, 0 to 1.
    links: (text, address) after the text.
    """

    text: str
    key: Key = None
    below: str = ""
    style: str = ""
    title: str = ""
    bar: float | None = None
    links: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Column:
    name: str
    numeric: bool = True


@dataclass(frozen=True)
class Line:
    """A row; its first cell is its header. style: CSS classes."""

    cells: tuple[Cell, ...]
    style: str = ""


@dataclass(frozen=True)
class Grid:
    """name: of the section, used as an id. groups: (title, number of columns) in a row above the columns."""

    name: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    groups: tuple[tuple[str, int], ...] = field(default=())

    def only(self, names: Sequence[str]) -> "Grid":
        """Some of the columns, in the order given; those that there are not are left out."""
        have = [column.name for column in self.columns]
        chosen = [have.index(name) for name in names if name in have]
        lines = tuple(replace(line, cells=tuple(line.cells[i] for i in chosen)) for line in self.lines)
        return Grid(self.name, tuple(self.columns[i] for i in chosen), lines)


def heading(*names: str, words: Sequence[str] = ()) -> tuple[Column, ...]:
    """Columns, numeric but for the first and those in `words`."""
    return tuple(Column(name, numeric=i > 0 and name not in words) for i, name in enumerate(names))


def word(text: str, style: str = "", title: str = "") -> Cell:
    return Cell(text or DASH, text, style=style, title=title)


def verdict(text: str, title: str = "") -> Cell:
    """Coloured by what it says."""
    colour = {"supported": "better", "refuted": "worse"}.get(text, text)
    return Cell(text, text, style=f"verdict {colour}", title=title)


def loss(value: float | None, sign: bool = False) -> Cell:
    """Nats per token."""
    return Cell((signed if sign else number)(value), value)


def between(low: float | None, high: float | None) -> Cell:
    """A 95% interval in nats per token."""
    return Cell(interval(low, high), low)


def p(value: float | None) -> Cell:
    return Cell(p_value(value), value)


def size(value: float | None) -> Cell:
    return Cell(large(value), value)


def share(value: float | None, bar: bool = False) -> Cell:
    """As a percentage."""
    return Cell(percent(value), value, bar=value if bar else None)


def change(ratio: float | None) -> str:
    """A log ratio of losses as a change in percent, with its sign."""
    if ratio is None:
        return DASH
    part = 100 * expm1(min(ratio, LARGEST))
    digits = 0 if abs(part) >= 10 else 1 if abs(part) >= 1 else 2
    return f"{part:+,.{digits}f}%".replace("-", MINUS)


def changes(low: float | None, high: float | None) -> Cell:
    """A 95% interval of a log ratio, in percent."""
    return Cell(DASH if low is None or high is None else f"{change(low)} to {change(high)}", low)
