"""What a report says of where its numbers come from."""

import json
from pathlib import Path

from lclab.reporting import make_report
from sweeps.home import Home, SweepFolder
from tests.analysis.synthetic import sweep, write

CONFIG = "name: nightly\nstudy_url: postgresql://lab:s3cret@db/study\ntracking_url: http://lab:s3cret@mlflow:5000\n"


def folder_of(home: Path) -> SweepFolder:
    frame = sweep()
    frame["mlflow_run"] = "0123"
    folder = Home(home).sweep("nightly")
    write(folder.path, frame)
    folder.config.write_text(CONFIG)
    folder.corpus.write_text("novels-1234")
    return folder


def test_a_report_says_how_to_have_it_again(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    manifest = tmp_path / "corpora" / "novels-1234" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"hash": "f00d" * 16}))
    analysis, (*pages, _) = make_report(folder)
    assert pages == [tmp_path / "nightly" / "report.html", tmp_path / "nightly" / "report.md"]
    assert analysis.learnt in pages[1].read_text().replace("\\", "")
    text = pages[0].read_text()
    assert f"lclab sweep run {folder.config} --home {tmp_path}" in text
    assert f"novels-1234, SHA-256 {'f00d' * 16}" in text
    manifest.unlink()
    assert "<dd>novels-1234</dd>" in make_report(folder)[1][0].read_text()


def test_no_password_gets_into_a_report(tmp_path: Path) -> None:
    analysis, files = make_report(folder_of(tmp_path))
    text = "".join(path.read_text() for path in files if path.suffix != ".parquet")
    assert analysis.learnt and files[-1].name == "trials.parquet"
    assert "s3cret" not in text and "postgresql://lab:***@db/study" in text
    assert 'href="http://lab:***@mlflow:5000/#/runs/0123"' in text
