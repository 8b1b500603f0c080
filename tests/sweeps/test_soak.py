"""A sweep under random SIGKILLs of its workers, its driver and Ray itself ends as one that nobody disturbed.

`LCLAB_SOAK` says how many; `make soak` takes a hundred.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pandas as pd
import pytest
from mlflow import MlflowClient
from optuna.trial import FrozenTrial, TrialState

from sweeps.home import Home
from sweeps.status import read_status
from tests.processes import descendants
from tests.sweeps.virtual import MINI
from trainer.trial import RungResult

KILLS = int(os.environ.get("LCLAB_SOAK", "6"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 + 60 * KILLS)]
VICTIMS = {"ray::_Worker": 6, "driver": 3, "raylet": 1}  # and how often each
STEPS = max(40, 7 * KILLS)  # so that they do not end before the kills do
SEED = 0


class Soak:
    """One home folder, a driver that is started again whenever it is gone, and what it leaves."""

    def __init__(self, folder: Path, text: Path) -> None:
        self.home = Home(folder)
        settings = ["sampler=grid", "pruner=cutoff", "keep=3", "trials=12", "retries=1000", f"recipe.steps={STEPS}"]
        self._command = [sys.executable, "-m", "lclab", "sweep", "run", str(MINI), f"corpus.source={text}"]
        self._command += [*settings, "--home", str(folder)]
        self._log = (folder / "log").open("w")
        self.driver: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        if self.driver is None or self.driver.poll() is not None:
            self.driver = subprocess.Popen(self._command, stdout=self._log, stderr=self._log, start_new_session=True)
        return self.driver

    def finish(self) -> None:
        code = self.start().wait(timeout=900)
        assert code == 0, Path(self._log.name).read_text()[-3000:]

    def checkpoints(self) -> set[Path]:
        return set(self.home.sweep("mini").path.glob("trials/*/step-?????????"))

    def trials(self) -> list[FrozenTrial]:
        return optuna.load_study(study_name="mini", storage=self.home.study_url).get_trials()

    def faults(self) -> list[str]:
        return [fault for trial in self.trials() for fault in trial.user_attrs.get("faults", [])]

    def strike(self, what: str, chance: random.Random) -> bool:
        """Kill the driver or one of the processes under it; False where none is there."""
        driver = self.start()
        under = [pid for pid, args in descendants(driver.pid) if re.search(rf"^{what}|/{what} ", args)]
        victims = [driver.pid] if what == "driver" else under
        if victims:
            os.kill(chance.choice(victims), signal.SIGKILL)
        return bool(victims)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Soak:
    soak = Soak(tmp_path_factory.mktemp("calm"), text_folder)
    soak.finish()
    return soak


@pytest.fixture(scope="module")
def rough(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Soak:
    soak, chance, struck = Soak(tmp_path_factory.mktemp("rough"), text_folder), random.Random(SEED), 0
    deadline = time.monotonic() + 60 + 60 * KILLS
    seen, felt = set[Path](), False  # until a fault is on record, only workers are struck
    while struck < KILLS:
        assert time.monotonic() < deadline, Path(soak._log.name).read_text()[-3000:]
        driver = soak.start()
        if driver.poll() == 0:
            pytest.fail(f"the sweep ended after {struck} kills")
        new = soak.checkpoints() - seen
        if not new:  # a sweep that is killed faster than it can take a step gets nowhere, and rightly
            time.sleep(0.05)
            continue
        time.sleep(chance.uniform(0, 0.5))
        what = chance.choices(list(VICTIMS), list(VICTIMS.values()))[0]
        felt = felt or bool(soak.faults())
        if soak.strike(what if felt else "ray::_Worker", chance):
            struck += 1
            seen = soak.checkpoints()
            read_status(soak.home, "mini")  # at any moment, from elsewhere
    soak.finish()
    return soak


def results(soak: Soak) -> pd.DataFrame:
    table = pd.read_parquet(soak.home.sweep("mini").table).set_index(["design", "seed", "rung"]).sort_index()
    losses = [c for c in table.columns if c.split("_")[0] in ("parallel", "reconstruct", "continue", "train")]
    return table[["trial", "role", "state", "step", "tokens", *losses]]


def test_the_table_is_that_of_an_undisturbed_sweep(calm: Soak, rough: Soak) -> None:
    assert len(results(calm).reset_index().trial.unique()) == 12
    pd.testing.assert_frame_equal(results(rough), results(calm), check_exact=True)


def test_nothing_is_lost_or_doubled(calm: Soak, rough: Soak) -> None:
    for soak in (calm, rough):
        client, trials = MlflowClient(tracking_uri=soak.home.tracking_url), soak.trials()
        experiment = client.get_experiment_by_name("mini")
        assert experiment is not None and len(trials) == 12
        runs = client.search_runs([experiment.experiment_id], max_results=1000)
        assert sorted(r.data.tags.get("lclab.trial", "parent") for r in runs) == sorted(
            ["parent", *(str(t.number) for t in trials)]
        )
        by_trial = {r.data.tags.get("lclab.trial"): r for r in runs}
        for trial in trials:
            run = by_trial[str(trial.number)]
            found = RungResult.load_all(soak.home.sweep("mini").trial(trial.number))
            assert trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
            assert run.info.status == {"COMPLETE": "FINISHED", "PRUNED": "KILLED"}[trial.state.name]
            for name in ("heldout_parallel", "heldout_continue"):
                history = client.get_metric_history(run.info.run_id, name)
                losses = [(r.tokens, r.heldout.loss[name.removeprefix("heldout_")]) for r in found]
                assert [(m.step, m.value) for m in history] == losses
            curve = client.get_metric_history(run.info.run_id, "train_loss")
            assert [(m.step, m.value) for m in curve] == [(tokens, loss) for tokens, loss, _ in found[-1].curve]


def test_the_kills_were_felt(rough: Soak) -> None:
    assert set(rough.faults()) == {"the worker process died"}
