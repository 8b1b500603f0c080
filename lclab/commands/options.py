"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["AsJson", "HomePath", "Overrides", "Preset", "at"]

HomePath = Annotated[Path, typer.Option("--home", help="Where sweeps are kept.", envvar="LCLAB_HOME")]
Preset = Annotated[str, typer.Argument(help="A preset, such as demo, or a YAML file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable results.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as space.window=[64,256] seeds=3.")
]


def at(home: Path) -> str:
    """How a command that is printed says where sweeps are kept."""
    return "" if home == Path("runs") else f" --home {home}"
