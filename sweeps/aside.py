"""A view of a sweep that is kept up to date in a thread of its own."""

import threading
from collections.abc import Iterable
from typing import Protocol

__all__ = ["Aside"]


class View(Protocol):
    def update(self, numbers: Iterable[int]) -> None:
        """Bring these trials up to date; raises nothing."""


class Aside:
    """Updates a view in a thread, so that a slow server or one that is away holds nobody up. To be closed."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._waiting: set[int] = set()
        self._closed = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="MLflow", daemon=True)
        self._thread.start()

    def update(self, numbers: set[int]) -> None:
        """Returns at once. Updates that come while another is under way are taken together."""
        with self._news:
            self._waiting |= numbers
            self._news.notify()

    def close(self) -> None:
        """After the last update."""
        with self._news:
            self._closed = True
            self._news.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self._closed)
                numbers, self._waiting = self._waiting, set()
            if not numbers:
                return
            self._view.update(numbers)
