"""Files to launch a plan with, by what reads them: RayJob's fields, bash and shellcheck, torchrun's own parser."""

import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from search_space.errors import UsageError
from sweeps.fleet import Cluster
from sweeps.launch import Slurm, job_line, plan_job, slurm_script
from sweeps.pods import Pods, to_yaml
from tests.sweeps.test_submit import check_fields
from tests.trainer.staged import plan as staged
from trainer.parallel import Parallel
from trainer.plan import Plan, dump, load

CLUSTER = Cluster(3, 4, "h100")
PLAN = staged(Path("/shared/corpus"), Parallel("fsdp", devices=4, nodes=3))
SETTINGS = Slurm("12:00:00", "gpu", "lab 7", 64, "source '/shared/my venv/bin/activate'")


def script(plan: Plan = PLAN, slurm: Slurm | None = None, name: str = "a plan.yaml") -> str:
    return slurm_script(plan, Path("/shared") / name, CLUSTER, Path("/shared/my runs"), slurm)


def test_a_ray_job_has_the_fields_of_its_definition(tmp_path: Path) -> None:
    documents = plan_job(PLAN, CLUSTER, Path("/lab/runs"), Pods("lab:1", memory="900Gi", secret="keys"), cpus=8)
    about, job = yaml.safe_load_all(to_yaml(documents))
    assert job["apiVersion"] == "ray.io/v1" and job["kind"] == "RayJob" and job["spec"]["backoffLimit"] > 0
    assert job["metadata"]["name"] == "lclab-staged" == about["metadata"]["name"]
    check_fields("spec", job["spec"])
    cluster = job["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 3
    assert container["resources"]["limits"] == {"cpu": "32", "memory": "900Gi", "nvidia.com/gpu": "4"}
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    entrypoint = shlex.split(job["spec"]["entrypoint"])
    assert entrypoint[:4] == ["python", "-m", "lclab", "train"] and entrypoint[5:] == ["--ray", "--home", "/lab/runs"]
    path = Path(entrypoint[4])
    assert str(path.parent) in {m["mountPath"] for m in head["volumeMounts"]}
    (tmp_path / path.name).write_text(about["data"][path.name])
    assert load(tmp_path / path.name) == PLAN


def test_gpus_have_the_name_of_their_vendor() -> None:
    _, job = plan_job(PLAN, replace(CLUSTER, kind="mi300a"), Path("/lab/runs"), Pods("lab:1"))
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["amd.com/gpu"] == "4"


def test_a_submitted_job_takes_the_plan_along(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(dump(PLAN))
    (tmp_path / "large.bin").touch()
    words = shlex.split(job_line(tmp_path / "plan.yaml", Path("/lab/runs"), "http://head:8265"))
    assert words[:5] == ["ray", "job", "submit", "--address", "http://head:8265"]
    environment = yaml.safe_load(words[words.index("--runtime-env-json") + 1])
    assert environment["working_dir"] == str(tmp_path) and environment["excludes"] == ["/large.bin"]
    driver = words[words.index("--") + 1 :]
    assert driver == ["python", "-m", "lclab", "train", "plan.yaml", "--ray", "--home", "/lab/runs"]


@pytest.mark.parametrize("slurm", [None, SETTINGS])
def test_bash_takes_the_slurm_script(slurm: Slurm | None, tmp_path: Path) -> None:
    file = tmp_path / "job.sh"
    file.write_text(script(slurm=slurm))
    subprocess.run(["bash", "-n", str(file)], check=True)
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "-e", "SC1091", str(file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_the_slurm_script_runs_torchrun_on_every_node_and_is_begun_again(tmp_path: Path) -> None:
    """Run for real, with stand-ins for Slurm's commands and for Python that note what they are asked."""
    commands = {
        "srun": 'shift; exec "$@"',
        "python": f'printf "%s\\n" "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT" "$@" > {tmp_path}/asked; exit "${{FAILS:-0}}"',
        "scontrol": f'if [ "$1" = show ]; then printf "n1\\nn2\\nn3\\n"; else echo "$@" >> {tmp_path}/requeued; fi',
    }
    for name, text in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    text = slurm_script(PLAN, Path("/shared/a plan.yaml"), CLUSTER, tmp_path / "my runs")
    (tmp_path / "job.sh").write_text(text)
    around = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-3]"}

    def run(**more: str) -> int:
        return subprocess.run(["bash", str(tmp_path / "job.sh")], env=around | more).returncode

    assert run() == 0 and not (tmp_path / "requeued").exists() and (tmp_path / "my runs").is_dir()
    patience, *asked = (tmp_path / "asked").read_text().splitlines()
    before_the_limit = int(text.split("--signal=TERM@")[1].split()[0])
    assert 30 < int(patience) < before_the_limit, "torchrun would kill ranks in the midst of their last checkpoint"
    assert asked[:2] == ["-m", "torch.distributed.run"]
    arguments = get_args_parser().parse_args(asked[2:])
    assert (arguments.nnodes, arguments.nproc_per_node, arguments.rdzv_backend) == ("3", "4", "c10d")
    assert arguments.rdzv_endpoint.startswith("n1:") and arguments.max_restarts > 0 and arguments.module
    assert arguments.rdzv_id == "7-0"
    assert arguments.training_script == "lclab"
    rest = ["train", "/shared/a plan.yaml", "--home", str(tmp_path / "my runs")]
    assert arguments.training_script_args == rest
    assert run(FAILS="1") == 1 and (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert run(FAILS="1", SLURM_RESTART_COUNT="99") == 1 and (tmp_path / "requeued").read_text() == "requeue 7\n"


def test_slurm_is_asked_for_the_cluster() -> None:
    lines = script(slurm=SETTINGS).splitlines()
    options = dict(shlex.split(line)[1].split("=", 1) for line in lines if line.startswith("#SBATCH") and "=" in line)
    wanted = {"nodes": "3", "ntasks-per-node": "1", "gpus-per-node": "4", "cpus-per-task": "64", "time": "12:00:00"}
    assert {name: options[f"--{name}"] for name in wanted} == wanted and options["--account"] == "lab 7"
    assert "#SBATCH --requeue" in lines


def test_what_cannot_be_is_refused() -> None:
    other = replace(PLAN, parallel=Parallel("fsdp", devices=8))
    for call in (
        lambda: plan_job(other, CLUSTER, Path("/lab"), Pods("lab:1")),
        lambda: script(other),
    ):
        with pytest.raises(UsageError, match="parallel: the plan is for 8 ranks, and the cluster has 12 GPUs"):
            call()
    for call in (
        lambda: plan_job(PLAN, CLUSTER, Path("runs"), Pods("lab:1")),
        lambda: slurm_script(PLAN, Path("/plan.yaml"), CLUSTER, Path("runs")),
        lambda: job_line(Path("plan.yaml"), Path("runs"), "http://head:8265"),
    ):
        with pytest.raises(UsageError, match="home: 'runs' is not the full path"):
            call()
    with pytest.raises(UsageError, match="plan: 'plan.yaml' is not the full path"):
        slurm_script(PLAN, Path("plan.yaml"), CLUSTER, Path("/lab"))
    with pytest.raises(UsageError, match="slurm.partition"):
        script(slurm=Slurm(partition="a\n#SBATCH --exclusive"))
