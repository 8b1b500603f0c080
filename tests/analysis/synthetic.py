"""Made-up sweeps with a known truth, odd ones included."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.table import CURVES, DISTANCES, save, to_frame
from search_space.design import Design
from search_space.errors import UsageError

BASELINE = "mean-w128-causal-mlp-O0-n8"
ENCODERLESS = "mean-w8-causal-mlp-O0-n8-encoderless"
TRUTH = {
    BASELINE: 0.80,
    "concat-w128-causal-mlp-O0-n8": 0.12,
    "mean-w8-causal-mlp-O0-n8": 0.72,
    "mean-w128-bidirectional-mlp-O0-n8": 0.79,
    "mean-w128-causal-attn_mlp-O0-n8": 0.84,
    "eos-w128-causal-mlp-O0-n8": 1.10,
    "mean-w128-causal-mlp-O0": 1.60,
}
CONTROLS = {"uncompressed": 0.02, "blind": 4.2, ENCODERLESS: 2.4}
CONFIG = "name: synthetic\nspace:\n  pooling: [mean, concat, eos]\nseeds: 3\nnote: <b>not markup</b>\n"
RUNG_TOKENS = 300_000


def trial(
    number: int,
    design: str,
    loss: float,
    *,
    role: str = "arm",
    seed: int = 0,
    state: str = "complete",
    reason: str | None = None,
    reached: int = 2,
    rungs: int = 2,
    documents: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """The rows of one trial: early rungs are a little worse than the last. (D,) documents have mean 1."""
    head = design.split("-")[0]
    control = design if design in ("uncompressed", "blind") else "encoderless" if "encoderless" in design else "none"
    prediction = 3.9 - 0.05 * loss if control == "none" else 3.9 + 0.05 * loss
    shape = np.ones(4) if documents is None else documents
    axes = {
        "pooling": "mean" if head == control else head,
        "ratio": 8, "window": 128, "overlap": 0, "mask": "causal", "adapter": "mlp", "depth": 0,
        "encoder": "base", "decoder": "base", "embeddings": "base", "positions": "base", "control": control,
    } | _axes(design)  # fmt: skip
    row = axes | {
        "trial": number, "design": design, "role": role, "seed": seed, "state": state, "reason": reason,
        "rungs": rungs, "parameters": 1_234_567, "train_flops_per_token": 7.4e6, "prefill_flops_per_token": 1.1e6,
        "memory": 2.5e8, "rate": 1.0, "mlflow_run": None,
    }  # fmt: skip
    if not reached:
        return [row | {"rung": 0, "step": 0, "tokens": 0}]
    return [
        row
        | {
            "rung": rung, "step": 300 * rung, "tokens": RUNG_TOKENS * rung,
            "parallel": worse * loss, "reconstruct": 0.9 * worse * loss, "continue": prediction,
            "parallel_accuracy": 0.7, "reconstruct_accuracy": 0.7, "continue_accuracy": 0.2,
            "parallel_documents": worse * loss * shape, "reconstruct_documents": 0.9 * worse * loss * shape,
            "continue_documents": prediction * shape,
            "continue_distance": [prediction - 0.2 / (1 + d) if d < 256 else np.nan for d in DISTANCES],
            "train_loss": worse * loss, "seconds": 25.0 * rung, "tokens_per_second": 12_000.0,
        }
        for rung, worse in ((rung, 1.0 + 0.5 * (rungs - rung)) for rung in range(1, reached + 1))
    ]  # fmt: skip


def _axes(design: str) -> dict[str, Any]:
    """Of a name that is one; controls keep the axes of the baseline."""
    try:
        axes = Design.parse(design).params()
    except UsageError:
        return {}
    return axes if axes["control"] == "none" else {}


def sweep(
    truth: Mapping[str, float] = TRUTH,
    *,
    controls: Mapping[str, float] = CONTROLS,
    baseline: str | None = BASELINE,
    baseline_seeds: int = 3,
    arm_seeds: int = 1,
    sigma: float = 0.05,
    document_sigma: float = 0.1,
    documents: int = 32,
    seed: int = 0,
    pruned: Sequence[str] = (),
) -> pd.DataFrame:
    """Losses of two levels: log-normal noise per trial, and per design and document."""
    random = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    number = 0
    for design, loss in {**truth, **controls}.items():
        role = "baseline" if design == baseline else "control" if design in controls else "arm"
        own = np.exp(random.normal(0, document_sigma, documents) - document_sigma**2 / 2)
        for repeat in range(baseline_seeds if role == "baseline" else arm_seeds):
            noisy = loss * np.exp(random.normal(0, sigma)) * own.mean()
            stopped = design in pruned
            rows += trial(
                number, design, noisy, role=role, seed=repeat, documents=own / own.mean(), reached=1 if stopped else 2,
                state="pruned" if stopped else "complete", reason="worse than the top half" if stopped else None,
            )  # fmt: skip
            number += 1
    return to_frame(rows)


def curves(frame: pd.DataFrame) -> pd.DataFrame:
    last = frame[frame["rung"] > 0].groupby("trial")[["tokens", "train_loss"]].last()
    random = np.random.default_rng(0)
    tokens = np.arange(1, 41)
    rows = [
        {"trial": trial, "tokens": int(t * end / 40), "loss": loss + 5 * np.exp(-t / 6) + abs(random.normal(0, 0.02)),
         "learning_rate": 0.01}
        for trial, end, loss in last.itertuples()
        for t in tokens
    ]  # fmt: skip
    return to_frame(rows, CURVES)


def write(folder: Path, frame: pd.DataFrame) -> Path:
    """A sweep's folder, as the sweep itself leaves it."""
    save(frame, folder / "trials.parquet")
    save(curves(frame), folder / "curves.parquet")
    (folder / "sweep.yaml").write_text(CONFIG, encoding="utf-8")
    return folder


def odd_sweeps() -> dict[str, pd.DataFrame]:
    """Every shape of sweep that a report must tell the truth about."""
    names = list(TRUTH)
    failed = [trial(i, d, 1.0, state="failed", reason="loss is NaN at step 12", reached=0) for i, d in enumerate(names)]
    running = [
        *trial(0, BASELINE, 0.8, role="baseline"),
        *trial(1, BASELINE, 0.82, role="baseline", seed=1),
        *trial(2, names[1], 0.2, reached=1, state="running"),
        *trial(3, names[2], 0.7, reached=0, state="running"),
        *trial(4, "<script>alert(1)</script>", 0.7, reached=0, state="failed", reason="<img src=x onerror=alert(1)>"),
    ]
    return {
        "empty": to_frame([]),
        "running": to_frame(running),
        "waiting": to_frame(trial(0, BASELINE, 1.0, role="baseline", reached=0, state="running")),
        "failed": to_frame([row for rows in failed for row in rows]),
        "single seed": sweep(baseline_seeds=1),
        "no baseline": sweep(baseline=None),
        "baseline failed": to_frame(
            [
                *trial(0, BASELINE, 1.0, role="baseline", reached=0, state="failed", reason="disk full"),
                *trial(1, names[1], 0.2),
            ]
        ),
        "baseline only": sweep({BASELINE: 0.8}, controls={}),
        "normal": sweep(pruned=names[-2:]),
        "three seeds": sweep(arm_seeds=3),
    }
