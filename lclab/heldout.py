"""Held-out losses on the terminal."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from trainer.trial import Heldout

__all__ = ["show_heldout"]


def show_heldout(console: Console, heldout: "Heldout", title: str) -> None:
    """By task, and by the distance from the span that was compressed."""
    table = Table("held out", title=title, title_justify="left")
    distances = sorted({first for losses in heldout.distance.values() for first, _ in losses})
    for header in ("loss", "accuracy", *(f"from {first}" for first in distances)):
        table.add_column(header, justify="right")
    for task, loss in heldout.loss.items():
        far = dict(heldout.distance[task])
        cells = (f"{far[first]:.3f}" if first in far else "" for first in distances)
        table.add_row(task, f"{loss:.3f}", f"{heldout.accuracy[task]:.3f}", *cells)
    console.print(table)
    console.print("Losses in nats per token; `from 16`: of tokens from the 16th behind the span to the next column.")
