"""The report for a pull request: verdict, statements, and the tables that decide."""

from collections.abc import Sequence

from analysis import Analysis
from reports import designs, findings
from reports.grid import Cell, Grid
from reports.ladder import Section

__all__ = ["markdown", "table"]

MOST = 40  # rows of a table; the page has them all
DESIGNS = (
    *("design", "verdict", "seeds", "rung", *designs.LOSSES.values(), "difference", "95% interval", "p (Holm)"),
    *("seeds needed", "parameters", "prefill FLOPs/token"),
)


def markdown(analysis: Analysis, name: str = "", promotion: Section | None = None) -> str:
    """Of the sweep `name`, with its promotion if there is one; what cannot be said comes last."""
    losses = "Held-out losses in nats per token, geometric means over seeds."
    average = "Changes of the loss in percent, averaged over the other axes."
    worth = "Worth: nats per token by which the final choice is expected to improve."
    sections = (
        ("Designs", losses, designs.designs(analysis).only(DESIGNS)),
        ("Effects of the axes", average, findings.axes(analysis.axes)),
        ("Published claims", "", findings.claims(analysis.claims)),
        ("What to run next", worth, findings.following(analysis.following)),
    )
    parts = [f"## Sweep {_escaped(name)}"] if name else []
    parts += [f"**{_escaped(analysis.learnt)}**", "\n".join(f"- {_escaped(said)}" for said in analysis.statements)]
    parts += _promotion(promotion) if promotion else []
    for title, note, grid in sections:
        if grid.lines:
            parts += [f"### {title}", note, table(grid)]
    if analysis.unsaid:
        parts += ["### What cannot be said", "\n".join(f"- {_escaped(reason)}." for reason in analysis.unsaid)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _promotion(found: Section) -> list[str]:
    parts = []
    if found.headline:
        facts = [f"{name}: {value}" for name, value in found.facts]
        parts += ["### Promotion", f"**{_escaped(found.headline)}**"]
        parts += [_bullets("Against it: ", found.reasons, "."), _bullets("", found.notes, "."), _bullets("", facts)]
    if found.said:
        parts += ["### The ladder to the target", _bullets("", found.said)]
        parts += [table(grid) for grid in reversed(found.grids.values())]
    return parts


def _bullets(start: str, texts: Sequence[str], end: str = "") -> str:
    return "\n".join(f"- {start}{_escaped(text)}{end}" for text in texts)


def table(grid: Grid) -> str:
    """A table, cut after `MOST` rows with a line that says so."""
    head = [column.name for column in grid.columns]
    rule = ["---:" if column.numeric else "---" for column in grid.columns]
    rows = [[_cell(cell) for cell in line.cells] for line in grid.lines[:MOST]]
    body = "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])
    more = len(grid.lines) - MOST
    return f"{body}\n\n{more:,} more in report.html." if more > 0 else body


def _cell(cell: Cell) -> str:
    return _escaped(f"{cell.text} ({cell.below})" if cell.below else cell.text)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ").replace("_", "\\_")
