"""`lclab train PLAN` started as users do: the processes of a run, what it has reached, and killing parts of it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.processes import descendants
from tests.trainer.test_stages import folders
from trainer import checkpoint

__all__ = ["ROOT", "STEPS", "end", "kill_a_rank", "kill_all", "launch", "reaches", "run_of", "start", "torchrun"]

STEPS = 24  # of a stage
ROOT = Path(__file__).parents[2]


def launch(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
    """In a group of its own."""
    around = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(arguments, cwd=ROOT, env=around, text=True, stdout=-1, stderr=-1, start_new_session=True)


def start(
    home: Path, file: Path, *options: str, launcher: tuple[str, ...] = (), **environment: str
) -> "subprocess.Popen[str]":
    train = ("-m", "lclab", "train", str(file), "--home", str(home), "--json", *options)
    return launch(sys.executable, *launcher, *train, **environment)


def torchrun(home: Path, file: Path) -> "subprocess.Popen[str]":
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2")
    return start(home, file, launcher=launcher)


def end(child: "subprocess.Popen[str]") -> dict[str, Any]:
    """What the run says once it has finished."""
    out, err = child.communicate(timeout=300)
    assert child.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def run_of(home: Path) -> Path:
    return home / "plans" / "staged"


def reaches(home: Path, stage: int, step: int) -> Callable[[], bool]:
    """Whether a run has written its checkpoint of a step of a stage."""
    return lambda: checkpoint.path_of(folders(run_of(home))[stage], step).exists()


def kill_a_rank(child: "subprocess.Popen[str]", name: str) -> None:
    """The last that was started, by SIGKILL."""
    ranks = [pid for pid, line in descendants(child.pid) if name in line and "torch.distributed.run" not in line]
    assert ranks
    os.kill(max(ranks), signal.SIGKILL)


def kill_all(child: "subprocess.Popen[str]") -> None:
    started = [pid for pid, _ in descendants(child.pid)]
    for pid in (child.pid, *started):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    child.communicate()
