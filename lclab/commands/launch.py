"""`lclab launch`: a plan as a file for a cluster, by Slurm, KubeRay or `ray job submit`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from lclab.training import check_launch
from search_space.errors import UsageError

__all__ = ["launch"]


def launch(
    plan: Annotated[Path, typer.Argument(help="The plan's YAML.")],
    kind: Annotated[
        Literal["slurm", "kuberay", "job"],
        typer.Option(help="Batch script, RayJob, or `ray job submit`."),
    ],
    nodes: Annotated[int, typer.Option(min=1)] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="Of each node.")] = 8,
    gpu: Annotated[str, typer.Option(help="Kind: a100, h100, h200, b200, mi300a, mi300x.")] = "h200",
    home: Annotated[Path, typer.Option(help="A folder that all nodes share, by its full path.")] = Path("/shared/runs"),
    address: Annotated[str, typer.Option(help="job: of the cluster's dashboard.")] = "http://127.0.0.1:8265",
    image: Annotated[str, typer.Option(help="kuberay: with this package installed.")] = "",
    memory: Annotated[str, typer.Option(help="kuberay: of a pod.")] = "512Gi",
    claim: Annotated[str, typer.Option(help="kuberay: the PersistentVolumeClaim for --home.")] = "lclab-home",
    secret: Annotated[str, typer.Option(help="kuberay: a Secret with environment variables.")] = "",
    time: Annotated[str, typer.Option(help="slurm: limit of a job.")] = "24:00:00",
    partition: Annotated[str, typer.Option(help="slurm.")] = "",
    account: Annotated[str, typer.Option(help="slurm.")] = "",
    setup: Annotated[str, typer.Option(help="slurm: a line of bash that activates the environment.")] = "",
) -> None:
    """Print what starts a plan's run elsewhere; started again, it goes on."""
    from sweeps import launch as files
    from sweeps.fleet import Cluster
    from sweeps.pods import Pods, to_yaml
    from trainer.plan import load

    wanted, cluster = load(plan), Cluster(nodes, gpus, gpu)
    if kind != "slurm":
        check_launch(wanted.parallel, ray=True)
    if kind == "job":
        print(files.job_line(plan, home, address))
    elif kind == "slurm":
        slurm = files.Slurm(time=time, partition=partition, account=account, setup=setup)
        print(files.slurm_script(wanted, plan.resolve(), cluster, home, slurm), end="")
    elif not image:
        raise UsageError("image: a RayJob needs one with this package installed, such as --image HOST/lclab:1")
    else:
        print(to_yaml(files.plan_job(wanted, cluster, home, Pods(image, nodes, memory, claim, secret))), end="")
