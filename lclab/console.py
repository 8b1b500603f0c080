"""Where a command prints to."""

from rich.console import Console

__all__ = ["make_console"]

LOG_WIDTH = 150  # a log has no width of its own, and rich's eighty columns would break every line of a table


def make_console(stderr: bool = False) -> Console:
    """As wide as the terminal, or wide enough for a table where there is none."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=LOG_WIDTH)
