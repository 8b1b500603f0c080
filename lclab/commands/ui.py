"""`lclab ui`: the MLflow UI and optuna-dashboard over a home folder, on loopback, until Ctrl-C."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from lclab.commands.options import HomePath
from search_space.errors import UsageError
from sweeps.home import Home

__all__ = ["ui"]


def ui(
    home: HomePath = Path("runs"),
    port: Annotated[int, typer.Option(help="Of MLflow; optuna-dashboard takes the next one.")] = 5000,
) -> None:
    """Serve the MLflow UI and optuna-dashboard on 127.0.0.1."""
    where = Home(home)
    if not where.sweeps():
        raise UsageError(f"home: no sweep in {home}; run one first, such as `lclab demo`")
    signal.signal(signal.SIGTERM, _interrupt)  # neither way of ending may leave the servers behind
    signal.signal(signal.SIGINT, _interrupt)
    python = [sys.executable, "-m"]
    mlflow = [*python, "mlflow", "ui", "--backend-store-uri", where.tracking_url, "--host", "127.0.0.1"]
    dashboard = [str(Path(sys.executable).with_name("optuna-dashboard")), where.study_url, "--host", "127.0.0.1"]
    servers = [
        subprocess.Popen([*mlflow, "--port", str(port)]),
        subprocess.Popen([*dashboard, "--port", str(port + 1)]),
    ]
    print(f"MLflow            http://127.0.0.1:{port}")
    print(f"optuna-dashboard  http://127.0.0.1:{port + 1}\nCtrl-C stops both.")
    try:
        while all(server.poll() is None for server in servers):
            time.sleep(0.5)
    except KeyboardInterrupt:
        return
    finally:
        for server in servers:
            server.terminate()
            server.wait()
    raise UsageError(f"port: a server ended by itself; is {port} or {port + 1} taken? Choose another with --port")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
