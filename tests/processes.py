"""Processes that a test started: waiting for them, asking them, and what runs under them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

__all__ = ["answer", "descendants", "free_port", "torchrun", "tracking_server", "wait_for"]


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def answer(url: str) -> str:
    """What a server says; nothing while there is none."""
    try:
        with urlopen(url, timeout=5) as response:
            return response.read().decode()
    except OSError:
        return ""


def descendants(process: int) -> list[tuple[int, str]]:
    """Process id and command line of everything that a process has started."""
    rows = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    table = [(int(pid), int(parent), args) for pid, parent, args in (r.split(maxsplit=2) for r in rows.splitlines())]
    found, wave = [], {process}
    while wave:
        children = [(pid, args) for pid, parent, args in table if parent in wave]
        found += children
        wave = {pid for pid, _ in children}
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def torchrun(ranks: int, module: str, *arguments: object) -> None:
    """Run a module of the tests as so many ranks, to its end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", module]
    environment, root = os.environ | {"OMP_NUM_THREADS": "1"}, Path(__file__).parents[1]
    done = subprocess.run([*command, *map(str, arguments)], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@contextmanager
def tracking_server(folder: Path, port: int) -> Generator[None]:
    """MLflow's own, with its database and its artifacts in `folder`."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--artifacts-destination", str(folder)]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
