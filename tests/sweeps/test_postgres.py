"""Study and tracking on a real PostgreSQL, with a password, from several processes at once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState
from sqlalchemy import create_engine, inspect
from typer.testing import CliRunner

from lclab.__main__ import app
from search_space.errors import UsageError
from sweeps.home import Home, hide, reachable
from sweeps.status import read_status
from tests.processes import answer, descendants, wait_for
from tests.sweeps.test_cluster import free_port
from tests.sweeps.virtual import MINI, config

BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path(shutil.which("initdb") or "/none/x").parent)
PASSWORD = "p4ss-word"

needs_postgres = pytest.mark.skipif(not (BIN / "initdb").exists(), reason="PostgreSQL is not installed")


@dataclass(frozen=True)
class Server:
    port: int

    def database(self, name: str) -> str:
        """The URL of a new one."""
        environment = os.environ | {"PGPASSWORD": PASSWORD}
        options = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "lab", name]
        subprocess.run([str(BIN / "createdb"), *options], env=environment, check=True)
        return f"postgresql://lab:{PASSWORD}@127.0.0.1:{self.port}/{name}"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """On a loopback port, as whom PostgreSQL lets it run: not root."""
    user: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    folder, port = Path(tempfile.mkdtemp(prefix="pg")), free_port()
    (folder / "password").write_text(PASSWORD)
    if user:
        for path in (folder, folder / "password"):
            shutil.chown(path, "postgres", "postgres")
    data, options = str(folder / "data"), f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -F"
    initdb = [str(BIN / "initdb"), "-D", data, "-U", "lab", "-A", "scram-sha-256", "--pwfile", str(folder / "password")]
    control = [str(BIN / "pg_ctl"), "-D", data, "-w", "-l", str(folder / "log")]
    subprocess.run([*initdb, "--no-sync"], **user, cwd="/", check=True, stdout=-3)
    subprocess.run([*control, "-o", options, "start"], **user, cwd="/", check=True, stdout=-3)
    try:
        yield Server(port)
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **user, cwd="/", check=True, stdout=-3)
        shutil.rmtree(folder, ignore_errors=True)


OPEN = """
import sys
from pathlib import Path
from sweeps.home import Home, setting_up
from sweeps.ledger import Ledger
from sweeps.tracking import MlflowView
from tests.sweeps.virtual import config
name, study, tracking, folder = sys.argv[1:]
settings = config(f"name={name}", f"study_url={study}", f"tracking_url={tracking}")
home = Home(Path(folder)).of(settings)
print("ready", flush=True)
sys.stdin.readline()
with setting_up(home.study_url):
    ledger = Ledger(settings, home.study_url)
MlflowView(ledger, home, None, "").client.create_experiment(settings.name)
"""


@needs_postgres
@pytest.mark.slow
def test_a_new_database_is_set_up_by_several_at_once(server: Server, tmp_path: Path) -> None:
    """Both Optuna and MLflow stumble when two processes create their tables."""
    study, tracking = server.database("new_study"), server.database("new_tracking")
    python = [sys.executable, "-c", OPEN]
    children = [
        subprocess.Popen([*python, f"s{i}", study, tracking, str(tmp_path)], stdin=-1, stdout=-1, stderr=-1, text=True)
        for i in range(3)
    ]
    for child in children:
        assert child.stdout and child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin
        child.stdin.write("\n")
        child.stdin.flush()
    for child in children:
        _, error = child.communicate(timeout=240)
        assert child.returncode == 0, error
    assert sorted(optuna.get_all_study_names(study)) == ["s0", "s1", "s2"]
    found = {e.name for e in MlflowClient(tracking_uri=tracking).search_experiments()}
    assert {"s0", "s1", "s2"} <= found


@needs_postgres
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_sweeps_side_by_side_on_one_server(server: Server, tmp_path: Path, text_folder: Path) -> None:
    study, tracking = server.database("study"), server.database("tracking")
    common = [f"corpus.source={text_folder}", f"study_url={study}", f"tracking_url={tracking}", "workers=1", "trials=3"]
    lclab = [sys.executable, "-m", "lclab", "sweep", "run", str(MINI), *common, "--home", str(tmp_path)]
    drivers = [
        subprocess.Popen([*lclab, f"name={name}"], stdout=-1, stderr=subprocess.STDOUT, text=True) for name in "ab"
    ]
    for driver in drivers:
        said, _ = driver.communicate(timeout=500)
        assert driver.returncode == 0, said
        assert PASSWORD not in said
    assert not list(tmp_path.glob("*.db"))
    client = MlflowClient(tracking_uri=tracking)
    for name in "ab":
        trials = optuna.load_study(study_name=name, storage=study).get_trials()
        assert [t.state for t in trials] == [TrialState.COMPLETE] * 3
        status = read_status(Home(tmp_path), name)
        assert [t.state for t in status.trials] == ["complete"] * 3
        experiment = client.get_experiment_by_name(name)
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        assert len(runs) == 4 and {r.info.status for r in runs} == {"FINISHED"}
        for run in runs:
            text = Path(client.download_artifacts(run.info.run_id, "sweep.yaml", str(tmp_path))).read_text()
            assert PASSWORD not in text and "lab:***@127.0.0.1" in text
        report = CliRunner().invoke(app, ["report", name, "--home", str(tmp_path), "--json"])
        assert report.exit_code == 0 and json.loads(report.stdout)["sweep"] == name
    assert "trials" in inspect(create_engine(study)).get_table_names()
    assert_ui_serves(tmp_path)
    again = subprocess.run([*lclab, "name=a"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert len(optuna.load_study(study_name="a", storage=study).get_trials()) == 3


def assert_ui_serves(home: Path) -> None:
    """Both servers show the sweeps, and no command line shows the password."""
    port = free_port()
    command = [sys.executable, "-m", "lclab", "ui", "--home", str(home), "--port", str(port)]
    server = subprocess.Popen(command, stdout=-3, stderr=-3, text=True, start_new_session=True)

    query = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=a"
    try:
        wait_for(lambda: '"name": "a"' in answer(query), server)
        wait_for(lambda: '"b"' in answer(f"http://127.0.0.1:{port + 1}/api/studies"), server)
        family = descendants(server.pid)
    finally:
        os.killpg(server.pid, signal.SIGINT)
    assert server.wait(timeout=60) == 0
    assert len(family) >= 2 and not any(PASSWORD in arguments for _, arguments in family)


def test_a_home_knows_where_its_sweeps_are_kept(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for name, setting in (("a", "study_url: postgresql://h/a"), ("b", "study_url: ''"), ("old", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sweep.yaml").write_text(f"name: {name}\n{setting}\n")
    assert home.saved("a").study_url == "postgresql://h/a" and home.saved("a").tracking_url == home.tracking_url
    assert home.saved("b") == home.saved("old") == home
    shared = home.of(config("artifacts_url=s3://bucket/lab/"))
    assert shared.artifacts_of("a") == "s3://bucket/lab/a"
    assert home.of(config("tracking_url=http://server:5000")).artifacts_of("a") is None  # the server knows
    refused = CliRunner().invoke(app, ["ui", "--home", str(tmp_path)])
    assert isinstance(refused.exception, UsageError) and "name one: a, b, old" in str(refused.exception)
    with pytest.raises(UsageError, match="a database each"):
        config("study_url=postgresql://h/a", "tracking_url=postgresql://h/a")


@needs_postgres
def test_no_answer_is_one_line_without_the_password(server: Server) -> None:
    for wrong in (
        f"postgresql://lab:{PASSWORD}@127.0.0.1:{free_port()}/x",
        f"postgresql://lab:{PASSWORD}@127.0.0.1:{server.port}/no",
    ):
        with pytest.raises(UsageError, match=r"^study_url: no database answers at postgresql://lab:\*\*\*@") as error:
            reachable("study_url", wrong)
        assert PASSWORD not in str(error.value)


def test_passwords_of_urls_are_hidden() -> None:
    text = "a: postgresql+psycopg://me:s3cr:t@host:5432/x\nb: s3://bucket/a@b\nc: http://host:5000\nd: redis://:pw@h"
    assert hide(text) == text.replace("s3cr:t", "***").replace(":pw@", ":***@")
    assert hide(hide(text)) == hide(text)
