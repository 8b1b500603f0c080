"""Where sweeps and promoted runs keep things, and the lock that lets one driver at a time write to a sweep.

runs/                     home, shared by all sweeps
  optuna.db  mlflow.db  mlartifacts/  corpora/      the first three may be elsewhere: study_url, tracking_url, ...
  <sweep>/sweep.yaml      resolved configuration    <sweep>/corpus.txt  which of the corpora
  <sweep>/trials/0007/    checkpoints and rung results of trial 7
  <sweep>/trials.parquet  the tidy table     <sweep>/curves.parquet  training curves
  <sweep>/report.html     <sweep>/driver.lock    <sweep>/mlflow.json  experiment, and the run of each trial
  plans/<plan>/plan.yaml  as it was last continued    plans/<plan>/mlflow.json  experiment and run
"""

import json
import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

from filelock import FileLock, Timeout

from search_space.errors import UsageError
from search_space.files import write_json

__all__ = ["Home", "SweepFolder", "experiment_of", "hide", "note_run", "reachable", "setting_up"]


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
    def _mlflow(self) -> Path:
        return self.path / "mlflow.json"

    def note_runs(self, experiment: str, runs: Mapping[int, str]) -> None:
        """Keep MLflow's ids, so that whoever shows the sweep need not ask MLflow."""
        write_json(self._mlflow, {"experiment": experiment, "runs": runs})

    def runs(self) -> tuple[str, dict[int, str]]:
        """MLflow's id of the experiment, and of the run of each trial; empty where MLflow has not been reached yet."""
        if not self._mlflow.exists():
            return "", {}
        noted = json.loads(self._mlflow.read_text())
        return noted["experiment"], {int(number): run for number, run in noted["runs"].items()}

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
        self._stop.unlink(missing_ok=True)
        try:
            self._pid.write_text(str(os.getpid()))
            yield
        finally:
            self._pid.unlink(missing_ok=True)
            self._stop.unlink(missing_ok=True)
            lock.release()

    @property
    def _pid(self) -> Path:
        return self.path / "driver.pid"

    @property
    def _stop(self) -> Path:
        return self.path / "stop"

    def ask_to_stop(self) -> None:
        """By a file: the driver may be on another machine that shares this folder, where its process is another."""
        self._stop.touch()

    def asked_to_stop(self) -> bool:
        return self._stop.exists()

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
    """study, tracking, artifacts: URLs of servers and stores that are used in place of the home's own files."""

    path: Path
    study: str = ""
    tracking: str = ""
    artifacts: str = ""

    def of(self, config: Any) -> "Home":
        """This home with the URLs of a sweep's configuration, or of what was saved of one."""
        names = {"study": "study_url", "tracking": "tracking_url", "artifacts": "artifacts_url"}
        return replace(self, **{field: getattr(config, name, None) or "" for field, name in names.items()})

    def saved(self, name: str) -> "Home":
        """This home with the URLs of a sweep that was run."""
        from omegaconf import OmegaConf

        return self.of(OmegaConf.load(self.existing(name).config))

    @property
    def study_url(self) -> str:
        return self.study or f"sqlite:///{self.path.resolve()}/optuna.db"

    @property
    def tracking_url(self) -> str:
        return self.tracking or f"sqlite:///{self.path.resolve()}/mlflow.db"

    def artifacts_of(self, name: str) -> str | None:
        """Where the artifacts of a sweep go; None where an MLflow server knows best."""
        if self.artifacts:
            return f"{self.artifacts.rstrip('/')}/{name}"
        return None if self.tracking.startswith("http") else f"file://{self.path.resolve()}/mlartifacts/{name}"

    @property
    def corpora(self) -> Path:
        return self.path / "corpora"

    def sweeps(self) -> list[str]:
        return sorted(p.parent.name for p in self.path.glob("*/sweep.yaml"))

    def plans(self) -> dict[str, Path]:
        """Name and folder of the plans that were trained."""
        return {path.parent.name: path.parent for path in sorted(self.path.glob("plans/*/plan.yaml"))}

    def of_plan(self, folder: Path) -> "Home":
        """This home with the URL of a plan that was trained."""
        from omegaconf import OmegaConf

        return self.of(OmegaConf.load(folder / "plan.yaml"))

    def sweep(self, name: str) -> SweepFolder:
        """The folder of a sweep, existing or not."""
        return SweepFolder(self.path / name)

    def existing(self, name: str) -> SweepFolder:
        """The folder of a sweep that was run. Raises `UsageError` naming those that were."""
        if name not in self.sweeps():
            known = ", ".join(self.sweeps()) or "none yet"
            raise UsageError(f"sweep: {name!r} is not in {self.path} (there: {known})")
        return self.sweep(name)


def note_run(folder: Path, experiment: str, run: str) -> None:
    """Keep MLflow's ids in a plan's folder, as `SweepFolder.note_runs` does in a sweep's."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "mlflow.json", {"experiment": experiment, "run": run})


def experiment_of(folder: Path) -> str:
    """MLflow's id of a plan's experiment; empty where MLflow has not been reached yet."""
    noted = folder / "mlflow.json"
    return json.loads(noted.read_text())["experiment"] if noted.exists() else ""


def hide(text: str) -> str:
    """`text` with the passwords of URLs in it made unreadable."""
    return re.sub(r"(://[^:/@\s]*:)[^@/\s]+@", r"\1***@", text)


def reachable(field: str, url: str) -> None:
    """Raise `UsageError` where no database answers at `url`, or nothing is installed that speaks with it."""
    if url.startswith("sqlite:"):
        return
    from sqlalchemy.exc import SQLAlchemyError  # here: half a second that `--help` need not take

    try:
        with _connected(url):
            pass
    except ImportError as error:
        needed = "pip install 'latent-context-lab[postgres]'" if url.startswith("postgres") else error
        raise UsageError(f"{field}: nothing installed here speaks with {hide(url)}: {needed}") from error
    except SQLAlchemyError as error:
        reason = hide(str(error).splitlines()[0])[:300]
        raise UsageError(f"{field}: no database answers at {hide(url)}: {reason}") from error


@contextmanager
def setting_up(url: str) -> Generator[None]:
    """While a database may have to be created: two sweeps that create its tables at once would stumble.

    On PostgreSQL one process at a time, wherever it runs. SQLite files are locked as they are.
    """
    if not url.startswith("postgres"):
        yield
        return
    from sqlalchemy import text

    with _connected(url) as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": crc32(b"lclab")})  # ends with the connection
        yield


@contextmanager
def _connected(url: str) -> Generator[Any]:
    from sqlalchemy import NullPool, create_engine

    with create_engine(url, poolclass=NullPool).connect() as connection:
        yield connection
