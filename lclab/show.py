"""Results on the terminal, with rich."""

import pandas as pd
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis import analyse
from analysis.words import METRIC_NAMES
from lclab.live import describe
from reports import text
from sweeps.status import Status

__all__ = ["show_analysis", "show_status"]

# Around the losses; the report has them all.
FIRST = ["design", "verdict", "seeds", "rung"]
LAST = ["difference", "95% interval", "time"]


def show_analysis(console: Console, frame: pd.DataFrame, learnt: str) -> None:
    """The table of designs, the statements, and the sentence."""
    analysis = analyse(frame)
    headers, rows = text.table(analysis)
    losses = dict.fromkeys([text.LOSSES[analysis.metric], text.LOSSES["reconstruct"], text.LOSSES["continue"]])
    shown = [headers.index(name) for name in [*FIRST, *[*losses][:2], *LAST]]
    by = METRIC_NAMES[analysis.metric]
    title = f"Designs, best first by {by} loss (held-out losses in nats per token)"
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for i in shown:
        is_name = headers[i] == "design"  # the one column that may break where the terminal is narrow
        table.add_column(headers[i], justify="left" if i < 2 else "right", no_wrap=not is_name, overflow="fold")
    for row in rows:
        table.add_row(*(escape(row[i]) for i in shown))
    console.print(table)
    for statement in analysis.statements:
        console.print(f"• {escape(statement)}", highlight=False, soft_wrap=not console.is_terminal)
    console.print(f"\n[bold]Learnt:[/] {escape(learnt)}", highlight=False, soft_wrap=not console.is_terminal)


def show_status(console: Console, status: Status) -> None:
    """State of the sweep, then one line per trial."""
    by = f"run by process {status.driver}" if status.driver else "not running"
    console.print(f"[bold]{status.sweep}[/], {by}: {describe(status.snapshot)}", highlight=False)
    table = Table("trial", "design", "seed", "role", "state", "rung", f"{METRIC_NAMES[status.metric]} loss")
    for t in status.trials:
        value = "" if t.heldout is None else f"{t.heldout:.3f}"
        rung = f"{t.rung}/{status.rungs}"
        table.add_row(str(t.number), t.design, str(t.seed), t.role, escape(t.reason or t.state), rung, value)
    console.print(table)
