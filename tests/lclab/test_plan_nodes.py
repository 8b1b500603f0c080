"""`lclab train PLAN` on two nodes that go away, under Ray Train and torchrun: it goes on, and computes the same."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from sweeps.fleet import Cluster as Machines
from sweeps.launch import slurm_script
from tests.lclab.plan_runs import end, kill_all, launch, reaches, run_of, start, torchrun
from tests.processes import descendants, free_port, wait_for
from tests.ray_nodes import add_node, bare_cluster, logs, raylet
from tests.trainer.test_stages import assert_same_run, folders
from trainer.plan import dump, load
from trainer.trial import RungResult

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TWO_NODES = ("parallel.devices=1", "parallel.nodes=2")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head, and two nodes with room for a rank each."""
    with bare_cluster() as cluster:
        for _ in range(2):
            add_node(cluster)
        yield cluster


def carries(cluster: Cluster, rank: int) -> Any:
    """The node with a rank of the training that is under way."""
    told = "".join(file.read_text() for file in logs(cluster).rglob("ray-train-sys-controller*"))
    mine = {int(process) for process in re.findall(rf"pid=(\d+)\) world_rank={rank},", told)}
    (node,) = (n for n in cluster.worker_nodes if mine & dict(descendants(raylet(n))).keys())
    return node


def says(child: "subprocess.Popen[str]", words: str) -> bool:
    """Waits until it does, or has ended."""
    assert child.stderr is not None
    return any(words in line for line in child.stderr)


def test_ray_waits_for_the_node_that_it_has_lost(
    cluster: Cluster, whole: Path, plan_file: Path, tmp_path: Path
) -> None:
    """First the one with the second rank, then the one with the first."""
    child = start(tmp_path, plan_file, "--ray", *TWO_NODES, RAY_ADDRESS=cluster.address)
    for stage, rank in ((0, 1), (2, 0)):
        wait_for(reaches(tmp_path, stage, 10), child)
        cluster.remove_node(carries(cluster, rank), allow_graceful=False)
        assert says(child, "goes on from the last checkpoint")
        assert says(child, "no room for 2 ranks of 1 CPU each; waits for nodes")
        add_node(cluster)
    end(child)
    assert_same_run(run_of(tmp_path), run_of(whole))


SRUN = """#!/bin/bash
shift
for node in 1 2; do "$@" & done
status=0
for node in 1 2; do
  wait -n || { status=$?; kill -TERM $(jobs -p) 2> /dev/null; }  # what --kill-on-bad-exit asks for
done
exit "$status"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$(dirname "$0")/requeued"; fi
"""


@pytest.fixture
def batch_script(plan_file: Path, tmp_path: Path) -> Path:
    """What `lclab launch` renders for two nodes, beside stand-ins for Slurm's commands whose nodes are all here."""
    (tmp_path / "plan.yaml").write_text(dump(load(plan_file, TWO_NODES)))
    text = slurm_script(load(tmp_path / "plan.yaml"), tmp_path / "plan.yaml", Machines(2, 1, "h100"), tmp_path)
    (tmp_path / "job.sh").write_text(text.replace(":29500", f":{free_port()}"))
    for name, command in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(command)
        (tmp_path / name).chmod(0o755)
    return tmp_path / "job.sh"


def submit(script: Path, restarts: int) -> "subprocess.Popen[str]":
    path = f"{script.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_RESTART_COUNT": str(restarts)}
    return launch("bash", str(script), PATH=path, GLOO_SOCKET_IFNAME="lo", **job)


def ranks(job: "subprocess.Popen[str]") -> dict[int, tuple[int, int]]:
    """The processes of each rank and of the torchrun that has started it."""
    found = {}
    for agent, line in descendants(job.pid):
        if "torch.distributed.run" in line and "srun" not in line:
            for process, _ in descendants(agent):
                environment = Path(f"/proc/{process}/environ").read_text().split("\0")
                found |= {int(e[5:]): (process, agent) for e in environment if e.startswith("RANK=")}
    return found


def test_slurm_begins_anew_what_a_node_took_with_it(batch_script: Path, whole: Path, tmp_path: Path) -> None:
    """Before that a rank dies on each node, which torchrun makes good by itself."""
    job = submit(batch_script, 0)
    for rank, stage in ((1, 0), (0, 1)):
        wait_for(reaches(tmp_path, stage, 10), job)
        os.kill(ranks(job)[rank][0], signal.SIGKILL)
    wait_for(reaches(tmp_path, 2, 10), job)
    process, agent = ranks(job)[1]
    os.kill(agent, signal.SIGKILL)
    os.kill(process, signal.SIGKILL)
    job.communicate(timeout=120)
    assert job.returncode != 0 and (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert not RungResult.path(folders(run_of(tmp_path))[2], 1).exists(), "too late to show anything"
    again = submit(batch_script, 1)
    _, told = again.communicate(timeout=300)
    assert again.returncode == 0, told[-3000:]
    assert_same_run(run_of(tmp_path), run_of(whole))


def test_two_ranks_then_one_then_two_read_the_same(whole: Path, plan_file: Path, tmp_path: Path) -> None:
    """Each is killed in the midst of a stage."""
    alone = ("parallel.strategy=one", "parallel.devices=1")
    launches = (torchrun, lambda home, file: start(home, file, *alone))
    for stage, begin in enumerate(launches, 1):
        child = begin(tmp_path, plan_file)
        wait_for(reaches(tmp_path, stage, 10), child)
        kill_all(child)
        assert not RungResult.path(folders(run_of(tmp_path))[stage], 1).exists(), "too late to show anything"
    end(torchrun(tmp_path, plan_file))
    for one, two in zip(folders(run_of(tmp_path)), folders(run_of(whole)), strict=True):
        a, b = (RungResult.load(RungResult.path(f, 1)) for f in (one, two))
        assert [(tokens, rate) for tokens, _, rate in a.curve] == [(tokens, rate) for tokens, _, rate in b.curve]
        assert [loss for _, loss, _ in a.curve] == pytest.approx([loss for _, loss, _ in b.curve], rel=1e-4)
        assert a.tokens == b.tokens and a.heldout.loss == pytest.approx(b.heldout.loss, rel=1e-4)
