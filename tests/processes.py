"""What runs under a process."""

import subprocess

__all__ = ["descendants"]


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
