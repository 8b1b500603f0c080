"""`lclab ui`: the MLflow UI and optuna-dashboard over a home folder, on loopback, until Ctrl-C.

The servers are told of databases by their environment, which nobody else can read: a URL may hold a password. No server
is asked anything: the addresses that are printed come from what is kept beside each sweep and promoted run.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, NamedTuple

import typer

from lclab.commands.options import HomePath
from search_space.errors import UsageError
from sweeps.home import Home, experiment_of, hide

__all__ = ["ui"]

_STUDY = "LCLAB_STUDY_URL"
_DASHBOARD = f"import os, sys; from optuna_dashboard._cli import main; sys.argv.append(os.environ['{_STUDY}']); main()"


class _Shown(NamedTuple):
    """A sweep, or a promoted run, which has no study. study, tracking: URLs of databases or servers.
    page: of its runs in MLflow, below the server's address; empty where MLflow has not been reached yet."""

    name: str
    study: str
    tracking: str
    page: str


def ui(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[SWEEP|PLAN]", help="To show alone, or where they keep to several databases."),
    ] = None,
    home: HomePath = Path("runs"),
    port: Annotated[int, typer.Option(help="Of MLflow; optuna-dashboard takes the next one.")] = 5000,
) -> None:
    """Serve the MLflow UI and optuna-dashboard on 127.0.0.1."""
    shown = _chosen(Home(home), name)
    study, tracking = max(one.study for one in shown), shown[0].tracking
    signal.signal(signal.SIGTERM, _interrupt)  # neither way of ending may leave the servers behind
    signal.signal(signal.SIGINT, _interrupt)
    servers: list[subprocess.Popen[bytes]] = []
    if study:
        dashboard = [sys.executable, "-c", _DASHBOARD, "--host", "127.0.0.1", "--port", str(port + 1)]
        servers.append(subprocess.Popen(dashboard, env=os.environ | {_STUDY: study}))
    address = hide(tracking)
    if not tracking.startswith("http"):  # else there is a server already
        mlflow = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port)]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true"} | os.environ
        servers.append(subprocess.Popen(mlflow, env=quiet | {"MLFLOW_BACKEND_STORE_URI": tracking}))
        address = f"http://127.0.0.1:{port}"
    print(f"MLflow            {address}")
    for one in shown:
        if one.page:
            print(f"  {one.name:<15} {address.rstrip('/')}/{one.page}")
    if study:
        print(f"optuna-dashboard  http://127.0.0.1:{port + 1}")
    if servers:
        print(f"Ctrl-C stops {'both' if len(servers) > 1 else 'it'}.", flush=True)
        _wait(servers, port)


def _wait(servers: list["subprocess.Popen[bytes]"], port: int) -> None:
    """Until Ctrl-C. Raises `UsageError` where a server ends by itself; the others are ended too."""
    try:
        while all(server.poll() is None for server in servers):
            time.sleep(0.5)
    except KeyboardInterrupt:
        return
    finally:
        for server in servers:  # all at once: each may take half a minute
            server.terminate()
        for server in servers:
            server.wait()
    raise UsageError(f"port: a server ended by itself; is {port} or {port + 1} taken? Choose another with --port")


def _chosen(home: Home, name: str | None) -> list[_Shown]:
    """All that is in `home`, or what has that name; of one study at most, and one tracking store."""
    known = [*home.sweeps(), *home.plans()]
    if not known:
        raise UsageError(f"home: no sweep or promoted run in {home.path}; run one first, such as `lclab demo`")
    if name is not None and name not in known:
        raise UsageError(f"name: {name!r} is no sweep or promoted run in {home.path} (there: {', '.join(known)})")
    chosen = list(_shown(home, name))
    if len({one.tracking for one in chosen}) > 1 or len({one.study for one in chosen if one.study}) > 1:
        raise UsageError(f"name: those in {home.path} are kept in several databases; name one: {', '.join(known)}")
    return chosen


def _shown(home: Home, name: str | None) -> Iterator[_Shown]:
    """MLflow's first page shows no trial, and no promoted run."""

    def page(experiment: str, view: str = "") -> str:
        return f"#/experiments/{experiment}/runs?workflowType=machine_learning{view}" if experiment else ""

    for sweep in home.sweeps():
        if name in (None, sweep):
            at, (experiment, _) = home.saved(sweep), home.sweep(sweep).runs()
            yield _Shown(sweep, at.study_url, at.tracking_url, page(experiment, "&viewStateShareKey=trials"))
    for plan, folder in home.plans().items():
        if name in (None, plan):
            yield _Shown(plan, "", home.of_plan(folder).tracking_url, page(experiment_of(folder)))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
