"""Batches ahead of time, and an end with a reason when none comes.

A thread asks the loader for the next batch while the model works on the present one. That is the same with and
without worker processes, and it is what tells a loader that hangs (on a file system, in a worker) from a slow one.
"""

import threading
from collections.abc import Iterable, Iterator
from queue import Empty, Full, Queue
from typing import Any

from trainer.trial import Stalled

__all__ = ["Patient"]

AHEAD = 2  # batches
_BLINK = 0.1  # seconds in which the thread notices that nobody reads any more


class Patient:
    """`loader`, iterated once, in a thread. Raises `Stalled` after `seconds` without a batch. To be closed."""

    def __init__(self, loader: Iterable[Any], seconds: float) -> None:
        self._loader, self._seconds = loader, seconds
        self._source: Any = None  # the loader's iterator
        self._batches: Queue[tuple[Any, BaseException | None]] = Queue(AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fetch, name="batches", daemon=True)

    def __iter__(self) -> Iterator[Any]:
        self._source = iter(self._loader)  # here: worker processes are not forked from a thread
        self._thread.start()
        while True:
            try:
                batch, error = self._batches.get(timeout=self._seconds)
            except Empty:
                raise Stalled(f"the loader gave no batch for {self._seconds:g} s") from None
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield batch

    def _fetch(self) -> None:
        error: BaseException | None = None
        while error is None and not self._closed.is_set():
            batch = None
            try:
                batch = next(self._source)
            except BaseException as caught:
                error = caught
            while not self._closed.is_set():
                try:
                    self._batches.put((batch, error), timeout=_BLINK)
                    break
                except Full:
                    continue

    def close(self) -> None:
        """End the thread and the loader's worker processes, also one that hangs.

        A thread at work while Python shuts down can abort the process; and workers left to the garbage collector would
        live on in a process that trains many trials.
        """
        self._closed.set()
        if self._thread.ident is None:
            return
        self._thread.join(timeout=10 * _BLINK)
        if hasattr(self._source, "_shutdown_workers"):  # torch's own way, which it offers in no other form
            self._source._shutdown_workers()
