"""The tidy table of a sweep: what it selects on, and losses by distance, on virtual trials."""

from pathlib import Path

import numpy as np
import pytest

from analysis import analyse, table
from lclab.console import make_console
from lclab.reporting import make_report
from lclab.show import show_analysis, show_status
from sweeps.config import dump
from sweeps.home import Home
from sweeps.status import read_status
from sweeps.tables import refresh_tables
from tests.sweeps.virtual import Chance, config, job_for, result_of, run


@pytest.fixture(params=["parallel", "continue"])
def sweep(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Home]:
    """A finished sweep of made-up losses, as it lies on the disk."""
    chosen, home = config(f"metric={request.param}", "pruner=none"), Home(tmp_path)
    folder = home.sweep(chosen.name)
    folder.path.mkdir()
    folder.config.write_text(dump(chosen))
    ledger = run(chosen, home.study_url, Chance(0))
    for assignment in (ledger._assignment(trial.number) for trial in ledger.trials()):
        folder.trial(assignment.number).mkdir(parents=True)
        for rung in (1, 2):
            job = job_for(chosen, assignment)
            result_of(type(job)(job.number, rung, job.spec, job.folder)).save(folder.trial(assignment.number))
    return request.param, home


def test_every_reader_uses_the_metric_of_the_sweep(
    sweep: tuple[str, Home], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metric, home = sweep
    frame, status = refresh_tables(home, "mini"), read_status(home, "mini")
    assert set(frame["metric"]) == {metric}
    analysis = analyse(frame)
    assert analysis.metric == status.metric == metric
    done = frame[frame["rung"] == 2].set_index("trial")[metric]
    assert {t.number: t.heldout for t in status.trials} == done.to_dict()
    compressors = frame[(frame["rung"] == 2) & (frame["role"] != "control")].set_index("trial")
    best = compressors["design"][compressors[metric].idxmin()]
    assert status.snapshot.best == (best, compressors[metric].min())
    found, _ = make_report(home.sweep("mini"))
    assert found == analysis
    name = {"parallel": "parallel reconstruction", "continue": "next-token"}[metric]
    assert f"judged by {name} loss" in home.sweep("mini").report.read_text()
    monkeypatch.setenv("COLUMNS", "200")
    show_analysis(make_console(), analysis)
    show_status(make_console(), status)
    shown = capsys.readouterr().out
    assert f"best first by {name} loss" in shown and ("next token" in shown) == (metric == "continue")
    assert f"{name} loss" in shown.split("Learnt")[1]


def test_distances_are_lists_in_the_order_of_the_edges(sweep: tuple[str, Home]) -> None:
    frame = refresh_tables(sweep[1], "mini")
    again = table.load(sweep[1].sweep("mini").table)
    for row in again.to_dict("records"):
        for metric in table.METRICS:
            near, *far = row[f"{metric}_distance"]
            assert near == row[metric] and len(far) == len(table.DISTANCES) - 1 and np.isnan(far).all()
    assert len(again) == len(frame) == 20
