"""`lclab report`: what a sweep says so far."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lclab.commands.options import AsJson, HomePath
from lclab.console import make_console
from sweeps.home import Home

__all__ = ["report"]


def report(
    name: Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep that was run before.")],
    home: HomePath = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Analyse a sweep, finished or not, and write its report.html and report.md."""
    folder = Home(home).existing(name)
    from lclab.reporting import make_report
    from lclab.show import show_analysis
    from sweeps.tables import refresh_tables

    refresh_tables(Home(home), name)
    analysis, _ = make_report(folder)
    if as_json:
        print(json.dumps({"sweep": name, "learnt": analysis.learnt, "report": str(folder.report)}))
        return
    console = make_console()
    show_analysis(console, analysis)
    console.print(f"\nReport  {folder.report}", soft_wrap=True)
