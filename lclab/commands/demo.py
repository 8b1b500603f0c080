"""`lclab demo`: the first sweep, from nothing to a report."""

from pathlib import Path

from lclab.commands.options import HomePath, Overrides
from lclab.commands.sweep import run

__all__ = ["demo"]


def demo(overrides: Overrides = None, home: HomePath = Path("runs")) -> None:
    """Build a corpus, run a small sweep, print what was learnt and where to look. Same as `lclab sweep run demo`."""
    run("demo", overrides, home)
