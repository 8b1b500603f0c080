"""Where a sweep keeps things, and the lock that lets one driver at a time write there.

runs/                     home, shared by all sweeps
  optuna.db  mlflow.db  mlartifacts/  corpora/
  <sweep>/sweep.yaml      resolved configuration    <sweep>/corpus.txt  which of the corpora
  <sweep>/trials/0007/    checkpoints and rung results of trial 7
  <sweep>/trials.parquet  the tidy table     <sweep>/curves.parquet  training curves
  <sweep>/report.html     <sweep>/driver.lock
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from search_space.errors import UsageError

__all__ = ["Home", "SweepFolder"]


@dataclass(frozen=True)
class SweepFolder:
    path: Path

    @property
    def config(self) -> Path:
        return self.path / "sweep.yaml"

    @property
    def corpus(self) -> Path:
        """Holds the name of the corpus that the sweep was begun on."""
        return self.path / "corpus.txt"

    @property
    def table(self) -> Path:
        return self.path / "trials.parquet"

    @property
    def curves(self) -> Path:
        return self.path / "curves.parquet"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def _lock(self) -> Path:
        return self.path / "driver.lock"

    def trial(self, number: int) -> Path:
        return self.path / "trials" / f"{number:04d}"

    @contextmanager
    def locked(self) -> Generator[None]:
        """Hold the sweep for one driver. The lock goes with the process, however that ends.

        Raises `UsageError` naming the process that holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        name, lock = self.path.name, FileLock(self._lock)
        try:
            lock.acquire(timeout=1)  # `driver` holds it for an instant to see whether it is free
        except Timeout:
            raise UsageError(
                f"sweep: {name!r} is already run by process {self.driver() or '?'}; "
                f"watch it with `lclab sweep status {name}` or end it with `lclab sweep stop {name}`"
            ) from None
        try:
            self._pid.write_text(str(os.getpid()))
            yield
        finally:
            self._pid.unlink(missing_ok=True)
            lock.release()

    @property
    def _pid(self) -> Path:
        return self.path / "driver.pid"

    def driver(self) -> int | None:
        """The process that runs this sweep now, None where none does."""
        lock = FileLock(self._lock)
        if not self._lock.exists():
            return None
        try:
            with lock.acquire(timeout=0):
                return None
        except Timeout:
            try:
                return int(self._pid.read_text())
            except (OSError, ValueError):
                return None


@dataclass(frozen=True)
class Home:
    path: Path

    @property
    def study_url(self) -> str:
        return f"sqlite:///{self.path.resolve()}/optuna.db"

    @property
    def tracking_url(self) -> str:
        return f"sqlite:///{self.path.resolve()}/mlflow.db"

    @property
    def artifacts(self) -> Path:
        return self.path.resolve() / "mlartifacts"

    @property
    def corpora(self) -> Path:
        return self.path / "corpora"

    def sweeps(self) -> list[str]:
        return sorted(p.parent.name for p in self.path.glob("*/sweep.yaml"))

    def sweep(self, name: str) -> SweepFolder:
        """The folder of a sweep, existing or not."""
        return SweepFolder(self.path / name)

    def existing(self, name: str) -> SweepFolder:
        """The folder of a sweep that was run. Raises `UsageError` naming those that were."""
        if name not in self.sweeps():
            known = ", ".join(self.sweeps()) or "none yet"
            raise UsageError(f"sweep: {name!r} is not in {self.path} (there: {known})")
        return self.sweep(name)
