"""A sweep as a job of a cluster: by `ray job submit`, or as a RayJob of KubeRay.

Either way the driver runs on the cluster's head with `address=auto`, and everything is kept in a home folder that all
nodes share. Submitting again is continuing.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from search_space.errors import UsageError
from sweeps.config import PRESETS, SweepConfig, dump
from sweeps.home import hide
from sweeps.pods import Needs, Pods, check_home, ray_job_of, to_yaml

__all__ = ["Job", "Pods", "alone", "job", "ray_job", "ray_line", "submit", "to_yaml"]

CONFIG = "/etc/lclab/sweep.yaml"


@dataclass(frozen=True)
class Job:
    """entrypoint: the driver's command. environment: Ray's runtime environment, with the code that is here."""

    entrypoint: str
    environment: dict[str, Any]


def job(preset: str, overrides: Sequence[str], home: Path) -> Job:
    """Of a sweep by its preset or YAML file. Raises `UsageError` where `home` cannot be a folder of the cluster."""
    check_home(home)
    from sweeps.ray_executor import CODE  # here: takes Ray

    environment: dict[str, Any] = {"py_modules": CODE}
    if not (PRESETS / f"{preset}.yaml").exists():
        file = Path(preset).resolve()
        environment |= alone(file)
        preset = file.name
    return Job(_command(preset, [*overrides, "address=auto"], home), environment)


def alone(file: Path) -> dict[str, Any]:
    """What of a runtime environment sends `file` along, and nothing beside it."""
    others = sorted(f"/{path.name}" for path in file.parent.iterdir() if path != file)
    return {"working_dir": str(file.parent), "excludes": others}


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
    check_home(home)
    settings = dump(replace(config, address="auto"))
    if hide(settings) != settings:
        raise UsageError("study_url, tracking_url: a RayJob shows passwords to all; give PGPASSWORD in a --secret")
    processes = ceil(config.workers * config.parallel.ranks / pods.workers)  # per pod
    needs = Needs(processes * config.threads, ceil(processes * config.gpus))
    return ray_job_of(config.name, _command(CONFIG, [], home), {Path(CONFIG): settings}, home, pods, needs, "trials")


def _command(preset: str, overrides: list[str], home: Path) -> str:
    return shlex.join(["python", "-m", "lclab", "sweep", "run", preset, *overrides, "--home", str(home)])
