"""A sweep as a job of a cluster: by `ray job submit`, or as a RayJob of KubeRay.

Either way the driver runs on the cluster's head with `address=auto`, and everything is kept in a home folder that all
nodes share. Submitting again is continuing.
"""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from math import ceil
from pathlib import Path
from typing import Any

import yaml

from search_space.errors import UsageError
from sweeps.config import PRESETS, SweepConfig, dump
from sweeps.home import hide

__all__ = ["Job", "Pods", "job", "ray_job", "ray_line", "submit", "to_yaml"]

CONFIG = "/etc/lclab/sweep.yaml"
RETRIES = 3  # of the whole job: a new cluster goes on where the last one was lost
LONGEST_NAME = 47  # that KubeRay takes for a RayJob


@dataclass(frozen=True)
class Job:
    """entrypoint: the driver's command. environment: Ray's runtime environment, with the code that is here."""

    entrypoint: str
    environment: dict[str, Any]


@dataclass(frozen=True)
class Pods:
    """What runs a RayJob. image: with this package installed. workers: pods. memory: of each pod.
    claim: a PersistentVolumeClaim that many nodes may write, mounted as the home folder.
    secret: whose keys become environment variables, such as PGPASSWORD and AWS_SECRET_ACCESS_KEY; none where empty.
    """

    image: str
    workers: int = 1
    memory: str = "16Gi"
    claim: str = "lclab-home"
    secret: str = ""


def job(preset: str, overrides: Sequence[str], home: Path) -> Job:
    """Of a sweep by its preset or YAML file. Raises `UsageError` where `home` cannot be a folder of the cluster."""
    _check_home(home)
    from sweeps.ray_executor import CODE  # here: takes Ray

    environment: dict[str, Any] = {"py_modules": CODE}
    if not (PRESETS / f"{preset}.yaml").exists():
        file = Path(preset).resolve()
        others = sorted(f"/{path.name}" for path in file.parent.iterdir() if path != file)
        environment |= {"working_dir": str(file.parent), "excludes": others}
        preset = file.name
    return Job(_command(preset, [*overrides, "address=auto"], home), environment)


def ray_line(job: Job, address: str) -> str:
    """What to type in place of `submit`."""
    options = ["--address", address, "--no-wait", "--runtime-env-json", json.dumps(job.environment)]
    return shlex.join(["ray", "job", "submit", *options, "--", *shlex.split(job.entrypoint)])


def submit(job: Job, address: str) -> str:
    """Submit to the cluster whose dashboard is at `address`; the id of the job."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address).submit_job(entrypoint=job.entrypoint, runtime_env=job.environment)
    except (ConnectionError, RuntimeError, AuthenticationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"address: {address!r} does not take the job: {reason}") from error


def ray_job(config: SweepConfig, home: Path, pods: Pods) -> list[dict[str, Any]]:
    """The RayJob (ray.io/v1) of a sweep, after the ConfigMap with its configuration.

    Raises `UsageError` where `home` cannot be a folder of the cluster, or where a URL would show its password.
    """
    _check_home(home)
    settings = dump(replace(config, address="auto"))
    if hide(settings) != settings:
        raise UsageError("study_url, tracking_url: a RayJob shows passwords to all; give PGPASSWORD in a --secret")
    name = _name(config.name)
    shared = {"name": "home", "persistentVolumeClaim": {"claimName": pods.claim}}
    mounted = {"name": "home", "mountPath": str(home)}
    settled = {"name": "config", "configMap": {"name": name}}
    read = {"name": "config", "mountPath": str(Path(CONFIG).parent)}
    processes = ceil(config.workers * config.parallel.ranks / pods.workers)  # per pod
    worker = {"cpu": str(processes * config.threads), "memory": pods.memory}
    if config.gpus:
        worker["nvidia.com/gpu"] = str(ceil(processes * config.gpus))
    head = {"cpu": "2", "memory": pods.memory}
    group = {
        "groupName": "trials",
        "replicas": pods.workers,
        "minReplicas": pods.workers,
        "maxReplicas": pods.workers,
        "rayStartParams": {},
        "template": _pod(pods, "ray-worker", worker, [shared], [mounted]),
    }
    cluster = {
        "rayVersion": version("ray"),
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0"},  # the driver's machine trains nothing
            "template": _pod(pods, "ray-head", head, [shared, settled], [mounted, read]),
        },
        "workerGroupSpecs": [group],
    }
    spec = {
        "entrypoint": _command(CONFIG, [], home),
        "backoffLimit": RETRIES,
        "shutdownAfterJobFinishes": True,
        "rayClusterSpec": cluster,
    }
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {Path(CONFIG).name: settings}},
        {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": name}, "spec": spec},
    ]


def to_yaml(documents: list[dict[str, Any]]) -> str:
    """For `kubectl apply -f -`."""
    return yaml.dump_all(documents, Dumper=_Plain, sort_keys=False)


class _Plain(yaml.SafeDumper):
    """Long texts as blocks, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Plain.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, "|" if "\n" in text else None)
)


def _pod(pods: Pods, name: str, limits: dict[str, str], volumes: list[Any], mounts: list[Any]) -> dict[str, Any]:
    container = {"name": name, "image": pods.image, "resources": {"limits": limits, "requests": limits}}
    container["volumeMounts"] = mounts
    if pods.secret:
        container["envFrom"] = [{"secretRef": {"name": pods.secret}}]
    return {"spec": {"containers": [container], "volumes": volumes}}


def _command(preset: str, overrides: list[str], home: Path) -> str:
    return shlex.join(["python", "-m", "lclab", "sweep", "run", preset, *overrides, "--home", str(home)])


def _check_home(home: Path) -> None:
    if not home.is_absolute():
        raise UsageError(f"home: {str(home)!r} is not the full path of a folder that all nodes of the cluster share")


def _name(sweep: str) -> str:
    """As Kubernetes wants it."""
    return f"lclab-{re.sub(r'[^a-z0-9]+', '-', sweep.lower())}"[:LONGEST_NAME].strip("-")
