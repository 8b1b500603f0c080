"""A driver's command as a RayJob of KubeRay (ray.io/v1), whose cluster is made for it and goes with it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from search_space.errors import UsageError

__all__ = ["RETRIES", "Needs", "Pods", "check_home", "kubernetes_name", "ray_job_of", "to_yaml"]

RETRIES = 3  # of the whole job: a new cluster goes on where the last one was lost
LONGEST_NAME = 47  # that KubeRay takes for a RayJob


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


@dataclass(frozen=True)
class Needs:
    """Of each worker's pod. vendor: of its GPUs, as Kubernetes names them."""

    cpus: int
    gpus: int = 0
    vendor: str = "nvidia.com"


def ray_job_of(
    name: str, entrypoint: str, files: Mapping[Path, str], home: Path, pods: Pods, needs: Needs, group: str
) -> list[dict[str, Any]]:
    """The RayJob of a driver, after the ConfigMap with the `files` that it reads, which are in one folder.

    name: of the sweep or run. group: what its workers are called. Raises `UsageError` as `check_home` does.
    """
    check_home(home)
    name = kubernetes_name(name)
    shared = {"name": "home", "persistentVolumeClaim": {"claimName": pods.claim}}
    mounted = {"name": "home", "mountPath": str(home)}
    settled = {"name": "config", "configMap": {"name": name}}
    (folder,) = {file.parent for file in files}
    read = {"name": "config", "mountPath": str(folder)}
    worker = {"cpu": str(needs.cpus), "memory": pods.memory}
    if needs.gpus:
        worker[f"{needs.vendor}/gpu"] = str(needs.gpus)
    head = {"cpu": "2", "memory": pods.memory}
    workers = {
        "groupName": group,
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
        "workerGroupSpecs": [workers],
    }
    spec = {
        "entrypoint": entrypoint,
        "backoffLimit": RETRIES,
        "shutdownAfterJobFinishes": True,
        "rayClusterSpec": cluster,
    }
    data = {file.name: text for file, text in files.items()}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data},
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


def check_home(home: Path) -> None:
    """Raise `UsageError` where `home` cannot be a folder of a cluster."""
    if not home.is_absolute():
        raise UsageError(f"home: {str(home)!r} is not the full path of a folder that all nodes of the cluster share")


def kubernetes_name(name: str) -> str:
    """As Kubernetes wants it."""
    return f"lclab-{re.sub(r'[^a-z0-9]+', '-', name.lower())}"[:LONGEST_NAME].strip("-")
