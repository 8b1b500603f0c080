"""What MLflow's pages show of a sweep beside its trials: views of the runs, descriptions, and what each arm came to.

Notable choices:
- as it comes, the page of runs shows the parent run alone, with no number beside it. So the experiment carries two of
  MLflow's saved views, `trials` and `arms`: tags that hold the state of the page as MLflow 3.17 writes it. A version
  that reads them no more shows its own defaults;
- an arm's numbers stand on each of its trials too, where the table of runs can sort and the charts can draw them;
- times are computed from the trials, so that what is logged twice is the same.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
from mlflow.entities import Metric
from optuna.trial import FrozenTrial

from analysis import Analysis
from analysis.table import comparable
from analysis.words import interval, number, signed
from search_space.design import AXES
from sweeps.config import SweepConfig
from sweeps.study import state_of

__all__ = [
    *("ARMS", "LOGGED", "Arm", "arm_metrics", "arms", "arms_table", "describe", "describe_experiment", "ended_at"),
    *("saved_views", "sweep_metrics"),
]

ARMS = "arms.json"  # artifact: what each arm came to, as MLflow's tables are
STATES = ("complete", "pruned", "failed", "infeasible", "running")
LOGGED = json.dumps([{"path": ARMS, "type": "table"}])  # tag `mlflow.loggedArtifacts`, as `mlflow.log_table` sets it
LARGEST_NOTE = 7500  # characters; MLflow takes 8,000 of a run's tag


@dataclass(frozen=True)
class Arm:
    """A design over its seeds at `rung`. mean, sd: of the held-out losses of its `n` seeds, sd None for one seed.
    difference, low, high: see `analysis.Effect`."""

    design: str
    verdict: str
    rung: int
    n: int
    mean: float | None
    sd: float | None
    difference: float | None
    low: float | None
    high: float | None
    state: str


def arms(analysis: Analysis, frame: pd.DataFrame) -> list[Arm]:
    """Best first, controls last, as `analysis.rows` are."""
    usable, found = comparable(frame, analysis.metric), list[Arm]()
    for row in analysis.rows:
        losses = usable.loc[(usable["design"] == row.design) & (usable["rung"] == row.rung), analysis.metric]
        mean, sd = (float(losses.mean()) if len(losses) else None), (float(losses.std()) if len(losses) > 1 else None)
        e = row.effect
        about = (e.difference, e.low, e.high) if e else (None, None, None)
        found.append(Arm(row.design, row.verdict, row.rung, len(losses), mean, sd, *about, row.state))
    return found


def arms_table(found: list[Arm]) -> dict[str, Any]:
    """As MLflow keeps a table, for `ARMS`."""
    rows = [asdict(arm) for arm in found]
    return {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]} if rows else {}


def arm_metrics(arm: Arm, now: int) -> list[Metric]:
    """Of every trial of an arm. now: when the last trial of the sweep ended, in milliseconds."""
    known = {"arm_loss": arm.mean, "arm_difference": arm.difference}
    return [Metric(name, value, now, 0) for name, value in known.items() if value is not None]


def sweep_metrics(analysis: Analysis, trials: list[FrozenTrial], now: int) -> Iterator[Metric]:
    """Of the parent run, with step = trials that have ended; `best_loss` for every one of them."""
    ended = sorted((t for t in trials if t.datetime_complete), key=lambda t: (t.datetime_complete, t.number))
    best = float("inf")
    for i, trial in enumerate(ended, 1):
        if state_of(trial) == "complete" and trial.user_attrs["role"] in ("baseline", "arm") and trial.values:
            best = min(best, trial.values[0])
        if best < float("inf"):
            yield Metric("best_loss", best, ended_at(trial), i)
    states = [state_of(trial) for trial in trials]
    about: dict[str, float | None] = {f"trials_{state}": float(states.count(state)) for state in STATES}
    about |= {"sigma": analysis.comparison.sigma, "baseline_loss": analysis.comparison.loss}
    for name, value in about.items():
        if value is not None:
            yield Metric(name, value, now, len(ended))


def ended_at(trial: FrozenTrial) -> int:
    """Milliseconds; 0 for a trial that has not ended."""
    return int(trial.datetime_complete.timestamp() * 1000) if trial.datetime_complete else 0


def describe(analysis: Analysis, found: list[Arm]) -> str:
    """The parent run's description, Markdown: what was learnt, and the arms."""
    lines = [analysis.learnt, "", *(f"- {statement}" for statement in analysis.statements), ""]
    lines += [f"Held-out {analysis.metric} loss by design, best first (all of it: `{ARMS}`, `report.html`):", ""]
    lines += [
        "| design | verdict | n | mean | sd | difference | 95% interval | rung |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in found:
        numbers = [number(arm.mean), number(arm.sd), signed(arm.difference), interval(arm.low, arm.high)]
        row = f"| {arm.design} | {arm.verdict} | {arm.n} | {' | '.join(numbers)} | {arm.rung} |"
        if sum(map(len, lines)) + len(lines) + len(row) > LARGEST_NOTE:
            lines += ["", f"and {len(found) - found.index(arm)} more"]
            break
        lines.append(row)
    return "\n".join(lines)


def describe_experiment(config: SweepConfig, experiment: str) -> str:
    """Markdown: where to look, in the one line that MLflow shows folded, and what this is."""
    views = f"#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey="
    return (
        f"[Trials, best first]({views}trials) \N{MIDDLE DOT} [Arms, seeds together]({views}arms) \N{MIDDLE DOT} "
        f"[Charts]({views}trials&compareRunsMode=CHART) \N{MIDDLE DOT} what was learnt: run `{config.name}`\n\n"
        f"Sweep `{config.name}`: up to {config.trials} trials against the baseline `{config.baseline}`, judged by "
        f"held-out {config.metric} loss (`heldout_{config.metric}`, nats per token; step = raw tokens seen)."
    )


def saved_views(config: SweepConfig) -> dict[str, str]:
    """Tags of the experiment: the page of runs as somebody who compares designs wants it."""
    loss, axes = f"heldout_{config.metric}", _varied(config)
    columns = {f"tags.`lclab.{tag}`": 90 for tag in ("state", "verdict", "role", "rung")}
    columns |= {f"metrics.`{loss}`": 130, "metrics.`arm_difference`": 130}
    columns |= {f"params.`{axis}`": 90 for axis in ["seed", *axes]}
    first = {"attributes.`Run Name`": 330, "runDateAndNestInfo": 130}  # which are always there
    charts, sections = _charts(loss, axes)
    state = {
        "searchFilter": "tags.`lclab.trial` LIKE '%'",
        "orderByKey": f"metrics.`{loss}`",
        "orderByAsc": True,
        "selectedColumns": list(columns),
        "columnOrder": [*first, *columns],
        "columnWidths": first | columns,
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,
    }
    together = {"aggregateFunction": "average", "groupByKeys": [{"mode": "param", "groupByData": "design"}]}
    views = {"trials": ("Trials, best first", state), "arms": ("Arms, seeds together", state | {"groupBy": together})}
    return {
        f"mlflow.sharedViewState.{key}": json.dumps({"name": name, "createdAt": 0, "state": json.dumps(state)})
        for key, (name, state) in views.items()
    }


def _varied(config: SweepConfig) -> list[str]:
    """The axes that the sweep searches, in the order of a design's name."""
    designs = [*config.space.members(), *(planned.design for planned in config.planned())]
    return [axis for axis in AXES if axis != "control" and len({getattr(design, axis) for design in designs}) > 1]


def _charts(loss: str, axes: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Cards of the page of charts, and its sections; what else has been logged is in MLflow's own one, closed."""
    drawn = {"type": "LINE", "runsCountToCompare": 20, "lineSmoothness": 0, "xAxisKey": "step", "yAxisKey": "metric"}
    cards: list[dict[str, Any]] = [
        *(drawn | {"metricKey": metric} for metric in (loss, "train_loss", f"{loss}_by_distance")),
        {"type": "BAR", "metricKey": "arm_difference", "runsCountToCompare": 20},
        {"type": "PARALLEL", "selectedParams": axes, "selectedMetrics": [loss], "runsCountToCompare": 100},
        {
            "type": "SCATTER",
            "xaxis": {"key": "prefill_flops_per_token", "type": "METRIC"},
            "yaxis": {"key": loss, "type": "METRIC"},
            "runsCountToCompare": 100,
        },
    ]
    same = {"metricSectionId": "designs", "deleted": False, "isGenerated": False}
    names = {"designs": "Designs", "rest": "Model metrics"}
    sections = [
        {"uuid": uuid, "name": name, "display": uuid == "designs", "isReordered": False, "deleted": False}
        for uuid, name in names.items()
    ]
    return [{"uuid": f"card-{i}", **same, **card} for i, card in enumerate(cards)], sections
