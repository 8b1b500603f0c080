"""From a sweep's folder to its report: what every command that ends with one calls."""

import json
import shlex
import subprocess
from pathlib import Path

from analysis import Analysis
from analysis.gate import Decision
from analysis.ladder import Ladder
from reports.about import About
from reports.write import write
from search_space.errors import UsageError
from sweeps.home import Home, SweepFolder, hide

__all__ = ["make_report", "read_ladder"]

ROOT = Path(__file__).parents[1]


def make_report(folder: SweepFolder) -> tuple[Analysis, list[Path]]:
    """Write `report.html` and `report.md`; returns the analysis that they show, and the files worth keeping."""
    ladder, trouble, decision = read_ladder(folder)
    analysis, pages = write(folder.path, _about(folder), ladder, decision, trouble)
    return analysis, [*pages, folder.table]


def read_ladder(folder: SweepFolder) -> tuple[Ladder | None, str, Decision | None]:
    """The ladder of a sweep as seen from the run that was decided on, else from the published one; why there is none;
    and the decision."""
    if not (folder.path / "ladder.json").exists() and not (folder.path / "promotion").exists():
        return None, "", None
    from sweeps.promote import default_target, ladder_of, read_decision

    home = Home(folder.path.parent).saved(folder.path.name)
    decided = read_decision(folder)
    try:
        target = decided[1] if decided else default_target(home, folder.path.name)
    except UsageError as error:  # of a baseline that cannot be as large; a promotion would say what is wanted
        return None, f"the published run, which it is to reach, cannot be that of the baseline: {error}", None
    ladder, trouble = ladder_of(home, folder.path.name, target)
    return ladder, trouble, decided[0] if decided else None


def _about(folder: SweepFolder) -> About:
    """What is known of where the numbers come from; passwords of URLs are left out."""
    saved = folder.config.read_text(encoding="utf-8") if folder.config.exists() else ""
    home = folder.path.parent
    server = Home(home).saved(folder.path.name).tracking if saved else ""
    command = ["lclab", "sweep", "run", str(folder.config if saved else folder.path.name)]
    return About(
        name=folder.path.name,
        config=hide(saved),
        command=shlex.join([*command, *([] if home == Path("runs") else ["--home", str(home)])]),
        facts=[(what, value) for what, value in (("code", _commit()), ("corpus", _corpus(folder))) if value],
        experiment=folder.runs()[0],
        **({"server": hide(server)} if server.startswith("http") else {}),
    )


def _commit() -> str:
    """Of the code that writes the report; empty where that is no checkout."""
    if not (ROOT / ".git").exists():
        return ""
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return "commit " + subprocess.run(describe, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _corpus(folder: SweepFolder) -> str:
    """Its name, and the hash of its documents where it is still there."""
    if not folder.corpus.exists():
        return ""
    name = folder.corpus.read_text(encoding="utf-8")
    manifest = Home(folder.path.parent).corpora / name / "manifest.json"
    return f"{name}, SHA-256 {json.loads(manifest.read_text())['hash']}" if manifest.is_file() else name
