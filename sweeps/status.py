"""Where a sweep stands, read from its study and folders without disturbing it."""

from dataclasses import dataclass

from sweeps.config import load
from sweeps.driver import Snapshot
from sweeps.home import Home
from sweeps.ledger import Ledger
from sweeps.study import state_of
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

    @property
    def unfinished(self) -> int:
        """Trials that have not ended, those included that have not begun."""
        states = self.snapshot.states
        return max(0, self.snapshot.trials - sum(states.values()) + states.get("running", 0))


def read_status(home: Home, name: str) -> Status:
    """Raises `UsageError` where there is no such sweep."""
    folder = home.existing(name)
    config = load(str(folder.config))
    ledger = Ledger(config, home.of(config).study_url)
    trials = []
    for trial in ledger.trials():
        attrs, results = trial.user_attrs, RungResult.load_all(folder.trial(trial.number))
        trials.append(
            TrialStatus(
                number=trial.number,
                design=attrs["design"],
                seed=attrs["seed"],
                role=attrs["role"],
                state=state_of(trial),
                reason=attrs.get("reason"),
                rung=len(results),
                heldout=results[-1].heldout.loss[ledger.config.metric] if results else None,
            )
        )
    running = {t.number: (t.design, t.rung / ledger.rungs) for t in trials if t.state == "running"}
    snapshot = Snapshot(ledger.config.trials, running, dict(+ledger.states), ledger.best())
    return Status(name, ledger.config.metric, folder.driver(), ledger.rungs, snapshot, trials)
