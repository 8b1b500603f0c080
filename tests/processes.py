"""Processes that a test started: waiting for them, asking them, and what runs under them."""

import subprocess
import time
from collections.abc import Callable
from urllib.request import urlopen

__all__ = ["answer", "descendants", "wait_for"]


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
