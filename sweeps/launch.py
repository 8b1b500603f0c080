"""A plan on a cluster as files: a RayJob of KubeRay, a `ray job submit` line, a batch script of Slurm with torchrun.

All run `lclab train PLAN`, which continues what exists, so that launching again is continuing; each is begun anew, a
bounded number of times, where a node is lost.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_space.errors import UsageError
from sweeps.fleet import Cluster
from sweeps.pods import Needs, Pods, check_home, kubernetes_name, ray_job_of
from sweeps.submit import Job, alone, ray_line
from trainer.plan import Plan, dump

__all__ = ["Slurm", "job_line", "plan_job", "slurm_script", "torchrun_arguments"]

PLAN = "/etc/lclab/plan.yaml"
_REQUEUES = 10  # of a Slurm job that ended with an error or at its time limit
_RESTARTS = 3  # by torchrun, of all processes, without a new job
_PORT = 29_500  # torch's own
_GRACE = 300  # seconds before the time limit, for a last checkpoint
_PATIENCE = 120  # seconds that torchrun, once asked to end, leaves its ranks for their step and that checkpoint


@dataclass(frozen=True)
class Slurm:
    """time: limit of a job, as sbatch takes it. partition, account: the cluster's own where empty.
    cpus: of each node; what the cluster gives where 0. setup: a line of bash before anything else, such as what
    activates an environment.
    """

    time: str = "24:00:00"
    partition: str = ""
    account: str = ""
    cpus: int = 0
    setup: str = ""


def plan_job(plan: Plan, cluster: Cluster, home: Path, pods: Pods, cpus: int = 4) -> list[dict[str, Any]]:
    """The RayJob (ray.io/v1) that trains `plan`, after the ConfigMap with it. cpus: for each GPU.

    A pod is a node of `cluster`, whatever `pods.workers` says. Raises `UsageError` where the plan is for another number
    of ranks, and where `home` cannot be a folder of the cluster.
    """
    _check(plan, cluster)
    pods = Pods(pods.image, cluster.nodes, pods.memory, pods.claim, pods.secret)
    needs = Needs(cpus * cluster.gpus, cluster.gpus, "amd.com" if cluster.kind.startswith("mi") else "nvidia.com")
    return ray_job_of(plan.name, _by_ray(PLAN, home), {Path(PLAN): dump(plan)}, home, pods, needs, "ranks")


def job_line(plan: Path, home: Path, address: str) -> str:
    """The `ray job submit` line for a plan's file and a Ray cluster whose dashboard is at `address`.

    Raises `UsageError` where `home` cannot be a folder of the cluster.
    """
    check_home(home)
    from sweeps.ray_executor import CODE  # here: takes Ray

    file = plan.resolve()
    return ray_line(Job(_by_ray(file.name, home), {"py_modules": CODE} | alone(file)), address)


def slurm_script(plan: Plan, file: Path, cluster: Cluster, home: Path, slurm: Slurm | None = None) -> str:
    """The batch script for `sbatch`; `file` is where all nodes find the plan.

    Raises `UsageError` where the plan is for another number of ranks, and where `home` or `file` cannot be the
    cluster's.
    """
    _check(plan, cluster)
    check_home(home)
    if not file.is_absolute():
        raise UsageError(f"plan: {str(file)!r} is not the full path of a file that all nodes of the cluster share")
    slurm = slurm or Slurm()
    for name, value in vars(slurm).items():
        if "\n" in str(value):
            raise UsageError(f"slurm.{name}: {value!r} is more than a line")
    options = {
        "job-name": kubernetes_name(plan.name),
        "nodes": cluster.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": cluster.gpus,
        "cpus-per-task": slurm.cpus,
        "time": slurm.time,
        "partition": slurm.partition,
        "account": slurm.account,
        "signal": f"TERM@{_GRACE}",
        "output": f"{home}/{plan.name}-%j.log",
        "open-mode": "append",
    }
    lines = [f"#SBATCH --{name}={shlex.quote(str(value))}" for name, value in options.items() if value]
    arguments = torchrun_arguments(cluster, ["train", str(file), "--home", str(home)])
    return _SCRIPT.format(
        options="\n".join(lines),
        setup=f"{slurm.setup}\n" if slurm.setup else "",
        home=shlex.quote(str(home)),
        port=_PORT,
        patience=_PATIENCE,
        arguments=shlex.join(arguments),
        requeues=_REQUEUES,
    )


_SCRIPT = """\
#!/bin/bash
{options}
#SBATCH --requeue

set -u
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={patience}
{setup}mkdir -p {home}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --kill-on-bad-exit=1 python -m torch.distributed.run \\
  --rdzv-id="$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}" \\
  --rdzv-endpoint="$head:{port}" \\
  {arguments}
status=$?

# Slurm itself begins the job anew where a node is lost; here, where the time was up or a process failed.
if [ "$status" -ne 0 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {requeues} ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


def torchrun_arguments(cluster: Cluster, command: Sequence[str]) -> list[str]:
    """Of `torch.distributed.run`, to run a command of lclab on all GPUs, but for where its nodes meet."""
    return [
        f"--nnodes={cluster.nodes}",
        f"--nproc-per-node={cluster.gpus}",
        "--rdzv-backend=c10d",
        f"--max-restarts={_RESTARTS}",
        "-m",
        "lclab",
        *command,
    ]


def _by_ray(plan: str, home: Path) -> str:
    return shlex.join(["python", "-m", "lclab", "train", plan, "--ray", "--home", str(home)])


def _check(plan: Plan, cluster: Cluster) -> None:
    cluster.check()
    if plan.parallel.ranks != cluster.ranks:
        raise UsageError(
            f"parallel: the plan is for {plan.parallel.ranks} ranks, and the cluster has {cluster.ranks} GPUs; "
            "make them equal"
        )
