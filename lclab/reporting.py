"""From a sweep's folder to its report: what every command that ends with one calls."""

from pathlib import Path

from analysis import analyse, table
from reports import html
from sweeps.home import SweepFolder

__all__ = ["make_report"]


def make_report(folder: SweepFolder) -> tuple[str, list[Path]]:
    """Write `report.html`; returns what was learnt in one sentence, and the files worth keeping."""
    learnt = analyse(table.load(folder.table)).learnt
    return learnt, [html.write(folder.path), folder.table]
