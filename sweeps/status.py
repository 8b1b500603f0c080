"""Where a sweep stands, read from its study and folders without disturbing it."""

from collections import Counter
from dataclasses import dataclass

from sweeps.config import load
from sweeps.driver import Snapshot
from sweeps.home import Home
from sweeps.ledger import Ledger
from sweeps.tables import STATES
from trainer.trial import RungResult

__all__ = ["Status", "TrialStatus", "read_status"]


@dataclass(frozen=True)
class TrialStatus:
    """heldout: the sweep's metric at the last rung reached."""

    number: int
    design: str
    seed: int
    role: str
    state: str
    reason: str | None
    rung: int
    heldout: float | None


@dataclass(frozen=True)
class Status:
    """metric: the held-out loss that the sweep selects on. driver: the process that runs it now."""

    sweep: str
    metric: str
    driver: int | None
    rungs: int
    snapshot: Snapshot
    trials: list[TrialStatus]


def read_status(home: Home, name: str) -> Status:
    """Raises `UsageError` where there is no such sweep."""
    folder = home.existing(name)
    ledger = Ledger(load(str(folder.config)), home.study_url)
    trials = []
    for trial in ledger.trials():
        attrs, results = trial.user_attrs, RungResult.load_all(folder.trial(trial.number))
        trials.append(
            TrialStatus(
                number=trial.number,
                design=attrs.get("design", "?"),
                seed=attrs.get("seed", 0),
                role=attrs.get("role", "arm"),
                state=STATES.get(trial.state, "waiting"),
                reason=attrs.get("reason"),
                rung=len(results),
                heldout=results[-1].heldout.loss[ledger.config.metric] if results else None,
            )
        )
    states = Counter(t.state.name.lower() for t in ledger.trials())
    running = {t.number: (t.design, t.rung / ledger.rungs) for t in trials if t.state == "running"}
    snapshot = Snapshot(ledger.config.trials, running, dict(states), ledger.best())
    return Status(name, ledger.config.metric, folder.driver(), ledger.rungs, snapshot, trials)
