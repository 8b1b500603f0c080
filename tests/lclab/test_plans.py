"""`lclab train PLAN` for real: four stages on two FSDP ranks, by torchrun and by Ray Train, killed and continued."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from sweeps.home import Home
from tests.lclab.plan_runs import ROOT, STEPS, end, kill_a_rank, kill_all, reaches, run_of, start, torchrun
from tests.processes import wait_for
from tests.trainer.staged import plan
from tests.trainer.test_stages import assert_same_run, folders
from trainer.corpus import Corpus
from trainer.stages import read_state
from trainer.trial import RungResult

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_torchrun_killed_in_a_stage_and_between_two(whole: Path, plan_file: Path, tmp_path: Path) -> None:
    """First a rank, which torchrun starts again; then everything."""
    child = torchrun(tmp_path, plan_file)
    wait_for(reaches(tmp_path, 1, 10), child)
    kill_a_rank(child, "lclab train")
    wait_for(lambda: RungResult.path(folders(run_of(tmp_path))[1], 1).exists(), child)
    kill_all(child)
    assert not RungResult.path(folders(run_of(tmp_path))[3], 1).exists(), "too late to show anything"
    end(torchrun(tmp_path, plan_file))
    assert_same_run(run_of(tmp_path), run_of(whole))


def test_ray_train_killed_twice(whole: Path, plan_file: Path, tmp_path: Path) -> None:
    """Two ranks in two stages; the same command goes on by itself, and computes what torchrun's ranks do."""
    child = start(tmp_path, plan_file, "--ray")
    for stage in (0, 2):
        wait_for(reaches(tmp_path, stage, 10), child)
        kill_a_rank(child, "ray::RayTrainWorker")
    end(child)
    assert_same_run(run_of(tmp_path), run_of(whole))


def test_mlflow_shows_one_run_with_the_curves_of_every_stage(corpus: Corpus, whole: Path) -> None:
    client = MlflowClient(tracking_uri=Home(whole).tracking_url)
    experiment = client.get_experiment_by_name("staged")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["lclab.outcome.verdict"] == "inside" and run.data.tags["lclab.stage"] == "sft"
    state = read_state(plan(corpus.folder, steps=STEPS), run_of(whole))
    all_points = client.get_metric_history(run.info.run_id, "train_loss")
    assert len(all_points) == len({p.step for p in all_points}) == sum(len(stage.curve) for stage in state)
    for number, stage in enumerate(state):
        points = client.get_metric_history(run.info.run_id, f"{number}-{stage.name}/train_loss")
        assert [(p.step, p.value) for p in points] == [(tokens, loss) for tokens, loss, _ in stage.curve]
        held_out = client.get_metric_history(run.info.run_id, f"{number}-{stage.name}/heldout_continue")
        assert len(held_out) == len(stage.evaluations) == STEPS // 2
    paths = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert paths >= {"plan.yaml", "outcome.yaml"}
    assert run.inputs is not None
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.digest == corpus.manifest["hash"][:12]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("length=100", "length: .* was begun with another value"),
        ("tokenizer=abc", "corpus: the tokenizer of .* has SHA-256"),
        ("corpus=/nowhere", "corpus: /nowhere has no readable manifest.json"),
        ("parallel.devices=3", "parallel.devices: 2 processes were started for 3 ranks"),
        ("stages.0.steps=0", r"stages\[0\].steps: 0 is not at least 1"),
        ("rate=1", "Key 'rate' not in 'Plan'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(whole: Path, plan_file: Path, option: str, message: str) -> None:
    before = sorted(p.stat().st_mtime_ns for p in run_of(whole).rglob("*"))
    environment = os.environ | {"WORLD_SIZE": "2", "RANK": "0"}
    command = [sys.executable, "-m", "lclab", "train", str(plan_file), option, "--home", str(whole)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert re.search(message, done.stderr), done.stderr
    assert sorted(p.stat().st_mtime_ns for p in run_of(whole).rglob("*")) == before
