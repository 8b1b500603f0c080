"""`lclab ui` for real: what it serves, and the links that it prints, which lead to trials and to plans."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sweeps.home import Home
from sweeps.plan_view import PlanView
from tests.processes import answer, free_port, wait_for
from tests.sweeps.promotable import SWEEP, home_of, made_up_sweep
from tests.trainer.staged import plan
from trainer.corpus import Corpus
from trainer.plan import dump

pytestmark = pytest.mark.slow


def with_a_plan(home: Home, corpus: Corpus) -> str:
    """As `lclab train PLAN` leaves it; the id of its experiment."""
    wanted, folder = plan(corpus.folder), home.path / "plans" / "staged"
    folder.mkdir(parents=True)
    (folder / "plan.yaml").write_text(dump(wanted))
    view = PlanView(wanted, folder, home, corpus, 1e6)
    view.update()
    view.close("SCHEDULED")
    experiment = view.client.get_experiment_by_name("staged")
    assert experiment is not None
    return experiment.experiment_id


@contextmanager
def ui(home: Path, port: int) -> Generator[str]:
    """What it has printed by the time that it serves; ended as by Ctrl-C."""
    command = [sys.executable, "-m", "lclab", "ui", "--home", str(home), "--port", str(port)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert child.stdout is not None
    said = ""
    while "Ctrl-C" not in said:
        line = child.stdout.readline()
        assert line, f"it ended after {said!r}"
        said += line
    try:
        wait_for(lambda: answer(f"http://127.0.0.1:{port}/health") == "OK", child)
        yield said
    finally:
        os.kill(child.pid, signal.SIGTERM)
        assert child.wait(timeout=60) == 0


def test_a_home_with_plans_alone_is_shown(corpus: Corpus, tmp_path: Path) -> None:
    experiment, port = with_a_plan(Home(tmp_path), corpus), free_port()
    with ui(tmp_path, port) as said:
        page = f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs?workflowType=machine_learning"
        assert re.search(rf"^  staged +{re.escape(page)}$", said, re.MULTILINE)
        assert "optuna" not in said and "Ctrl-C stops it." in said
        assert not answer(f"http://127.0.0.1:{port + 1}")


def test_sweeps_and_plans_are_linked_side_by_side(corpus: Corpus, tmp_path: Path) -> None:
    home, port = home_of(tmp_path, corpus), free_port()
    made_up_sweep(home, corpus)
    home.sweep(SWEEP.name).note_runs("1", {0: "run0"})
    experiment = with_a_plan(home, corpus)
    with ui(tmp_path, port) as said:
        assert "/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=trials\n  staged  " in said
        assert said.count(f"/experiments/{experiment}/runs?workflowType=machine_learning\n") == 1
        assert f"optuna-dashboard  http://127.0.0.1:{port + 1}" in said and "Ctrl-C stops both." in said
