"""A sweep as a job: the RayJob by the fields of its definition, and a real submission to a Ray on this machine."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import optuna
import pytest
import yaml
from optuna.trial import TrialState
from ray.job_submission import JobStatus, JobSubmissionClient
from typer.testing import CliRunner, Result

from lclab.__main__ import app
from search_space.errors import UsageError
from sweeps.config import dump, load
from sweeps.home import Home
from sweeps.submit import Pods, ray_job
from tests.sweeps.virtual import MINI, config

BIN = Path(sys.executable).parent

# Required and known fields of KubeRay's definitions (ray.io/v1, ray-operator/apis/ray/v1), as far as they matter.
# `kubectl apply` refuses a field that is not known.
REQUIRED = {
    "spec": {"entrypoint", "rayClusterSpec"},
    "rayClusterSpec": {"headGroupSpec"},
    "headGroupSpec": {"rayStartParams", "template"},
    "workerGroupSpecs": {"groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}
KNOWN = {
    "spec": {
        *("entrypoint", "rayClusterSpec", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
        *("activeDeadlineSeconds", "runtimeEnvYAML", "submissionMode", "submitterPodTemplate", "suspend", "jobId"),
    },
    "rayClusterSpec": {"rayVersion", "headGroupSpec", "workerGroupSpecs", "enableInTreeAutoscaling"},
    "headGroupSpec": {"rayStartParams", "template", "serviceType"},
    "workerGroupSpecs": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}


def check_fields(name: str, tree: Any) -> None:
    """Of `tree`, found under the key `name`, and of what is below."""
    if isinstance(tree, list):
        for branch in tree:
            check_fields(name, branch)
    elif isinstance(tree, dict):
        if name in REQUIRED:
            assert REQUIRED[name] <= tree.keys() <= KNOWN[name], name
        for key, branch in tree.items():
            if key != "template":  # Kubernetes' own, where `spec` is a pod's
                check_fields(key, branch)


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["sweep", "submit", str(MINI), *arguments])


def rendered(*arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
    options = ("--kind", "kuberay", "--dry-run", "--image", "lab:1", "--home", "/lab/runs")
    done = command(*options, *arguments)
    assert done.exit_code == 0, done.output
    about, job = yaml.safe_load_all(done.stdout)
    return about, job


def test_a_ray_job_has_the_fields_of_its_definition() -> None:
    about, job = rendered("workers=5", "threads=2", "gpus=0.5", "--workers", "2", "--secret", "keys", "name=My_sweep")
    assert job["apiVersion"] == "ray.io/v1" and job["kind"] == "RayJob"
    assert job["metadata"]["name"] == "lclab-my-sweep" == about["metadata"]["name"]
    check_fields("spec", job["spec"])
    cluster = job["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    pods = [cluster["headGroupSpec"]["template"]["spec"], group["template"]["spec"]]
    for pod in pods:
        (container,) = pod["containers"]
        mounts = container["volumeMounts"]
        assert {m["name"] for m in mounts} == {v["name"] for v in pod["volumes"]}
        assert "/lab/runs" in {m["mountPath"] for m in mounts}
        assert container["image"] == "lab:1" and container["envFrom"] == [{"secretRef": {"name": "keys"}}]
    limits = pods[1]["containers"][0]["resources"]["limits"]
    assert limits["cpu"] == "6" and limits["nvidia.com/gpu"] == "2" and group["replicas"] == 2  # three trials on a pod
    assert all(isinstance(value, str) for value in cluster["headGroupSpec"]["rayStartParams"].values())


def test_the_job_runs_the_very_configuration(tmp_path: Path) -> None:
    about, job = rendered("trials=3", "space.window=[4,16]")
    entrypoint = shlex.split(job["spec"]["entrypoint"])
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    path = Path(entrypoint[5])
    assert entrypoint[:5] == ["python", "-m", "lclab", "sweep", "run"] and entrypoint[6:] == ["--home", "/lab/runs"]
    assert str(path.parent) in {m["mountPath"] for m in head["volumeMounts"]}
    (tmp_path / path.name).write_text(about["data"][path.name])
    assert dump(load(str(tmp_path / path.name))) == dump(config("trials=3", "space.window=[4,16]", "address=auto"))


def test_what_cannot_be_is_refused() -> None:
    secret = config("study_url=postgresql://me:secret@db/x")
    with pytest.raises(UsageError, match="--secret"):
        ray_job(secret, Path("/lab"), Pods("lab:1"))
    for kind in ("job", "kuberay"):
        done = command("--kind", kind, "--dry-run", "--image", "lab:1", "--home", "runs")
        assert isinstance(done.exception, UsageError) and str(done.exception).startswith("home: 'runs'")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def dashboard() -> Iterator[str]:
    """The address of a Ray with a dashboard, of one CPU; without the token, which this process would have to have."""
    folder, port = tempfile.mkdtemp(prefix="ray"), free_port()
    options = ["--port", str(free_port()), "--dashboard-port", str(port), "--include-dashboard=true", "--num-cpus=1"]
    options += ["--node-ip-address=127.0.0.1", "--object-store-memory=104857600", "--temp-dir", folder, "--block"]
    options += ["--dashboard-agent-listen-port", str(free_port()), "--ray-client-server-port", str(free_port())]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "PATH": f"{BIN}:{os.environ['PATH']}"}
    said = Path(folder, "head.log")
    with said.open("w") as stream:
        head = subprocess.Popen(
            [str(BIN / "ray"), "start", "--head", *options], stdout=stream, stderr=stream, env=environment
        )
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while True:
            try:
                urlopen(f"{address}/api/version", timeout=5).close()
                break
            except OSError:
                assert head.poll() is None and time.monotonic() < deadline, said.read_text()
                time.sleep(0.5)
        yield address
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_submitted_sweep_runs(dashboard: str, tmp_path: Path, text_folder: Path) -> None:
    settings = [f"corpus.source={text_folder}", "trials=2", "workers=1", "--home", str(tmp_path)]
    shown = command(*settings, "--dry-run", "--address", dashboard)
    assert shown.stdout.startswith(f"ray job submit --address {dashboard} --no-wait --runtime-env-json ")
    assert not list(tmp_path.iterdir())
    done = command(*settings, "--address", dashboard)
    assert done.exit_code == 0, done.output
    client, name = JobSubmissionClient(dashboard), done.stdout.strip()
    deadline = time.monotonic() + 400
    while not (status := client.get_job_status(name)).is_terminal():
        assert time.monotonic() < deadline, client.get_job_logs(name)
        time.sleep(1)
    assert status == JobStatus.SUCCEEDED, client.get_job_logs(name)
    trials = optuna.load_study(study_name="mini", storage=Home(tmp_path).study_url).get_trials()
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 2
