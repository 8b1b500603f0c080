"""Faults of the machine under a sweep, each of them real: a full disk, a process that stands still, a database that
somebody else holds, a tracking server that is away."""

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState

from analysis import analyse
from sweeps.aside import Aside
from sweeps.driver import Driver
from sweeps.executor import Job
from sweeps.home import Home
from sweeps.ledger import Assignment, Ledger
from sweeps.ray_executor import RayExecutor
from sweeps.study import state_of
from sweeps.tables import write_tables
from sweeps.tracking import MlflowView
from tests.processes import descendants, free_port, tracking_server
from tests.sweeps.virtual import MINI, Chance, config, job_for, result_of, run
from trainer.corpus import Corpus
from trainer.optim import OptimConfig
from trainer.trial import RungResult

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]  # in which anybody may mount a small disk


def can_mount() -> bool:
    command = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="this kernel lets nobody mount a small disk of their own")
def test_a_full_disk_stops_the_sweep_and_loses_nothing(tmp_path: Path, text_folder: Path) -> None:
    """Trials on a disk of half a megabyte: with room made for them, the same command goes on."""
    trials, saved = tmp_path / "mini" / "trials", tmp_path / "saved"
    command = [sys.executable, "-m", "lclab", "sweep", "run", str(MINI), f"corpus.source={text_folder}"]
    command += ["--home", str(tmp_path), "trials=4"]
    trials.mkdir(parents=True)
    script = f'mount -t tmpfs -o size=512k tmpfs "{trials}" && "$@"; code=$?; cp -r "{trials}" "{saved}"; exit $code'
    full = subprocess.run([*NAMESPACE, "sh", "-c", script, "sh", *command], capture_output=True, text=True, timeout=400)
    assert full.returncode == 1, full.stdout + full.stderr
    assert "Stopped by the machine: OSError: [Errno 28] No space left on device" in full.stdout
    assert "Continue with: lclab sweep run" in full.stdout
    study = optuna.load_study(study_name="mini", storage=Home(tmp_path).study_url)
    struck = [t for t in study.get_trials() if "No space left" in str(t.user_attrs.get("faults"))]
    assert struck and all(t.state == TrialState.RUNNING for t in struck)
    assert not list(saved.rglob("*.part")), "nothing half written"
    shutil.rmtree(trials)
    saved.rename(trials)
    kept = {path: path.stat().st_mtime_ns for path in trials.rglob("rung-*.json")}
    room = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert room.returncode == 0, room.stdout + room.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "what was done is not done again"
    assert {t.state for t in study.get_trials()} == {TrialState.COMPLETE}


def test_a_worker_that_stands_still_is_killed_and_its_trial_goes_on(corpus: Corpus, tmp_path: Path) -> None:
    chosen = config("trials=1", "controls=[]", "seeds=1", "ablations=false", "timeout=3", "recipe.steps=200")
    ledger = Ledger(chosen, f"sqlite:///{tmp_path}/optuna.db")

    def job(trial: Assignment) -> Job:
        virtual = job_for(chosen, trial)
        return replace(virtual, spec=replace(virtual.spec, corpus=str(corpus.folder)), folder=tmp_path / "trial")

    with closing(RayExecutor(1)) as executor:
        driver, stopped, left = Driver(ledger, executor, job), list[int](), list[int]()

        def stand_still(snapshot: object) -> None:
            if not stopped and list((tmp_path / "trial").glob("step-*")):
                (worker,) = workers()
                os.kill(worker, signal.SIGSTOP)
                stopped.append(worker)
            if ledger.trials()[0].user_attrs.get("faults"):
                left.extend(set(stopped) & set(workers()))

        driver.watch = stand_still
        driver.run()
    (trial,) = ledger.trials()
    assert stopped and trial.state == TrialState.COMPLETE
    assert trial.user_attrs["faults"] == ["no step for 3 s"]
    assert not left, "it held its CPU while its trial went on"


def workers() -> list[int]:
    return [pid for pid, args in descendants(os.getpid()) if args.startswith("ray::_Worker")]


def test_divergence_and_too_little_memory_are_told_as_such(corpus: Corpus, tmp_path: Path) -> None:
    """In the middle of a sweep, whose worker goes on. One trial wants 8 GB and gets one."""
    chosen = config("trials=4", "controls=[]", "seeds=1", "ablations=false", "pruner=none")
    ledger = Ledger(chosen, f"sqlite:///{tmp_path}/optuna.db")
    wild = replace(chosen.recipe, optim=OptimConfig(muon_rate=1e30, adamw_rate=1e30, clip=1e30), precision="32-true")
    recipes, size = [chosen.recipe, wild, chosen.recipe, chosen.recipe], chosen.model_size()
    large = replace(size, decoder=replace(size.decoder, feedforward=20_000_000))

    def job(trial: Assignment) -> Job:
        if trial.number >= 2:
            (worker,) = workers()
            now = 4096 * int(Path(f"/proc/{worker}/statm").read_text().split()[0])
            limit = now + 2**30 if trial.number == 2 else resource.RLIM_INFINITY
            resource.prlimit(worker, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        virtual = job_for(chosen, trial)
        fits = large if trial.number == 2 else size
        spec = replace(virtual.spec, corpus=str(corpus.folder), recipe=recipes[trial.number], size=fits)
        return replace(virtual, spec=spec, folder=tmp_path / str(trial.number))

    with closing(RayExecutor(1)) as executor:
        Driver(ledger, executor, job).run()
    trials = ledger.trials()
    assert [state_of(trial) for trial in trials] == ["complete", "failed", "infeasible", "complete"]
    assert trials[1].user_attrs["reason"].startswith("Diverged: training loss is")
    assert trials[1].values is None and not trials[1].intermediate_values
    assert trials[2].user_attrs["reason"].startswith("OutOfMemory: out of memory after step 0")
    assert max(trials[2].constraints.values()) > 0


def test_a_locked_database_is_waited_for(tmp_path: Path) -> None:
    """Longer than the five seconds after which SQLite gives up by itself."""
    chosen, url = config("trials=4", "controls=[]"), f"sqlite:///{tmp_path}/optuna.db"
    ledger = Ledger(chosen, url)
    ledger.take_up()
    assignment = ledger.next()
    assert assignment is not None
    held, seconds = threading.Event(), 31.0

    def hold() -> None:
        with closing(sqlite3.connect(tmp_path / "optuna.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            held.set()
            time.sleep(seconds)
            other.execute("COMMIT")

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    before = time.monotonic()
    ledger.record(assignment.number, result_of(job_for(chosen, assignment)))
    assert time.monotonic() - before > seconds / 2, "it was not locked"
    holder.join()
    assert run(chosen, url, Chance(0)).finished()


def test_a_tracking_server_that_was_away_is_made_up_for(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes in the middle of the sweep, which does not wait for it, and comes back before the end."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    port = free_port()
    chosen, home = config("pruner=none"), Home(tmp_path / "runs", tracking=f"http://127.0.0.1:{port}")
    home.path.mkdir()
    folder = home.sweep(chosen.name)
    ledger = Ledger(chosen, home.study_url)
    view = MlflowView(ledger, home, corpus, "name: mini")

    def some(trials: int) -> None:
        """So many more trials, with the results that real ones leave."""
        aside = Aside(view)
        ledger.take_up()
        for _ in range(trials):
            for rung in (1, 2):
                assignment = ledger.next()
                assert assignment is not None and assignment.rung == rung
                result = result_of(job_for(chosen, assignment))
                folder.trial(assignment.number).mkdir(parents=True, exist_ok=True)
                result.save(folder.trial(assignment.number))
                ledger.record(assignment.number, result)
                aside.update(set(ledger.changed))
                ledger.changed.clear()
        aside.close()

    with tracking_server(tmp_path, port):
        some(3)
    some(4)
    assert ledger.states["complete"] == 7, "the sweep went on"
    with tracking_server(tmp_path, port):
        some(3)
        frame = write_tables(ledger, folder)
        view.close(analyse(frame), frame, [])
        client = MlflowClient(home.tracking_url)
        experiment = client.get_experiment_by_name("mini")
        assert experiment is not None
        runs = {r.data.tags.get("lclab.trial"): r for r in client.search_runs([experiment.experiment_id])}
        assert len(runs) == 11 and runs[None].info.status == "FINISHED"
        for trial in ledger.trials():
            found = runs[str(trial.number)]
            results = RungResult.load_all(folder.trial(trial.number))
            history = client.get_metric_history(found.info.run_id, "heldout_parallel")
            assert found.info.status == "FINISHED" and found.data.tags["lclab.state"] == "complete"
            assert [(m.step, m.value) for m in history] == [(r.tokens, r.heldout.loss["parallel"]) for r in results]
