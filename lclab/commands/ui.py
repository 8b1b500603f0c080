"""`lclab ui`: the MLflow UI and optuna-dashboard over a home folder, on loopback, until Ctrl-C.

The servers are told of databases by their environment, which nobody else can read: a URL may hold a password.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from lclab.commands.options import HomePath
from search_space.errors import UsageError
from sweeps.home import Home, hide

__all__ = ["ui"]

_STUDY = "LCLAB_STUDY_URL"
_DASHBOARD = f"import os, sys; from optuna_dashboard._cli import main; sys.argv.append(os.environ['{_STUDY}']); main()"


def ui(
    name: Annotated[
        str | None, typer.Argument(metavar="[SWEEP]", help="Whose databases, where sweeps keep to several.")
    ] = None,
    home: HomePath = Path("runs"),
    port: Annotated[int, typer.Option(help="Of MLflow; optuna-dashboard takes the next one.")] = 5000,
) -> None:
    """Serve the MLflow UI and optuna-dashboard on 127.0.0.1."""
    where = _databases(Home(home), name)
    signal.signal(signal.SIGTERM, _interrupt)  # neither way of ending may leave the servers behind
    signal.signal(signal.SIGINT, _interrupt)
    dashboard = [sys.executable, "-c", _DASHBOARD, "--host", "127.0.0.1", "--port", str(port + 1)]
    servers = [subprocess.Popen(dashboard, env=os.environ | {_STUDY: where.study_url})]
    if where.tracking_url.startswith("http"):  # a server already
        print(f"MLflow            {hide(where.tracking_url)}")
    else:
        mlflow = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port)]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true"} | os.environ
        servers.append(subprocess.Popen(mlflow, env=quiet | {"MLFLOW_BACKEND_STORE_URI": where.tracking_url}))
        print(f"MLflow            http://127.0.0.1:{port}")
    for line in _views(where, [name] if name else where.sweeps(), port):
        print(line)
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


def _views(home: Home, names: list[str], port: int) -> Iterator[str]:
    """Where MLflow shows the trials of each sweep; its first page shows none."""
    server = hide(home.tracking_url).rstrip("/") if home.tracking_url.startswith("http") else f"http://127.0.0.1:{port}"
    for name in names:
        experiment, _ = home.sweep(name).runs()
        if experiment:
            page = f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey=trials"
            yield f"  {name:<15} {page}"


def _databases(home: Home, name: str | None) -> Home:
    """The home with the URLs of its sweeps, or of the one that is named."""
    names = [name] if name else home.sweeps()
    if not names:
        raise UsageError(f"home: no sweep in {home.path}; run one first, such as `lclab demo`")
    found = {(known.study_url, known.tracking_url): known for known in map(home.saved, names)}
    if len(found) > 1:
        raise UsageError(f"sweep: those in {home.path} are kept in several databases; name one: {', '.join(names)}")
    return next(iter(found.values()))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
