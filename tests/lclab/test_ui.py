"""`lclab ui` for real: what it serves, and the links that it prints, which lead to trials and to plans."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lclab.__main__ import app
from search_space.errors import UsageError
from sweeps.home import Home, note_run
from sweeps.plan_view import PlanView
from tests.processes import answer, free_port, wait_for
from tests.sweeps.promotable import SWEEP, home_of, made_up_sweep
from tests.trainer.staged import plan
from trainer.corpus import Corpus
from trainer.plan import dump

ELSEWHERE = "http://127.0.0.1:1/mlflow"  # where nothing answers


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


def add_plan(home: Path, name: str, experiment: str) -> None:
    """As it is begun; `experiment` is empty where MLflow has not been reached."""
    folder = home / "plans" / name
    folder.mkdir(parents=True)
    (folder / "plan.yaml").write_text(dump(replace(plan(home), name=name, tracking_url=ELSEWHERE)))
    if experiment:
        note_run(folder, experiment, "run")


def command(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    whole = [sys.executable, "-m", "lclab", "ui", *arguments, "--home", str(home)]
    return subprocess.run(whole, capture_output=True, text=True, timeout=60)


def refusal(home: Path, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["ui", *arguments, "--home", str(home)])
    assert isinstance(done.exception, UsageError), done.output
    return str(done.exception)


def test_where_a_server_runs_elsewhere_its_pages_are_named_and_nothing_is_started(tmp_path: Path) -> None:
    """It does not answer, and is not asked."""
    add_plan(tmp_path, "large", "7")
    add_plan(tmp_path, "unseen", "")
    done = command(tmp_path)
    assert done.returncode == 0, done.stderr
    page = f"{ELSEWHERE}/#/experiments/7/runs?workflowType=machine_learning"
    assert done.stdout.splitlines() == [f"MLflow            {ELSEWHERE}", f"  large           {page}"]


def test_several_databases_are_told_apart_by_a_name(tmp_path: Path) -> None:
    small = Home(tmp_path).sweep("small")
    small.path.mkdir()
    small.config.write_text("name: small\n")
    small.note_runs("1", {})
    add_plan(tmp_path, "large", "7")
    assert "name one: small, large" in refusal(tmp_path)
    assert "(there: small, large)" in refusal(tmp_path, "lrge")
    done = command(tmp_path, "large")
    assert done.returncode == 0, done.stderr
    assert "/experiments/7/" in done.stdout and "/experiments/1/" not in done.stdout and "optuna" not in done.stdout


@pytest.mark.slow
def test_a_home_with_plans_alone_is_shown(corpus: Corpus, tmp_path: Path) -> None:
    experiment, port = with_a_plan(Home(tmp_path), corpus), free_port()
    with ui(tmp_path, port) as said:
        page = f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs?workflowType=machine_learning"
        assert re.search(rf"^  staged +{re.escape(page)}$", said, re.MULTILINE)
        assert "optuna" not in said and "Ctrl-C stops it." in said
        assert not answer(f"http://127.0.0.1:{port + 1}")


@pytest.mark.slow
def test_sweeps_and_plans_are_linked_side_by_side(corpus: Corpus, tmp_path: Path) -> None:
    home, port = home_of(tmp_path, corpus), free_port()
    made_up_sweep(home, corpus)
    home.sweep(SWEEP.name).note_runs("1", {0: "run0"})
    experiment = with_a_plan(home, corpus)
    with ui(tmp_path, port) as said:
        assert "/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=trials\n  staged  " in said
        assert said.count(f"/experiments/{experiment}/runs?workflowType=machine_learning\n") == 1
        assert f"optuna-dashboard  http://127.0.0.1:{port + 1}" in said and "Ctrl-C stops both." in said
