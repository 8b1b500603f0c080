"""What a person sees while a sweep runs: one line on a terminal, now and then a line in a log."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sweeps.config import SweepConfig
from sweeps.driver import Snapshot

__all__ = ["Live"]

LOG_SECONDS = 20.0  # between lines where there is no terminal


class Live:
    """A progress bar over trials on a terminal; plain lines elsewhere."""

    def __init__(self, console: Console, config: SweepConfig) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("[bold]{task.fields[name]}"),
            BarColumn(24),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", name=config.name, text="starting", total=config.trials)
        self._logged = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)

    def watch(self, snapshot: Snapshot) -> None:
        text = describe(snapshot)
        self._progress.update(self._task, completed=_done(snapshot), text=text)
        if not self._console.is_terminal and time.monotonic() - self._logged > LOG_SECONDS:
            self._logged = time.monotonic()
            self.say(text)


def _done(snapshot: Snapshot) -> float:
    ended = sum(snapshot.states.get(s, 0) for s in ("complete", "pruned", "failed", "infeasible"))
    return ended + sum(share for _, share in snapshot.running.values())


def describe(snapshot: Snapshot) -> str:
    """One line: trials by state, speed, best so far, time left."""
    count = snapshot.states.get
    parts = [
        f"{count('complete', 0)} done, {count('pruned', 0)} pruned"
        + "".join(f", {count(state)} {state}" for state in ("failed", "infeasible") if count(state))
        + f", {len(snapshot.running)} running of {snapshot.trials}",
        f"{snapshot.speed:,.0f} tokens/s",
    ]
    if snapshot.best:
        parts.append(f"best {snapshot.best[0]} at {snapshot.best[1]:.3f}")
    if snapshot.left is not None:
        minutes, seconds = divmod(int(snapshot.left), 60)
        parts.append(f"{minutes}:{seconds:02d} left")
    return " · ".join(parts)
