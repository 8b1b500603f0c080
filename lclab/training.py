"""What every training from the command line has: its ranks, its signals, its bar, and Ray."""

import logging
import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from search_space.errors import UsageError

if TYPE_CHECKING:
    from trainer.parallel import Parallel

__all__ = ["check_launch", "first_rank", "on_ray", "step_bar", "stopped_by_signals"]


def first_rank() -> bool:
    """Whether this process is the one that speaks, of those that a launcher has started."""
    return int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0) == 0


def check_launch(parallel: "Parallel", ray: bool) -> None:
    """Raise `UsageError` where the processes that there are, or will be, are not those of `parallel`."""
    if ray and parallel.strategy == "one":
        raise UsageError("parallel.strategy: Ray Train runs ddp or fsdp; one process needs no --ray")
    started = int(os.environ.get("WORLD_SIZE", parallel.ranks))  # as torchrun says
    if started != parallel.ranks:
        raise UsageError(
            f"parallel.devices: {started} processes were started for {parallel.ranks} ranks; make them equal"
        )


@contextmanager
def on_ray(address: str) -> Generator[None]:
    """Connected to the cluster at `address`, or to one that is started here."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def stopped_by_signals() -> Generator[Callable[[], bool]]:
    """Ctrl-C or SIGTERM asks to stop after the step, with a checkpoint; a second one at once."""
    asked: list[int] = []

    def stop(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    old = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def step_bar(console: Console, steps: int) -> Generator[Callable[[int, int], None]]:
    at = TextColumn("step {task.completed} of {task.total}, {task.fields[tokens]:,} tokens")
    columns = (at, BarColumn(24), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=steps, tokens=0)
        yield lambda step, tokens: progress.update(task, completed=step, tokens=tokens)
