"""Run a plan: claim its folder, train its stages here or on Ray, show them in MLflow, score its prediction.

The same call starts, continues and finishes it.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from search_space.errors import UsageError
from search_space.files import write_text
from sweeps.config import differences
from sweeps.home import Home
from sweeps.plan_view import PlanView
from trainer.corpus import Corpus
from trainer.plan import Plan, dump, load
from trainer.stages import Outcome, outcome_of, read_state
from trainer.trial import Diverged, Interrupted, OutOfMemory, RungResult

__all__ = ["claim", "keep_going", "run_plan"]

CHANGEABLE = ("parallel.", "checkpoint_every", "tracking_url")
"""Keys, or what they begin with, that may change when a run is continued: none changes what is computed."""
PATIENCE = 3  # faults in a row without a step in between

Train = Callable[[], list[RungResult]]


def claim(plan: Plan, folder: Path) -> None:
    """`folder` belongs to `plan` from now on. Raises `UsageError` where it belongs to another."""
    kept = folder / "plan.yaml"
    if kept.exists():
        changed = [key for key in differences(dump(load(kept)), dump(plan)) if not key.startswith(CHANGEABLE)]
        if changed:
            raise UsageError(
                f"{changed[0]}: {folder} was begun with another value ({', '.join(changed)}); "
                "give this run a name with name=NEW, or keep the settings"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(kept, dump(plan))


def run_plan(plan: Plan, folder: Path, home: Home, corpus: Corpus, train: Train) -> Outcome:
    """Train what is left, shown in MLflow as it goes, and score the prediction.

    Whatever `train` raises is raised here; MLflow is told first where no next attempt is to be expected at once.
    """
    view = PlanView(plan, folder, replace(home, tracking=plan.tracking_url), corpus)
    try:
        outcome = outcome_of(plan, train())
    except (Interrupted, KeyboardInterrupt):
        view.close("SCHEDULED")
        raise
    except (UsageError, Diverged, OutOfMemory) as fault:
        view.close("FAILED", fault=fault)
        raise
    view.close("FINISHED", outcome)  # after any other fault the next call goes on, and nobody should wait for MLflow
    return outcome


def keep_going(plan: Plan, folder: Path, train: Train, fault: type[Exception], say: Callable[[str], None]) -> Train:
    """`train`, begun again after every `fault`; given up after some in a row between which nothing was trained."""

    def reached() -> int:
        return sum(stage.step for stage in read_state(plan, folder))

    def tireless() -> list[RungResult]:
        in_vain = 0
        while True:
            before = reached()
            try:
                return train()
            except fault as error:
                in_vain = 0 if reached() > before else in_vain + 1
                if in_vain == PATIENCE:
                    raise
                say(f"{error}; goes on from the last checkpoint")
                time.sleep(in_vain)

    return tireless
