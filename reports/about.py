"""Where a report's numbers come from, which its tables do not know."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["About"]


@dataclass(frozen=True)
class About:
    """name: of the sweep. config: its resolved YAML, free of passwords. command: continues it.

    facts: (what, value) of how to have the same numbers again, such as the commit and the corpus's hash.
    server: where the MLflow UI is, or will be once somebody starts it. experiment: MLflow's id of the sweep.
    """

    name: str = ""
    config: str = ""
    command: str = ""
    facts: Sequence[tuple[str, str]] = ()
    server: str = "http://127.0.0.1:5000"
    experiment: str = ""

    def run(self, identity: str) -> str:
        """The address of an MLflow run; the UI finds an experiment that is not known by itself."""
        where = f"experiments/{self.experiment}/runs" if self.experiment else "runs"
        return f"{self.server.rstrip('/')}/#/{where}/{identity}"
