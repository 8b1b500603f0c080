"""Results on the terminal, with rich."""

from collections import Counter

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis import Analysis
from analysis.gate import Decision
from analysis.ladder import Ladder
from analysis.words import METRIC_NAMES, count, joined, number
from lclab.live import describe
from reports.designs import LOSSES, designs
from reports.findings import UNTESTED
from reports.ladder import ladder_section
from sweeps.status import Status

__all__ = ["show_analysis", "show_ladder", "show_status"]

# Around the losses; the report has them all.
FIRST = ["design", "verdict", "seeds", "rung"]
LAST = ["difference", "95% interval", "time"]
MOST = 20  # designs; the report has them all


def show_analysis(console: Console, analysis: Analysis) -> None:
    """The table of designs, the statements, what to run next, and the sentence."""
    losses = dict.fromkeys([LOSSES[analysis.metric], LOSSES["reconstruct"], LOSSES["continue"]])
    grid = designs(analysis).only([*FIRST, *[*losses][:2], *LAST])
    by = METRIC_NAMES[analysis.metric]
    title = f"Designs, best first by {by} loss (held-out losses in nats per token)"
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for i, column in enumerate(grid.columns):
        is_name = i == 0  # the one column that may break where the terminal is narrow
        table.add_column(column.name, justify="left" if i < 2 else "right", no_wrap=not is_name, overflow="fold")
    shown = [line for i, line in enumerate(grid.lines) if i < MOST or line.style != "arm"]
    for line in shown:
        table.add_row(*(escape(cell.text) for cell in line.cells))
    console.print(table)
    if hidden := len(grid.lines) - len(shown):
        console.print(f"{count(hidden, 'more design')} in the report.\n")
    for statement in [*analysis.statements, *_answers(analysis), *_next(analysis)]:
        console.print(f"• {escape(statement)}", highlight=False, soft_wrap=not console.is_terminal)
    console.print(f"\n[bold]Learnt:[/] {escape(analysis.learnt)}", highlight=False, soft_wrap=not console.is_terminal)


def _answers(analysis: Analysis) -> list[str]:
    """What became of the published claims, by the loss that the sweep selects on."""
    own = [answer for answer in analysis.claims if answer.metric == analysis.metric and answer.answer != UNTESTED]
    counts = Counter(answer.answer for answer in own)
    return [f"Of the published claims {joined([f'{n} {answer}' for answer, n in counts.items()])}."] if counts else []


def _next(analysis: Analysis) -> list[str]:
    return [
        f"What to run next: one more seed of {following.design}, worth {number(following.worth)} nats per token."
        for following in analysis.following[:1]
    ]


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


def show_ladder(console: Console, ladder: Ladder | None, trouble: str, decision: Decision | None = None) -> None:
    """Its tables and sentences, or why there is none."""
    section = ladder_section(ladder, decision)
    if section is None or ladder is None:
        console.print(f"No ladder: {escape(trouble)}.", soft_wrap=True)
        return
    for grid in section.grids.values():
        table = Table(title=grid.name, title_justify="left", box=SIMPLE)
        for i, column in enumerate(grid.columns):
            table.add_column(column.name, justify="left" if i < 1 else "right", overflow="fold")
        for line in grid.lines:
            table.add_row(*(escape(cell.text) for cell in line.cells))
        console.print(table)
    for sentence in section.said:
        console.print(f"• {escape(sentence)}", highlight=False, soft_wrap=not console.is_terminal)
