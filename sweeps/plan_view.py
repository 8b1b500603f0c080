"""MLflow as a view of a promoted run: one run, whose curves go through all stages and are there again for each.

Drawn from what training leaves in the run's folder, so that it makes no difference how many processes train, who
started them, or how often they were stopped. A point that MLflow has is not sent again.
"""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mlflow.entities import Metric, Param, RunTag

from search_space.design import Design
from sweeps.home import Home, note_run
from sweeps.mlflow_server import LARGEST_BATCH, View, dataset, first_line, provenance
from trainer.corpus import Corpus
from trainer.plan import Plan, dump
from trainer.stages import Outcome, StageState, read_state

__all__ = ["PlanView"]

_REASON, _NOTE = "lclab.reason", "mlflow.note.content"


class _Point(NamedTuple):
    key: str
    value: float
    step: int


class PlanView(View):
    """Shows a run in MLflow, in a thread that looks at its folder every `period` seconds. To be closed.

    Faults of the tracking server are logged, and made up for by the next look.
    """

    def __init__(self, plan: Plan, folder: Path, home: Home, corpus: Corpus, period: float = 10.0) -> None:
        super().__init__(home)
        self._plan, self._folder, self._corpus = plan, folder, corpus
        self._run = ""
        self._sent: dict[str, int] = {}  # the last step of each metric that MLflow has
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(period,), name="MLflow", daemon=True)
        self._thread.start()

    def close(self, status: str, outcome: Outcome | None = None, fault: Exception | None = None) -> None:
        """The run ends with MLflow's `status`, for now if there is no `outcome`. fault: why it failed."""
        self._ended.set()
        self._thread.join()
        with self._forgiving(f"MLflow was not told that {self._plan.name} ended"):
            self._send()  # a run that has ended is whole
            if outcome is not None:
                known = {name: str(value) for name, value in vars(outcome).items() if value is not None}
                tags = [RunTag(f"lclab.outcome.{name}", value) for name, value in known.items()]
                self.client.log_batch(self._run, tags=tags)
                self.client.log_dict(self._run, vars(outcome), "outcome.yaml")
            if fault is not None:
                self._say_why(f"{type(fault).__name__}: {first_line(fault)[:300]}")
            if status == "SCHEDULED":
                self.client.update_run(self._run, status)
            else:
                self.client.set_terminated(self._run, status)

    def update(self) -> None:
        """Send what is new; faults of the server are logged."""
        with self._forgiving("MLflow is behind"):
            self._send()

    def _send(self) -> None:
        run, self._run = self._run or self._open(), ""  # after a fault it is opened again, to ask what has got through
        state = _in_turn(read_state(self._plan, self._folder))
        new = [p for p in _points(state) if p.step > self._sent.get(p.key, -1)]
        now = int(time.time() * 1000)
        for i in range(0, len(new), LARGEST_BATCH):
            batch = new[i : i + LARGEST_BATCH]
            self.client.log_batch(run, metrics=[Metric(p.key, p.value, now, p.step) for p in batch])
            self._sent |= {point.key: point.step for point in batch}  # of each metric in the order of steps
        self.client.set_tag(run, "lclab.stage", state[-1].name if state else self._plan.stages[0].name)
        self._run = run

    def _say_why(self, reason: str) -> None:
        """As a tag, and as the run's description where nobody has written one."""
        tags = {_REASON: reason, _NOTE: self.client.get_run(self._run).data.tags.get(_NOTE) or reason}
        self.client.log_batch(self._run, tags=[RunTag(name, value) for name, value in tags.items()])

    def _forget_why(self, run: str) -> None:
        """A run that had failed goes on."""
        tags = self.client.get_run(run).data.tags
        if _REASON not in tags:
            return
        if tags.get(_NOTE) == tags[_REASON]:
            self.client.delete_tag(run, _NOTE)
        self.client.delete_tag(run, _REASON)

    def _watch(self, period: float) -> None:
        while not self._ended.wait(period):
            self.update()

    def _open(self) -> str:
        """Find or make the experiment and the run, which goes on; its id."""
        plan = self._plan
        about = {"mlflow.experiment.primaryMetric.name": f"heldout_{plan.metric}"}
        number = self._experiment_of(plan.name, about).experiment_id
        found = self.client.search_runs([number], f"tags.`lclab.plan` = '{plan.name}'", max_results=1)
        if found:
            run = found[0].info.run_id
            self._forget_why(run)
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
        note_run(self._folder, number, run)
        return run


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
