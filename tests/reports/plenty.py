"""A made-up sweep with everything in it that a report can show, of any size; its losses have a known truth."""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from analysis.table import to_frame
from search_space.design import Design
from tests.analysis.synthetic import RUNG_TOKENS, trial

__all__ = ["curves_of", "rich"]

BASELINE = Design(window=32, ratio=8)
EFFECTS = {"concat": -0.25, "eos": 0.3, "bidirectional": 0.04, "attn_mlp": 0.08, "mlp_attn": 0.05}
RUNGS = 3
FACTORS = (0.5, 2.0)


def rich(trials: int = 120, documents: int = 64, seed: int = 0) -> pd.DataFrame:
    """`trials` in all: three controls, four seeds of the baseline, other designs at random with one to three, three
    of which are trained at other learning rates too; some are pruned, some fail, some are too large."""
    random = np.random.default_rng(seed)
    shared = np.exp(random.normal(0, 0.3, documents))
    rows: list[dict[str, Any]] = []

    def add(name: str, role: str, repeat: int, rate: float = 1.0) -> None:
        design, number = Design.parse(name), len({row["trial"] for row in rows})
        noise = np.exp(random.normal(0, 0.04))
        loss = _loss(design) * noise * (1 + 0.06 * np.log2(rate) ** 2 + 0.02 * np.log2(rate))
        own = shared * np.exp(random.normal(0, 0.1, documents))
        state, reason, reached = _fate(random, role)
        made = trial(
            number, name, float(loss), role=role, seed=repeat, state=state, reason=reason, reached=reached,
            rungs=RUNGS, documents=own / own.mean(),
        )  # fmt: skip
        params = {**design.params(), "rate": rate, "mlflow_run": f"{number:032x}", **_costs(design)}
        rows.extend(row | params for row in made)

    for name in ("uncompressed", "blind", BASELINE.but(control="encoderless").name):
        add(name, "control", 0)
    for repeat in range(4):
        add(BASELINE.name, "baseline", repeat)
    names = _names(random)
    for name in [BASELINE.name, *names[:2]]:
        for factor in FACTORS:
            add(name, "rate", 0, factor)
    while len({row["trial"] for row in rows}) < trials:
        name = names.pop(0) if names else f"{random.choice(_names(random))}"
        for repeat in range(min(int(random.integers(1, 4)), trials - len({row["trial"] for row in rows}))):
            add(name, "arm", repeat)
    return to_frame(rows)


def _names(random: np.random.Generator) -> list[str]:
    grid = product(
        ("mean", "concat", "eos"), (4, 8, 16), (16, 32, 64, 128, 256), (0, 8), ("causal", "bidirectional"),
        ("mlp", "attn_mlp", "mlp_attn"),
    )  # fmt: skip
    designs = {
        Design(p, ratio, window, overlap, mask, adapter, 0 if adapter == "mlp" else 1).name
        for p, ratio, window, overlap, mask, adapter in grid
    }
    return random.permutation(sorted(designs - {BASELINE.name})).tolist()


def _loss(design: Design) -> float:
    if design.control != "none":
        return {"uncompressed": 0.02, "blind": 4.2, "encoderless": 2.4}[design.control]
    effect = sum(EFFECTS.get(choice, 0.0) for choice in (design.pooling, design.mask, design.adapter))
    effect += 0.4 * np.log2(design.ratio / 8) - 0.05 * np.log2(design.window / 32)
    effect += 0.2 * (design.pooling == "eos") * (design.window >= 128)
    return float(0.8 * np.exp(effect))


def _costs(design: Design) -> dict[str, float]:
    extra = 1 + 0.15 * (design.adapter != "mlp") + design.overlap / design.window + design.window / 1024
    return {
        "train_flops_per_token": 7.4e6 * (extra + 4 / design.ratio),
        "prefill_flops_per_token": 1.1e6 * (extra + 8 / design.ratio),
        "memory": 2.5e8 * (extra + 2 / design.ratio),
    }


def _fate(random: np.random.Generator, role: str) -> tuple[str, str | None, int]:
    """State, reason, rungs reached."""
    chance = random.random() if role == "arm" else 1.0
    if chance < 0.02:
        return "failed", "Diverged: training loss is nan at step 112", 0
    if chance < 0.04:
        return "infeasible", "OutOfMemory: out of memory after step 0", 0
    if chance < 0.3:
        return "pruned", "worse than the top half", int(random.integers(1, RUNGS))
    return "complete", None, RUNGS


def curves_of(frame: pd.DataFrame, points: int = 100) -> pd.DataFrame:
    """Training curves of as many points per trial, up to its largest rung."""
    random = np.random.default_rng(0)
    last = frame[frame["rung"] > 0].groupby("trial")[["tokens", "train_loss"]].last()
    share = np.arange(1, points + 1) / points
    parts = [
        pd.DataFrame(
            {
                "trial": trial,
                "tokens": (share * tokens).astype(int),
                "loss": loss + 5 * np.exp(-6 * share * tokens / RUNG_TOKENS) + abs(random.normal(0, 0.02, points)),
                "learning_rate": 0.01,
            }
        )
        for trial, tokens, loss in last.itertuples()
    ]
    return pd.concat(parts)
