"""MLflow as a view of a sweep: one experiment, one parent run, one child run per trial.

The view is a projection of the study and the trials' folders, and can be drawn again at any time: runs are found by
their tags, parameters and points logged twice are the same parameters and points (a point's time is computed from
the trial, not read off a clock). So a driver that was killed, or a tracking server that was away, costs nothing but
the next `update`.

Every name of a param, metric, tag and artifact is in docs/mlflow.md. What is shown of a sweep beside its trials is in
`pages`, the winner in `registry`.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow.entities import Metric, Param, Run, RunTag
from optuna.trial import FrozenTrial, TrialState

from analysis import Analysis
from search_space.cost import Cost
from search_space.design import Design
from sweeps import pages, registry
from sweeps.config import SweepConfig
from sweeps.home import Home
from sweeps.ledger import Ledger
from sweeps.mlflow_server import EXPERIMENT_TAGS, LARGEST_BATCH, View, dataset, provenance
from sweeps.study import state_of
from trainer.corpus import Corpus
from trainer.trial import RungResult

__all__ = ["MlflowView"]

STATUS = {
    TrialState.RUNNING: "RUNNING",
    TrialState.COMPLETE: "FINISHED",
    TrialState.PRUNED: "KILLED",
    TrialState.FAIL: "FAILED",
}
UNFINISHED = "SCHEDULED"  # a trial or sweep that waits for the next driver


class MlflowView(View):
    """Shows `ledger` in MLflow. Faults of the tracking server are logged and made up for by the next update."""

    def __init__(self, ledger: Ledger, home: Home, corpus: Corpus, resolved: str) -> None:
        super().__init__(home)
        self._ledger, self._corpus, self._resolved = ledger, corpus, resolved
        self._config: SweepConfig = ledger.config
        self._about = provenance("lclab sweep run")
        self._cost = cache(self._config.cost)
        self._runs: dict[int, str] = {}
        self._noted: dict[int, str] = {}  # in the sweep's folder
        self._shown: dict[int, tuple[str, str]] = {}  # trial -> state and rungs, as MLflow has them
        self._judged: dict[int, tuple[str, dict[str, float]]] = {}  # trial -> verdict and numbers of its arm, likewise
        self._behind: set[int] = set()  # trials whose last update did not get through
        self._experiment = ""
        self._parent = ""

    def update(self, numbers: Iterable[int]) -> None:
        """Bring these trials, and any that are behind, up to date."""
        self._behind.update(numbers)
        with self._forgiving("MLflow is behind"):
            self._open()
            for number in sorted(self._behind):
                self._draw(self._ledger.trial(number))
                self._behind.discard(number)
            if self._runs != self._noted:
                self._home.sweep(self._config.name).note_runs(self._experiment, self._runs)
                self._noted = dict(self._runs)

    def close(self, analysis: Analysis, frame: pd.DataFrame, artifacts: list[Path]) -> None:
        """The sweep has ended, or waits for its next driver: what `analysis` makes of its table, on the parent run.

        What a finished sweep has found best goes to the model registry.
        """
        trials = self._ledger.trials()
        self.update(trial.number for trial in trials)
        unfinished = [t for t in trials if not t.state.is_finished()]
        with self._forgiving("MLflow was not told that the sweep ended"):
            self._open()
            self._judge(analysis, frame)
            for path in artifacts:
                self.client.log_artifact(self._parent, str(path))
            if self._ledger.finished():
                self.client.set_terminated(self._parent, "FINISHED", max(map(pages.ended_at, trials), default=None))
                return
            for run in [self._parent, *(self._run(t) for t in unfinished if t.state == TrialState.RUNNING)]:
                self.client.update_run(run, UNFINISHED)

    def _judge(self, analysis: Analysis, frame: pd.DataFrame) -> None:
        """What the sweep has come to, on the parent run, on the trials of each arm and in the registry."""
        trials, found = self._ledger.trials(), pages.arms(analysis, frame)
        now = max(map(pages.ended_at, trials), default=0)
        self.client.log_dict(self._parent, pages.arms_table(found), pages.ARMS)
        tags = {"mlflow.note.content": pages.describe(analysis, found), "mlflow.loggedArtifacts": pages.LOGGED}
        self._log(self._parent, list(pages.sweep_metrics(analysis, trials, now)), tags)
        by_design = {arm.design: arm for arm in found}
        for trial in trials:
            arm = by_design.get(trial.user_attrs["design"])
            if arm is None or trial.user_attrs["role"] == "rate":
                continue
            metrics = pages.arm_metrics(arm, now)
            judged = arm.verdict, {m.key: m.value for m in metrics}
            if self._judged.get(trial.number) != judged:
                self._log(self._run(trial), metrics, {"lclab.verdict": arm.verdict})
                self._judged[trial.number] = judged
        won = registry.winner(analysis, frame) if self._ledger.finished() else None
        if won:
            run = self.client.get_run(self._run(self._ledger.trial(won.trial)))
            commit = run.data.tags.get("mlflow.source.git.commit", "unknown")
            data = self._corpus.manifest["hash"]
            registry.register(self.client, self._config.name, won, run, {"commit": commit, "data": data})

    def _log(self, run: str, metrics: list[Metric], tags: dict[str, str]) -> None:
        for i in range(0, len(metrics), LARGEST_BATCH):
            self.client.log_batch(run, metrics=metrics[i : i + LARGEST_BATCH])
        self.client.log_batch(run, tags=[RunTag(name, value) for name, value in tags.items()])

    def _open(self) -> None:
        """Find or make the experiment and the parent run."""
        if self._parent:
            return
        name = self._config.name
        experiment = self._experiment_of(name, {})
        self._experiment = experiment.experiment_id
        about = {"mlflow.note.content": pages.describe_experiment(self._config, self._experiment)}
        about |= {"mlflow.experiment.primaryMetric.name": f"heldout_{self._config.metric}"}
        for key, value in (EXPERIMENT_TAGS | about | pages.saved_views(self._config)).items():
            if experiment.tags.get(key) != value:
                self.client.set_experiment_tag(self._experiment, key, value)
        start = min(map(_milliseconds, self._ledger.trials()), default=None)
        tags = {"lclab.sweep": name, "lclab.role": "sweep"} | self._about
        parent = self._find_or_create(name, tags, start).info.run_id
        self._log(parent, [], {"lclab.metric": self._config.metric, "lclab.baseline": self._config.baseline})
        self.client.log_text(parent, self._resolved, "sweep.yaml")
        self.client.update_run(parent, "RUNNING")
        self._recall()
        self._parent = parent

    def _recall(self) -> None:
        """What MLflow has of the trials."""
        token: str | None = None
        while token != "":
            page = self.client.search_runs([self._experiment], max_results=LARGEST_BATCH, page_token=token)
            for run in page:
                tags = run.data.tags
                if "lclab.trial" in tags:
                    number = int(tags["lclab.trial"])
                    self._runs[number] = run.info.run_id
                    self._shown[number] = tags.get("lclab.state", ""), tags.get("lclab.rung", "")
                    numbers = {k: v for k, v in run.data.metrics.items() if k.startswith("arm_")}
                    self._judged[number] = tags.get("lclab.verdict", ""), numbers
            token = page.token or ""

    def _find_or_create(self, name: str, tags: dict[str, str], start: int | None = None) -> Run:
        """The run that carries all `lclab.` tags."""
        query = " and ".join(f"tags.`{k}` = '{v}'" for k, v in tags.items() if k.startswith("lclab."))
        found = self.client.search_runs([self._experiment], query, max_results=1)
        return found[0] if found else self.client.create_run(self._experiment, start, tags, name)

    def _run(self, trial: FrozenTrial) -> str:
        """The child run of a trial, with everything that is known from its start."""
        if trial.number in self._runs:
            return self._runs[trial.number]
        attrs = trial.user_attrs
        tags = {"lclab.trial": str(trial.number), "mlflow.parentRunId": self._parent} | self._about
        rate = attrs.get("rate", 1.0)
        name = f"{attrs['design']} seed {attrs['seed']}" + (f" rate {rate:g}" if rate != 1 else "")
        run = self._find_or_create(name, tags, _milliseconds(trial)).info.run_id
        design = Design.parse(attrs["design"])
        params = {**self._config.model_size().resolve(design).params(), "design": design.name, "seed": attrs["seed"]}
        params["rate"] = f"{rate:g}"
        self.client.log_batch(run, params=[Param(k, str(v)) for k, v in params.items()])
        self.client.log_text(run, self._resolved, "sweep.yaml")
        self.client.log_dict(run, {"trial": trial.number, **params}, "trial.yaml")
        self.client.log_inputs(run, [dataset(self._corpus)])
        self._runs[trial.number] = run
        return run

    def _draw(self, trial: FrozenTrial) -> None:
        """Everything known of a trial, onto its run."""
        results = RungResult.load_all(self._home.sweep(self._config.name).trial(trial.number))
        now = state_of(trial), str(len(results))
        if trial.state.is_finished() and self._shown.get(trial.number) == now:
            return
        run, attrs = self._run(trial), trial.user_attrs
        metrics = list(_metrics(trial, results, self._config.metric))
        if results or trial.state.is_finished():
            metrics += _costs(self._cost(Design.parse(attrs["design"])), _milliseconds(trial))
        self._log(run, metrics, {})
        if trial.state.is_finished():
            assert trial.datetime_complete is not None
            self.client.set_terminated(run, STATUS[trial.state], int(trial.datetime_complete.timestamp() * 1000))
        else:
            self.client.update_run(run, STATUS[trial.state])
        tags = {k: attrs[k] for k in ("role", "design", "seed", "reason") if k in attrs}
        tags |= {"state": now[0], "rung": now[1]}  # with the last call: they say that all of this is there
        self._log(run, [], {f"lclab.{k}": str(v) for k, v in tags.items()})
        self._shown[trial.number] = now


def _metrics(trial: FrozenTrial, results: list[RungResult], metric: str) -> Iterator[Metric]:
    """First of all what designs are selected on: the page that compares runs opens with what was logged first."""
    if not results:
        return
    start = _milliseconds(trial)
    seen, seconds = [0, *(r.tokens for r in results)], [0.0, *(r.seconds for r in results)]

    def point(name: str, value: float, tokens: int) -> Metric:
        # The time is part of a point's identity: between rungs that are done it does not change any more.
        return Metric(name, value, start + int(1000 * np.interp(tokens, seen, seconds)), tokens)

    for result in results:
        for task, loss in sorted(result.heldout.loss.items(), key=lambda item: item[0] != metric):
            yield point(f"heldout_{task}", loss, result.tokens)
            yield point(f"heldout_{task}_accuracy", result.heldout.accuracy[task], result.tokens)
        yield point("tokens_per_second", result.tokens / result.seconds, result.tokens)
    for tokens, loss, rate in results[-1].curve:
        yield point("train_loss", loss, tokens)
        yield point("learning_rate", rate, tokens)
    if trial.state.is_finished():  # one profile, of the last rung: as a step it has the distance
        end = start + int(1000 * seconds[-1])
        for task, profile in results[-1].heldout.distance.items():
            for first, loss in profile:
                yield Metric(f"heldout_{task}_by_distance", loss, end, first)


def _costs(cost: Cost, start: int) -> Iterator[Metric]:
    for name, value in {
        "parameters": cost.parameters,
        "train_flops_per_token": cost.train_flops,
        "prefill_flops_per_token": cost.prefill_flops,
        "memory": cost.memory,
    }.items():
        yield Metric(name, float(value), start, 0)


def _milliseconds(trial: FrozenTrial) -> int:
    assert trial.datetime_start is not None
    return int(trial.datetime_start.timestamp() * 1000)
