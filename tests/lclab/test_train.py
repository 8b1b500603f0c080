"""`lclab train`: one design from the command line, continued, on several ranks, and with Ray Train."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from signal import SIGINT
from typing import Any

import pytest

from tests.sweeps.virtual import MINI

ROOT = Path(__file__).parents[2]
DESIGN = "mean-w16-causal-mlp-O0-n4"


def start(home: Path, text_folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    lclab = Path(sys.executable).with_name("lclab")
    command = [str(lclab), "train", DESIGN, str(MINI), f"corpus.source={text_folder}", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LCLAB_HOME": str(home)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=-1, stderr=-1)


def train(home: Path, text_folder: Path, *arguments: str) -> dict[str, Any]:
    child = start(home, text_folder, *arguments, "--json")
    out, err = child.communicate()
    assert child.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


@pytest.mark.slow
def test_trains_continues_and_finishes_at_once(tmp_path: Path, text_folder: Path) -> None:
    child = start(tmp_path, text_folder, "recipe.steps=400")
    while not list(tmp_path.glob("train/*/step-?????????")):
        assert child.poll() is None, child.communicate()[1][-3000:]
        time.sleep(0.02)
    child.send_signal(SIGINT)
    out, _ = child.communicate()
    assert child.returncode == 130 and "The same command continues" in out
    (folder,) = (tmp_path / "train").iterdir()
    reached = sorted(folder.glob("step-*"))[-1].name
    assert not list(folder.glob("rung-2*")) and reached < "step-000000400"
    other = start(tmp_path, text_folder, "recipe.steps=30")
    _, err = other.communicate()
    assert other.returncode == 2 and "name=NEW" in err
    child = start(tmp_path, text_folder, "recipe.steps=400", "--json")
    out, _ = child.communicate()
    found = json.loads(out)
    assert found["step"] == 400 and found["heldout"]["distance"]["continue"]


@pytest.mark.slow
def test_ranks_of_ray_train_compute_what_ranks_of_lightning_do(tmp_path: Path, text_folder: Path) -> None:
    ranks = ("parallel.strategy=fsdp", "parallel.devices=2", "recipe.pieces=6", "recipe.precision=32-true")
    here = train(tmp_path, text_folder, *ranks)
    ray = train(tmp_path, text_folder, *ranks, "name=ray", "--ray")
    assert ray["heldout"]["documents"] == here["heldout"]["documents"]
    assert ray["curve"] == here["curve"] and ray["step"] == 12
