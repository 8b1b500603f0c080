"""MLflow as a view of a promoted run: one run, whose curves go through all stages and are there again for each.

Drawn from what training leaves in the run's folder, so that it makes no difference how many processes train, who
started them, or how often they were stopped. A point that MLflow has is not sent again.
"""

import logging
import threading
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from search_space.design import Design
from sweeps.home import Home
from sweeps.mlflow_server import (
    EXPERIMENT_TAGS,
    FAULTS,
    LARGEST_BATCH,
    connect,
    dataset,
    first_line,
    provenance,
    settle,
)
from trainer.corpus import Corpus
from trainer.plan import Plan, dump
from trainer.stages import Outcome, StageState, read_state

__all__ = ["PlanView"]

_log = logging.getLogger(__name__)


class _Point(NamedTuple):
    key: str
    value: float
    step: int


class PlanView:
    """Shows a run in MLflow, in a thread that looks at its folder every `period` seconds. To be closed.

    Faults of the tracking server are logged, and made up for by the next look.
    """

    def __init__(self, plan: Plan, folder: Path, home: Home, corpus: Corpus, period: float = 10.0) -> None:
        settle()
        self._plan, self._folder, self._home, self._corpus = plan, folder, home, corpus
        self._run = ""
        self._sent: dict[str, int] = {}  # the last step of each metric that MLflow has
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(period,), name="MLflow", daemon=True)
        self._thread.start()

    @cached_property
    def client(self) -> MlflowClient:
        return connect(self._home)

    def close(self, status: str, outcome: Outcome | None = None) -> None:
        """The run ends with MLflow's `status`, for now if there is no `outcome`."""
        self._ended.set()
        self._thread.join()
        self.update()
        try:
            self._open()
            if outcome is not None:
                tags = {f"lclab.outcome.{name}": str(value) for name, value in vars(outcome).items()}
                self.client.log_batch(self._run, tags=[RunTag(name, value) for name, value in tags.items()])
                self.client.log_dict(self._run, vars(outcome), "outcome.yaml")
            if status == "SCHEDULED":
                self.client.update_run(self._run, status)
            else:
                self.client.set_terminated(self._run, status)
        except FAULTS as error:
            _log.warning("MLflow was not told that %s ended: %s", self._plan.name, first_line(error))

    def update(self) -> None:
        """Send what is new; raises nothing."""
        try:
            self._open()
            state = read_state(self._plan, self._folder)
            new = [p for p in _points(self._plan, state) if p.step > self._sent.get(p.key, -1)]
            now = int(time.time() * 1000)
            for i in range(0, len(new), LARGEST_BATCH):
                batch = new[i : i + LARGEST_BATCH]
                self.client.log_batch(self._run, metrics=[Metric(p.key, p.value, now, p.step) for p in batch])
                for point in batch:
                    self._sent[point.key] = max(point.step, self._sent.get(point.key, -1))
            self.client.set_tag(self._run, "lclab.stage", state[-1].name if state else self._plan.stages[0].name)
        except FAULTS as error:
            _log.warning("MLflow is behind: %s", first_line(error))

    def _watch(self, period: float) -> None:
        while not self._ended.wait(period):
            self.update()

    def _open(self) -> None:
        """Find or make the experiment and the run."""
        if self._run:
            return
        plan = self._plan
        experiment = self.client.get_experiment_by_name(plan.name)
        if experiment is None:
            number = self.client.create_experiment(plan.name, self._home.artifacts_of(plan.name), EXPERIMENT_TAGS)
        else:
            number = experiment.experiment_id
        found = self.client.search_runs([number], f"tags.`lclab.plan` = '{plan.name}'", max_results=1)
        if found:
            run = found[0].info.run_id
        else:
            tags = {"lclab.plan": plan.name, "lclab.role": "promotion", "lclab.design": plan.design}
            run = self.client.create_run(number, None, tags | provenance("lclab train"), plan.name).info.run_id
        params = Design.parse(plan.design).params() | {"seed": plan.seed, "batch": plan.batch, "length": plan.length}
        params |= {f"steps_{stage.name}": stage.steps for stage in plan.stages}
        self.client.log_batch(run, params=[Param(key, str(value)) for key, value in params.items()])
        self.client.log_text(run, dump(plan), "plan.yaml")
        self.client.log_inputs(run, [dataset(self._corpus)])
        self.client.update_run(run, "RUNNING")
        for key in self.client.get_run(run).data.metrics:
            self._sent[key] = max(m.step for m in self.client.get_metric_history(run, key))
        self._run = run


def _points(plan: Plan, state: list[StageState]) -> Iterator[_Point]:
    """Of every stage that was begun: its step is raw tokens of all stages so far; once more by the stage's name, from
    its own beginning."""
    before = 0
    for number, stage in enumerate(state):
        for key, value, tokens in stage.points():
            yield _Point(key, value, before + tokens)
            yield _Point(f"{stage.name}/{key}", value, tokens)
        yield _Point("stage", float(number), before)
        before += stage.tokens
