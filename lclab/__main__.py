"""The command line: `lclab COMMAND`, one thin file per command."""

import sys

import typer

from lclab.commands import bench, data, demo, evaluate, export, launch, promote, report, space, sweep, train, ui
from search_space.errors import UsageError

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Architecture search for context compressors.")
app.command("demo")(demo.demo)
app.add_typer(data.app, name="data")
app.command("space")(space.space)
app.command("train")(train.train)
app.add_typer(sweep.app, name="sweep")
app.command("report")(report.report)
app.command("promote")(promote.promote)
app.command("launch")(launch.launch)
app.command("export")(export.export)
app.command("evaluate")(evaluate.evaluate)
app.command("ui")(ui.ui)
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Bad input is one line on standard error and exit code 2."""
    try:
        app()
    except UsageError as error:
        print(f"lclab: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
