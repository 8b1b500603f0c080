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
from sweeps.home import Home, note_run
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

_REASONS = {"lclab.reason", "mlflow.note.content"}  # tags that say why a run has failed
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

    def close(self, status: str, outcome: Outcome | None = None, reason: str = "") -> None:
        """The run ends with MLflow's `status`, for now if there is no `outcome`; `reason`: why it failed."""
        self._ended.set()
        self._thread.join()
        try:
            self._send()  # a run that has ended is whole
            if outcome is not None:
                known = {name: str(value) for name, value in vars(outcome).items() if value is not None}
                tags = [RunTag(f"lclab.outcome.{name}", value) for name, value in known.items()]
                self.client.log_batch(self._run, tags=tags)
                self.client.log_dict(self._run, vars(outcome), "outcome.yaml")
            if reason:
                self.client.log_batch(self._run, tags=[RunTag(name, reason) for name in _REASONS])
            if status == "SCHEDULED":
                self.client.update_run(self._run, status)
            else:
                self.client.set_terminated(self._run, status)
        except FAULTS as error:
            _log.warning("MLflow was not told that %s ended: %s", self._plan.name, first_line(error))

    def update(self) -> None:
        """Send what is new; faults of the server are logged."""
        try:
            self._send()
        except FAULTS as error:
            self._run = ""  # what has got through is asked for when the server is back
            _log.warning("MLflow is behind: %s", first_line(error))

    def _send(self) -> None:
        self._open()
        state = _in_turn(read_state(self._plan, self._folder))
        new = [p for p in _points(state) if p.step > self._sent.get(p.key, -1)]
        now = int(time.time() * 1000)
        for i in range(0, len(new), LARGEST_BATCH):
            batch = new[i : i + LARGEST_BATCH]
            self.client.log_batch(self._run, metrics=[Metric(p.key, p.value, now, p.step) for p in batch])
            self._sent |= {point.key: point.step for point in batch}  # of each metric in the order of steps
        self.client.set_tag(self._run, "lclab.stage", state[-1].name if state else self._plan.stages[0].name)

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
            tags = EXPERIMENT_TAGS | {"mlflow.experiment.primaryMetric.name": f"heldout_{plan.metric}"}
            number = self.client.create_experiment(plan.name, self._home.artifacts_of(plan.name), tags)
        else:
            number = experiment.experiment_id
        found = self.client.search_runs([number], f"tags.`lclab.plan` = '{plan.name}'", max_results=1)
        if found:
            run = found[0].info.run_id
            for name in _REASONS & found[0].data.tags.keys():  # it goes on
                self.client.delete_tag(run, name)
        else:
            tags = {"lclab.plan": plan.name, "lclab.role": "promotion", "lclab.design": plan.design}
            tags |= {"lclab.sweep": str(plan.evidence["sweep"])} if "sweep" in plan.evidence else {}
            run = self.client.create_run(number, None, tags | provenance("lclab train"), plan.name).info.run_id
        params = plan.size.resolve(Design.parse(plan.design)).params() | {"design": plan.design}
        params |= {"seed": plan.seed, "batch": plan.batch, "length": plan.length}
        params |= {f"steps_{stage.name}": stage.steps for stage in plan.stages}
        self.client.log_batch(run, params=[Param(key, str(value)) for key, value in params.items()])
        self.client.log_text(run, dump(plan), "plan.yaml")
        self.client.log_inputs(run, [dataset(self._corpus)])
        self.client.update_run(run, "RUNNING")
        metrics = self.client.get_run(run).data.metrics
        self._sent = {key: max(m.step for m in self.client.get_metric_history(run, key)) for key in metrics}
        self._run = run
        note_run(self._folder, number, run)


def _in_turn(state: list[StageState]) -> list[StageState]:
    """Up to the stage that is trained: one that goes back to an earlier checkpoint leaves what the next had begun."""
    unfinished = (number for number, stage in enumerate(state) if not stage.loss)
    return state[: next(unfinished, len(state)) + 1]


def _points(state: list[StageState]) -> Iterator[_Point]:
    """Of every stage that was begun: its step is raw tokens of all stages so far; once more from its own beginning, by
    the name of its folder, since MLflow draws a group of charts for each and sorts them."""
    before = 0
    for number, stage in enumerate(state):
        last = {(key, tokens): value for key, value, tokens in stage.points()}  # two evaluations may meet at the end
        for (key, tokens), value in last.items():
            yield _Point(key, value, before + tokens)
            yield _Point(f"{number}-{stage.name}/{key}", value, tokens)
        yield _Point("stage", float(number), before)
        before += stage.tokens
