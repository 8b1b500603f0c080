"""What all views in MLflow have in common: how its server is spoken to, and where runs come from."""

import getpass
import json
import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Experiment, InputTag
from mlflow.exceptions import MlflowException
from mlflow.utils.git_utils import get_git_commit
from sqlalchemy.exc import SQLAlchemyError

from sweeps.home import Home, hide, setting_up
from trainer.corpus import Corpus

__all__ = [
    *("EXPERIMENT_TAGS", "FAULTS", "LARGEST_BATCH", "View"),
    *("connect", "dataset", "first_line", "provenance", "settle", "user"),
]

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # else the UI opens its view for chat traces
FAULTS = (MlflowException, OSError, SQLAlchemyError)  # of the server, or of the way to it
LARGEST_BATCH = 1000  # metrics, or runs, that MLflow takes at once
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # what does not get through is drawn again later
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines for every run that ends, in the middle of --json
}
_log = logging.getLogger(__name__)


class View:
    """What is drawn in the MLflow of `home`. Faults of its server are logged: whatever is drawn can be drawn again."""

    def __init__(self, home: Home) -> None:
        settle()
        self._home = home

    @cached_property
    def client(self) -> MlflowClient:
        """Made at the first use: it takes seconds to make a new database."""
        return connect(self._home)

    @contextmanager
    def _forgiving(self, trouble: str) -> Generator[None]:
        """A fault of the server ends what is done in here; the log says `trouble`."""
        try:
            yield
        except FAULTS as error:
            _log.warning("%s: %s", trouble, first_line(error))

    def _experiment_of(self, name: str, tags: dict[str, str]) -> Experiment:
        """The experiment of that name as it is, or made with `tags`."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            number = self.client.create_experiment(name, self._home.artifacts_of(name), EXPERIMENT_TAGS | tags)
            found = self.client.get_experiment(number)
        return found


def settle() -> None:
    """MLflow's manners; before it is first used."""
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def connect(home: Home) -> MlflowClient:
    """Takes seconds where a database has to be made."""
    with setting_up(home.tracking_url):
        return MlflowClient(tracking_uri=home.tracking_url)


def provenance(command: str) -> dict[str, str]:
    """Tags that say where a run comes from."""
    return {
        "mlflow.source.name": command,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": get_git_commit(str(Path(__file__).parent)) or "unknown",
        "mlflow.user": user(),
    }


def dataset(corpus: Corpus) -> DatasetInput:
    """A corpus as what a run was trained on."""
    manifest = corpus.manifest
    source = json.dumps({"source": manifest["config"]["source"], "folder": str(corpus.folder)})
    data = Dataset(manifest["name"], manifest["hash"][:12], "local", source, profile=json.dumps(manifest["counts"]))
    return DatasetInput(data, [InputTag("mlflow.data.context", "training")])


def user() -> str:
    """Of this process; in a container its number may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def first_line(error: Exception) -> str:
    return hide(str(error).splitlines()[0]) if str(error) else type(error).__name__
