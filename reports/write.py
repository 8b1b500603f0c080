"""A sweep's folder gets its report: `report.html`, and `report.md` for pull requests."""

from pathlib import Path

from analysis import Analysis, analyse
from analysis.gate import Decision
from analysis.ladder import Ladder
from analysis.table import CURVES, load, to_frame
from reports.about import About
from reports.html import render
from reports.ladder import ladder_section
from reports.markdown import markdown
from search_space.errors import UsageError
from search_space.files import write_text

__all__ = ["write"]


def write(
    folder: Path,
    about: About | None = None,
    ladder: Ladder | None = None,
    decision: Decision | None = None,
    trouble: str = "",
) -> tuple[Analysis, list[Path]]:
    """Analyse the sweep in `folder` and write both files, each whole or not at all; the curves may be missing.

    ladder, decision: of its promotion, where there is one. trouble: why there is no ladder, where one was begun.

    Raises `UsageError` if `trials.parquet` is missing or unreadable.
    """
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such sweep folder")
    trials = load(folder / "trials.parquet")
    curves = folder / "curves.parquet"
    points = load(curves, CURVES) if curves.exists() else to_frame([], CURVES)
    about = about or About(folder.name, command=f"lclab sweep run {folder.name}")
    analysis = analyse(trials)
    promotion = ladder_section(ladder, decision, trouble)
    pages = {
        "report.html": render(analysis, trials, points, about, promotion),
        "report.md": markdown(analysis, about.name, promotion),
    }
    for name, text in pages.items():
        write_text(folder / name, text)
    return analysis, [folder / name for name in pages]
