"""A real miniature sweep from the command line: Ray, Optuna, LitData, Lightning and MLflow, nothing stood in for.

In the middle of it the driver is interrupted and then killed, and a worker is killed; at the end study, MLflow and
folders must agree trial by trial, and with a sweep that nobody disturbed.
"""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import optuna
import pandas as pd
import pytest
from mlflow import MlflowClient
from optuna.trial import FrozenTrial, TrialState

from lclab.__main__ import main
from search_space.design import AXES
from search_space.errors import UsageError
from sweeps.home import Home
from sweeps.status import read_status
from sweeps.tracking import STATUS
from tests.processes import answer, descendants, wait_for
from tests.sweeps.virtual import MINI
from trainer.trial import RungResult

pytestmark = pytest.mark.slow

STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


@dataclass
class Done:
    returncode: object
    stdout: str
    stderr: str


class Sweep:
    """One home folder, and the command line on it."""

    def __init__(self, home: Path, corpus: Path) -> None:
        self.home = Home(home)
        self._common = ["--home", str(home)]
        self._run = ["sweep", "run", str(MINI), f"corpus.source={corpus}", "recipe.steps=100", *self._common]

    def command(self, *arguments: str) -> Done:
        """In this process, which has everything imported."""
        out, err, argv = io.StringIO(), io.StringIO(), sys.argv
        sys.argv = ["lclab", *arguments]
        try:
            with redirect_stdout(out), redirect_stderr(err):
                main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            sys.argv = argv
        return Done(code, out.getvalue(), err.getvalue())

    def run(self, *overrides: str) -> Done:
        return self.command(*self._run, *overrides)

    def start(self) -> subprocess.Popen[str]:
        """In a process of its own, to be interrupted and killed."""
        command = [sys.executable, "-m", "lclab", *self._run]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def status(self) -> dict[str, object]:
        done = self.command("sweep", "status", "mini", "--json", *self._common)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def trials(self) -> list[FrozenTrial]:
        return optuna.load_study(study_name="mini", storage=self.home.study_url).get_trials()

    def table(self) -> pd.DataFrame:
        return pd.read_parquet(self.home.sweep("mini").table)


def checkpoints(sweep: Sweep) -> set[Path]:
    return set(sweep.home.sweep("mini").path.glob("trials/*/step-?????????"))


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Sweep:
    """A sweep that nobody disturbs."""
    sweep = Sweep(tmp_path_factory.mktemp("calm"), text_folder)
    done = sweep.run()
    assert done.returncode == 0, done.stdout + done.stderr
    return sweep


@pytest.fixture(scope="module")
def rough(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Sweep:
    """The same sweep, with Ctrl-C, a killed worker and a killed driver on the way."""
    sweep = Sweep(tmp_path_factory.mktemp("rough"), text_folder)
    driver = sweep.start()
    wait_for(lambda: len(checkpoints(sweep)) >= 2, driver)
    with (
        pytest.raises(UsageError, match=f"already run by process {driver.pid}"),
        sweep.home.sweep("mini").locked(),
    ):
        pass
    status = read_status(sweep.home, "mini")
    assert status.driver == driver.pid and status.snapshot.states["running"] == 2
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: to everything in the foreground
    said, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130, said
    assert "Continue with: lclab sweep run" in said
    assert not all(t.state.is_finished() for t in sweep.trials()), "stopped too late to show anything"

    driver, before = sweep.start(), checkpoints(sweep)
    wait_for(lambda: checkpoints(sweep) - before, driver)
    stopped = sweep.command("sweep", "stop", "mini", *sweep._common)  # from another terminal
    assert stopped.returncode == 0 and f"Asked process {driver.pid}" in stopped.stdout, stopped.stdout + stopped.stderr
    said, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130 and "Continue with: lclab sweep run" in said, said
    assert sweep.status()["driver"] is None

    driver, before = sweep.start(), checkpoints(sweep)
    wait_for(lambda: checkpoints(sweep) - before, driver)
    workers = [pid for pid, args in descendants(driver.pid) if re.match(r"ray::_Worker", args)]
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    wait_for(lambda: any("faults" in t.user_attrs for t in sweep.trials()), driver)
    done = sum(t.state.is_finished() for t in sweep.trials())
    wait_for(lambda: sum(t.state.is_finished() for t in sweep.trials()) > min(done, 9), driver)
    family = [driver.pid, *(pid for pid, _ in descendants(driver.pid))]
    for pid in family:  # a machine that goes down takes Ray with it
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    driver.wait()

    last = sweep.run()
    assert last.returncode == 0, last.stdout + last.stderr
    return sweep


@pytest.fixture(params=["calm", "rough"])
def sweep(request: pytest.FixtureRequest) -> Sweep:
    return request.getfixturevalue(request.param)


def test_study_folders_table_and_mlflow_agree_trial_by_trial(sweep: Sweep) -> None:
    folder, trials, table = sweep.home.sweep("mini"), sweep.trials(), sweep.table()
    client = MlflowClient(tracking_uri=sweep.home.tracking_url)
    experiment = client.get_experiment_by_name("mini")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    (parent,) = [r for r in runs if r.data.tags.get("lclab.role") == "sweep"]
    assert parent.info.status == "FINISHED"
    assert len(runs) == 1 + len(trials)
    artifacts = {p.path for p in client.list_artifacts(parent.info.run_id)}
    assert artifacts == {"sweep.yaml", "report.html", "report.md", "trials.parquet", "arms.json"}
    assert len(client.search_model_versions("name = 'mini'")) == 1
    assert sorted(table.trial.unique()) == [t.number for t in trials]
    for trial in trials:
        assert trial.state.is_finished()
        (run,) = [r for r in runs if r.data.tags.get("lclab.trial") == str(trial.number)]
        results = RungResult.load_all(folder.trial(trial.number))
        rows = table[table.trial == trial.number].sort_values("rung")
        assert run.info.status == STATUS[trial.state]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.params["design"] == trial.user_attrs["design"] == rows.design.iloc[0]
        assert run.data.params["seed"] == str(trial.user_attrs["seed"])
        row = rows.iloc[0].to_dict()  # with what `base` means at the sweep's size
        assert {k: v for k, v in trial.params.items() if v != "base"}.items() <= row.items()
        assert {axis: run.data.params[axis] for axis in AXES} == {axis: str(row[axis]) for axis in AXES}
        assert ("base" in run.data.params.values()) == (row["control"] in ("uncompressed", "blind"))  # nothing to say
        assert set(rows.mlflow_run) == {run.info.run_id}
        assert set(rows.state) == {STATES[trial.state]}
        assert rows.parallel.tolist() == [r.heldout.loss["parallel"] for r in results]
        if trial.state == TrialState.COMPLETE:
            assert trial.value == results[-1].heldout.loss["parallel"]
        if trial.user_attrs["role"] != "control":
            assert trial.intermediate_values == {r.tokens: r.heldout.loss["parallel"] for r in results}
        history = client.get_metric_history(run.info.run_id, "heldout_parallel")
        assert [(m.step, m.value) for m in history] == [(r.tokens, r.heldout.loss["parallel"]) for r in results]
        curve = client.get_metric_history(run.info.run_id, "train_loss")
        assert [(m.step, m.value) for m in curve] == [(tokens, loss) for tokens, loss, _ in results[-1].curve]
        assert run.inputs is not None and run.inputs.dataset_inputs[0].dataset.digest
        assert {p.path for p in client.list_artifacts(run.info.run_id)} == {"sweep.yaml", "trial.yaml"}


def test_disturbed_equals_undisturbed(calm: Sweep, rough: Sweep) -> None:
    """What was planned is the same trial by trial; what the sampler chose may depend on the order of reports."""
    keys = ["design", "seed", "rung"]
    tables = [s.table() for s in (calm, rough)]
    planned = [t[t.trial < 8].set_index(keys)[["parallel", "reconstruct", "train_loss"]] for t in tables]
    common = planned[0].index.intersection(planned[1].index)
    assert len(common) >= 12
    pd.testing.assert_frame_equal(planned[0].loc[common], planned[1].loc[common], check_exact=True)


def test_every_worker_death_is_on_record(rough: Sweep) -> None:
    faults = [f for t in rough.trials() for f in t.user_attrs.get("faults", [])]
    assert faults == ["the worker process died"]


def test_again_finishes_at_once_and_changes_nothing(calm: Sweep) -> None:
    before = calm.table()
    done = calm.run()
    assert done.returncode == 0 and "Ray" not in done.stdout
    pd.testing.assert_frame_equal(calm.table(), before)
    assert "Learnt" in done.stdout and "lclab ui" in done.stdout


def test_other_settings_are_refused_and_nothing_is_touched(calm: Sweep) -> None:
    before = calm.home.sweep("mini").config.read_text()
    done = calm.run("recipe.optim.clip=2.0")
    assert done.returncode == 2
    assert done.stderr.startswith("lclab: recipe.optim.clip: sweep 'mini' exists with another value")
    assert calm.home.sweep("mini").config.read_text() == before


def test_status_report_and_json(calm: Sweep) -> None:
    status = calm.status()
    assert status["driver"] is None and len(status["trials"]) == 10  # ty: ignore[invalid-argument-type]
    report = calm.home.sweep("mini").report
    report.unlink()
    done = calm.command("report", "mini", "--json", *calm._common)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["report"] == str(report) and report.exists()
    assert said["learnt"].split()[0] in report.read_text()


def test_ui_serves_both_and_stops_both(calm: Sweep) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "lclab", "ui", "--home", str(calm.home.path), "--port", str(port)]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, stdout=quiet, stderr=quiet, text=True, start_new_session=True)

    query = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=mini"
    wait_for(lambda: '"name": "mini"' in answer(query), server)
    wait_for(lambda: '"mini"' in answer(f"http://127.0.0.1:{port + 1}/api/studies"), server)
    family = descendants(server.pid)
    os.killpg(server.pid, signal.SIGINT)
    assert server.wait(timeout=30) == 0
    deadline = time.monotonic() + 30  # MLflow's own workers end a moment after their master
    while left := [pid for pid, _ in family if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
