"""`lclab sweep run|status|stop`: start or continue a sweep, look at it, end it.

Here as in every command, what takes seconds to import is imported where it is used, so that `--help` and a mistyped
option answer at once.
"""

import json
import os
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from lclab.commands.options import AsJson, HomePath, Overrides, Preset
from lclab.console import make_console
from search_space.errors import UsageError
from sweeps.home import Home

__all__ = ["app", "run"]

app = typer.Typer(no_args_is_help=True, help="Run, watch and stop sweeps.")
Name = Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep that was run before.")]


@app.command("run")
def run(
    preset: Preset,
    overrides: Overrides = None,
    home: HomePath = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Run a sweep, or continue it: the same command goes on from whatever exists."""
    from sweeps.config import load

    config = load(preset, overrides or [])
    from lclab.live import Live  # after the configuration is known to be good: these take seconds
    from lclab.reporting import make_report
    from lclab.show import show_analysis
    from sweeps.run import run_sweep

    console = make_console(stderr=as_json)
    again = escape(f"lclab sweep run {preset}" + "".join(f" '{o}'" for o in overrides or []) + _home(home))
    try:
        with Live(console, config) as live:
            outcome = run_sweep(config, Home(home), make_report, live.say, live.watch)
    except KeyboardInterrupt:  # before or after training, or the second Ctrl-C: what is written is whole
        console.print(f"\nStopped. Continue with: [bold]{again}[/]", soft_wrap=True)
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps({"sweep": config.name, "stopped": outcome.stopped, "learnt": outcome.note}))
    else:
        show_analysis(console, outcome.frame, outcome.note)
        console.print(f"\nReport  {outcome.folder.report}\nMLflow  lclab ui{_home(home)}", soft_wrap=True)
    if outcome.stopped:
        console.print(f"\nStopped; nothing is lost. Continue with: [bold]{again}[/]", soft_wrap=True)
        raise typer.Exit(130)


@app.command("status")
def status(name: Name, home: HomePath = Path("runs"), as_json: AsJson = False) -> None:
    """Where a sweep stands, also while another terminal runs it."""
    from lclab.show import show_status
    from sweeps.status import read_status

    found = read_status(Home(home), name)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        show_status(make_console(), found)


@app.command("stop")
def stop(name: Name, home: HomePath = Path("runs")) -> None:
    """Ask the driver of a sweep to stop cleanly, as Ctrl-C in its own terminal would."""
    driver = Home(home).existing(name).driver()
    if driver is None:
        raise UsageError(f"sweep: {name!r} is not running")
    os.kill(driver, signal.SIGTERM)
    print(f"Asked process {driver} to stop; running trials write a checkpoint first.")


def _home(home: Path) -> str:
    return "" if home == Path("runs") else f" --home {home}"
