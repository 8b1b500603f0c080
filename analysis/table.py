"""The tidy table of a sweep: its schema, its file, and which of its rows may be compared.

One row per (trial, rung reached); a trial that failed or has reached no rung has one row with rung 0. Losses are
held-out, in nats per token, mean over documents; lower is better.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from search_space.errors import UsageError
from search_space.files import whole

__all__ = [
    *("CURVES", "DISTANCES", "METRIC", "METRICS", "TRIALS"),
    *("comparable", "documents", "latest", "load", "save", "selected_on", "to_frame"),
]

METRICS = ("parallel", "reconstruct", "continue")
METRIC = "parallel"  # what designs are selected on where nothing else is said
DISTANCES = (0, 1, 4, 16, 64, 256, 1024, 4096)
"""First tokens behind the span (in a reconstruction: asked for before) of the stretches of a `_distance` column."""

_LIST = "object"  # a list of floats
TRIALS: dict[str, str] = {
    "trial": "int64",
    "design": "str",
    "pooling": "str",
    "ratio": "int64",
    "window": "int64",
    "overlap": "int64",
    "mask": "str",
    "adapter": "str",
    "depth": "int64",
    "encoder": "str",
    "decoder": "str",
    "embeddings": "str",
    "positions": "str",
    "control": "str",  # none, uncompressed, blind, encoderless
    "role": "str",  # baseline, control, arm; rate: at other learning rates than the rest
    "rate": "float64",  # factor on the learning rates
    "seed": "int64",
    "state": "str",  # running, complete, pruned, failed
    "reason": "str",  # of a failure or a pruning
    "metric": "str",  # what the sweep selects on, of METRICS; the same in every row
    "rung": "int64",  # from 1; 0 for none
    "rungs": "int64",  # how many the sweep has
    "step": "int64",
    "tokens": "int64",  # raw tokens seen at the rung
    "parallel": "float64",
    "reconstruct": "float64",
    "continue": "float64",
    "parallel_accuracy": "float64",
    "reconstruct_accuracy": "float64",
    "continue_accuracy": "float64",
    "parallel_documents": _LIST,  # the same documents in the same order for every trial
    "reconstruct_documents": _LIST,
    "continue_documents": _LIST,
    "parallel_distance": _LIST,  # of a rung, one for each of DISTANCES; NaN where nothing was scored
    "reconstruct_distance": _LIST,
    "continue_distance": _LIST,
    "train_loss": "float64",
    "seconds": "float64",  # of training, up to the rung
    "tokens_per_second": "float64",
    "parameters": "int64",
    "train_flops_per_token": "float64",
    "prefill_flops_per_token": "float64",
    "memory": "float64",  # bytes at the peak of a training step, by the memory model
    "mlflow_run": "str",
}
CURVES: dict[str, str] = {"trial": "int64", "tokens": "int64", "loss": "float64", "learning_rate": "float64"}


def to_frame(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str] = TRIALS) -> pd.DataFrame:
    """Rows as a frame with exactly the columns and dtypes of the schema (`TRIALS` or `CURVES`).

    A missing float is NaN, a missing text is null, a missing list is empty. Raises `UsageError` for a column that
    the schema does not know and for a whole number that is missing or is none.
    """
    frame = pd.DataFrame([dict(row) for row in rows])
    if unknown := sorted(set(frame.columns) - set(columns)):
        raise UsageError(f"table: unknown columns {', '.join(unknown)}; known: {', '.join(columns)}")
    return _typed(frame.reindex(columns=list(columns)), columns)


def save(frame: pd.DataFrame, path: Path) -> None:
    """Write Parquet so that a reader sees the old file or the new one, never half of one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as file:
        frame.to_parquet(file, index=False)


def load(path: Path, columns: Mapping[str, str] = TRIALS) -> pd.DataFrame:
    """Read a table that `save` wrote. Raises `UsageError` if it is missing, unreadable or lacks a column."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such table; a sweep writes it when its first trial starts")
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are among these
        raise UsageError(f"{path}: not a readable Parquet file ({error})") from error
    if missing := [column for column in columns if column not in frame]:
        raise UsageError(f"{path}: lacks the columns {', '.join(missing)}")
    return _typed(frame[list(columns)], columns)


def selected_on(frame: pd.DataFrame) -> str:
    """The metric that the sweep of the table selects on; `METRIC` where the table is empty or does not say.

    Raises `UsageError` where it is no loss of the table.
    """
    said = frame["metric"].dropna()
    metric = METRIC if said.empty else str(said.iloc[0])
    if metric not in METRICS:
        raise UsageError(f"metric: {metric!r} is not one of {', '.join(METRICS)}")
    return metric


def latest(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per trial: its largest rung."""
    return frame.sort_values(["trial", "rung"]).drop_duplicates("trial", keep="last")


def comparable(frame: pd.DataFrame, metric: str = METRIC) -> pd.DataFrame:
    """The rows that a fair comparison of designs may use, one per (design, seed, rung).

    Left out: rows without a positive finite loss; all but the newest trial of a repeated (design, seed); and the
    rungs of a design beyond the one where any of its seeds was pruned. Pruning takes away the bad seeds, so the
    seeds left above such a rung would flatter the design.
    """
    loss = frame[metric]
    rows = frame[(frame["rung"] >= 1) & np.isfinite(loss) & (loss > 0)].sort_values(["trial", "rung"])
    newest = rows.groupby(["design", "seed"])["trial"].transform("max")
    rows = rows[rows["trial"] == newest]
    stopped = latest(rows[rows["state"] == "pruned"]).groupby("design")["rung"].min()
    return rows[rows["rung"] <= rows["design"].map(stopped.to_dict()).astype(float).fillna(np.inf)]


def documents(arm: pd.DataFrame, base: pd.DataFrame, metric: str = METRIC) -> tuple[np.ndarray, np.ndarray] | None:
    """Losses per document that both sides have, each the mean over its rows, (D,) and (D,).

    None where fewer than two are shared, or where rows differ in their number of documents.
    """
    column = f"{metric}_documents"
    lists = [np.asarray(values, dtype=float) for values in [*arm[column], *base[column]]]
    if len({values.size for values in lists}) != 1:
        return None
    losses = np.stack(lists)
    losses = losses[:, np.isfinite(losses).all(axis=0)]
    return (losses[: len(arm)].mean(axis=0), losses[len(arm) :].mean(axis=0)) if losses.shape[1] >= 2 else None


def _typed(frame: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    typed: dict[str, pd.Series] = {}
    for name, dtype in columns.items():
        try:
            typed[name] = frame[name].map(_floats).astype(object) if dtype == _LIST else frame[name].astype(dtype)
        except (TypeError, ValueError) as error:
            raise UsageError(f"table: column {name} is not {dtype} ({error})") from error
    return pd.DataFrame(typed, columns=list(columns))


def _floats(values: Any) -> list[float]:
    return [] if values is None or np.isscalar(values) else [float(value) for value in values]
