"""The tidy table of a sweep, from the study and the trials' folders; also while it runs."""

from functools import cache
from math import nan
from typing import Any

import pandas as pd
from optuna.trial import FrozenTrial

from analysis import table
from search_space.cost import Cost
from search_space.design import Design
from sweeps.config import load
from sweeps.home import Home, SweepFolder
from sweeps.ledger import Ledger
from sweeps.study import state_of
from trainer.trial import RungResult

__all__ = ["refresh_tables", "write_tables"]


def write_tables(ledger: Ledger, folder: SweepFolder) -> pd.DataFrame:
    """Write `trials.parquet` and `curves.parquet`; returns the first."""
    size, cost = ledger.config.model_size(), cache(ledger.config.cost)
    same = {"rungs": ledger.rungs, "metric": ledger.config.metric}
    _, runs = folder.runs()
    rows: list[dict[str, Any]] = []
    curves: list[pd.DataFrame] = []
    for trial in ledger.trials():
        results = RungResult.load_all(folder.trial(trial.number))
        design = Design.parse(trial.user_attrs["design"])
        about = same | _about(trial, size.resolve(design), cost(design)) | {"mlflow_run": runs.get(trial.number)}
        rows += [about | _rung(r) for r in results] or [about | {"rung": 0, "step": 0, "tokens": 0}]
        if results:
            curve = pd.DataFrame(results[-1].curve, columns=["tokens", "loss", "learning_rate"])
            curves.append(curve.assign(trial=trial.number))
    frame = table.to_frame(rows)
    table.save(frame, folder.table)
    empty = pd.DataFrame(columns=["tokens", "loss", "learning_rate", "trial"])
    table.save(pd.concat(curves) if curves else empty, folder.curves)
    return frame


def refresh_tables(home: Home, name: str) -> pd.DataFrame:
    """The tables of a sweep as it stands, run by somebody else or by nobody. Raises `UsageError` if there is none."""
    folder = home.existing(name)
    config = load(str(folder.config))
    return write_tables(Ledger(config, home.of(config).study_url), folder)


def _about(trial: FrozenTrial, resolved: Design, costs: Cost) -> dict[str, Any]:
    attrs = trial.user_attrs
    return {
        "trial": trial.number,
        **resolved.params(),
        "design": attrs["design"],
        "role": attrs["role"],
        "seed": attrs["seed"],
        "rate": attrs.get("rate", 1.0),
        "state": state_of(trial),
        "reason": attrs.get("reason"),
        "parameters": costs.parameters,
        "train_flops_per_token": costs.train_flops,
        "prefill_flops_per_token": costs.prefill_flops,
        "memory": float(costs.memory),
    }


def _rung(result: RungResult) -> dict[str, Any]:
    row: dict[str, Any] = {
        "rung": result.rung,
        "step": result.step,
        "tokens": result.tokens,
        "train_loss": result.train_loss,
        "seconds": result.seconds,
        "tokens_per_second": result.tokens / result.seconds,
    }
    for task, loss in result.heldout.loss.items():
        row[task] = loss
        row[f"{task}_accuracy"] = result.heldout.accuracy[task]
        row[f"{task}_documents"] = result.heldout.documents[task]
        far = dict(result.heldout.distance[task])
        row[f"{task}_distance"] = [far.get(first, nan) for first in table.DISTANCES]
    return row
