"""A table of small trainings that were really done, to replay sweeps on: every design of a space, several seeds, every
rung.

`record` trains it anew in 15 minutes on one core. Losses are held-out, those of the documents too, of the metric of
`CONFIG`; seconds are of CPU time on one thread, of a rung alone, with all that a trial needs beside its steps. All
designs are trained with a seed before the next one, so that a recording that is stopped has whole seeds.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from search_space.compressor import Size
from search_space.errors import UsageError
from search_space.space import Space
from search_space.transformer import Shape
from sweeps.config import SweepConfig, dump
from trainer.recipe import Lesson, Recipe

__all__ = ["CONFIG", "TABLE", "Recorded", "record"]

TABLE = Path(__file__).parents[2] / "tests" / "assets" / "sweep_table.parquet"

_SHAPE = Shape(layers=1, width=64, heads=2, kv_heads=2, head_width=32, feedforward=128)
CONFIG = SweepConfig(
    name="recorded",
    baseline="mean-w16-causal-mlp-O0-n8",
    seeds=2,
    controls=[],
    space=Space(
        pooling=["mean", "concat", "eos", "attention", "conv"],
        ratio=[8],
        window=[8, 16],
        mask=["causal", "bidirectional"],
        adapter=["mlp", "attn_mlp", "mlp_attn"],
    ),
    size=Size(encoder=_SHAPE, decoder=_SHAPE),
    recipe=Recipe(
        steps=160,
        rungs=[0.25, 0.5, 1.0],
        piece=32,
        pieces=12,
        curriculum=[Lesson(0.4, 16), Lesson(1.0, 32)],
    ),
)
"""What was recorded: 60 designs that train in 6 seconds, on the sources of Python's standard library."""

_DIGITS = 10_000  # losses are kept as whole multiples of its inverse


@dataclass(frozen=True)
class Recorded:
    """The table. about: how and on what it was recorded.

    Shapes: D designs in the order of the space, S seeds, R rungs, H held-out documents.
    loss_DSR: nats per token; documents_DSRH: of each document; seconds_DSR: of each rung alone; tokens_DSR: raw tokens
    seen by its end.
    """

    about: dict[str, Any]
    designs: list[str]
    loss_DSR: np.ndarray
    documents_DSRH: np.ndarray
    seconds_DSR: np.ndarray
    tokens_DSR: np.ndarray

    @classmethod
    def load(cls, path: Path) -> "Recorded":
        """Raises `UsageError` where the file is no such table, or lacks a design with a seed at a rung."""
        try:
            table = pq.read_table(path)
            about = json.loads((table.schema.metadata or {})[b"about"])
        except (OSError, KeyError, pa.ArrowInvalid) as error:
            raise UsageError(f"table: {path} is not a recorded table; lclab bench sweep --record makes one") from error
        frame = table.to_pandas()
        designs, seeds, rungs = list(dict.fromkeys(frame["design"])), frame["seed"].nunique(), frame["rung"].nunique()
        ordered = frame.assign(place=frame["design"].map({name: i for i, name in enumerate(designs)}))
        ordered = ordered.sort_values(["place", "seed", "rung"])
        shape = (len(designs), seeds, rungs)
        if len(ordered) != len(designs) * seeds * rungs or ordered.duplicated(["design", "seed", "rung"]).any():
            raise UsageError(f"table: {path} has {len(ordered)} rows, which are not {shape} designs, seeds and rungs")
        documents = np.stack(ordered["documents"].to_list()) / _DIGITS
        columns = (ordered[name].to_numpy().reshape(shape) for name in ("loss", "seconds", "tokens"))
        loss, seconds, tokens = columns
        return cls(about, designs, loss, documents.reshape(*shape, -1), seconds, tokens)

    @cached_property
    def truth_D(self) -> np.ndarray:
        """The loss of each design at the end, mean over its seeds."""
        return self.loss_DSR[:, :, -1].mean(1)

    @cached_property
    def sigma(self) -> float:
        """Standard deviation over the seeds of a loss at the end, but for what a seed does to all designs alike: the
        residual of a two-way layout of the best quarter of the designs, which are those to be told apart. Seeds of the
        others differ by more."""
        best = np.argsort(self.truth_D)[: max(2, len(self.designs) // 4)]
        loss_DS = self.loss_DSR[best, :, -1]
        rest_DS = loss_DS - loss_DS.mean(1, keepdims=True) - loss_DS.mean(0) + loss_DS.mean()
        return float(np.sqrt((rest_DS**2).sum() / ((loss_DS.shape[0] - 1) * (loss_DS.shape[1] - 1))))

    @property
    def noise(self) -> float:
        """Standard deviation of the difference of two designs at the end, with one seed that they share."""
        return sqrt(2) * self.sigma

    @property
    def contenders(self) -> int:
        """Designs within noise of the best one, itself included."""
        return int((self.truth_D - self.truth_D.min() <= self.noise).sum())

    @property
    def seeds(self) -> int:
        return self.loss_DSR.shape[1]


def record(folder: Path, tick: Callable[[str], None] = lambda what: None, config: SweepConfig = CONFIG) -> Path:
    """Train every design of `config` with every seed, and write `folder/sweep_table.parquet`.

    A second call goes on after the last trial of the first. A trial that was cut off begins anew, since its seconds
    would be of a part.
    """
    import torch

    from trainer.prepare import prepare
    from trainer.pretrain import pretrain
    from trainer.trial import TrialSpec

    torch.set_num_threads(1)
    corpus = prepare(config.corpus, folder / "corpora", 1)
    rows, designs = folder / "rows.jsonl", list(config.space.members())
    done = {(row["design"], row["seed"]) for row in _rows(rows)}
    for seed in range(config.seeds):
        for number, design in enumerate(designs):
            if (design.name, seed) in done:
                continue
            tick(f"{design.name}, seed {seed}: {seed * len(designs) + number + 1} of {config.seeds * len(designs)}")
            spec = TrialSpec(design, config.model_size(), config.recipe, seed, str(corpus.folder.resolve()))
            shutil.rmtree(trial := folder / "trial", ignore_errors=True)
            found = []
            for rung in range(1, len(config.recipe.rungs) + 1):
                start = time.process_time()
                result = pretrain(spec, trial, rung)
                seconds, heldout = time.process_time() - start, result.heldout
                row = {"design": design.name, "seed": seed, "rung": rung, "seconds": seconds, "tokens": result.tokens}
                row |= {task: loss for task, loss in heldout.loss.items()}
                found.append(row | {"documents": heldout.documents[config.metric], "wall": result.seconds})
            with rows.open("a") as stream:
                stream.write("".join(json.dumps(row) + "\n" for row in found))
    return _write(
        rows, folder / "sweep_table.parquet", config, {"text": corpus.manifest["key"], "torch": torch.__version__}
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _write(rows: Path, path: Path, config: SweepConfig, about: dict[str, str]) -> Path:
    """The seeds that every design has; losses to four digits; the configuration in the file's metadata."""
    frame = pd.DataFrame(_rows(rows)).rename(columns={config.metric: "loss"})
    whole = frame.groupby("seed")["design"].transform("nunique") == len(list(config.space.members()))
    frame = frame[whole].copy()
    frame["documents"] = [(_DIGITS * np.asarray(d)).round().astype("int32") for d in frame["documents"]]
    for name, digits in {"loss": 4, "reconstruct": 4, "continue": 4, "seconds": 3}.items():
        if name in frame:
            frame[name] = frame[name].round(digits)
    columns = ["design", "seed", "rung", "loss", "reconstruct", "continue", "seconds", "tokens", "documents"]
    frame = frame.sort_values(["seed", "rung"], kind="stable")[[c for c in columns if c in frame]]
    table = pa.Table.from_pandas(frame, preserve_index=False)
    notes = about | {"config": dump(config), "command": "lclab bench sweep --record FOLDER"}
    pq.write_table(table.replace_schema_metadata({"about": json.dumps(notes)}), path, compression="zstd")
    return path
