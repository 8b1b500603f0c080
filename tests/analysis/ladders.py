"""Made-up ladders with known laws: levels of one sweep each, with noise between seeds and between documents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.ladder import Level, Target
from analysis.table import to_frame
from tests.analysis.synthetic import BASELINE, trial

ARM = "concat-w128-causal-mlp-O0-n8"
OTHER = "mean-w8-causal-mlp-O0-n8"
SIZES = (100_000, 300_000, 1_000_000, 3_000_000)
"""Parameters; with 20 tokens for each, one tenfold of compute from level to level, nearly."""


@dataclass(frozen=True)
class Truth:
    """E + A (C / 1e13)^-alpha, in nats per token."""

    A: float
    alpha: float
    E: float = 0.0

    def at(self, compute: float) -> float:
        return self.E + self.A * (compute / 1e13) ** -self.alpha


TRUTHS = {BASELINE: Truth(2.0, 0.08, 1.0), ARM: Truth(1.94, 0.08, 1.0), OTHER: Truth(2.2, 0.075, 1.0)}


def ladder(
    truths: Mapping[str, Truth] = TRUTHS,
    sizes: Sequence[int] = SIZES,
    *,
    seeds: int = 3,
    sigma: float = 0.003,
    document_sigma: float = 0.01,
    documents: int = 24,
    rungs: int = 2,
    seed: int = 0,
) -> list[Level]:
    """Documents differ between designs in the same way at every level; their mean is 1, so that laws hold for them."""
    random = np.random.default_rng(seed)
    own = {design: np.exp(random.normal(0, document_sigma, documents)) for design in truths}
    levels = []
    for size in sizes:
        rows = []
        for design, truth in truths.items():
            for repeat in range(seeds):
                noise = np.exp(random.normal(0, sigma))
                role = "baseline" if design == BASELINE else "arm"
                mine = trial(
                    len(rows), design, 1.0, role=role, seed=repeat, reached=rungs, rungs=rungs,
                    documents=own[design] / own[design].mean(),
                )  # fmt: skip
                for row in mine:
                    row["tokens"] = 20 * size * row["rung"] // rungs
                    loss = truth.at(6 * size * row["tokens"]) * noise
                    factor = loss / row["parallel"]
                    row["parallel"], row["parallel_documents"] = loss, row["parallel_documents"] * factor
                    row["trial"] = len(rows)
                rows += mine
        levels.append(Level(f"{size:,}", size, to_frame(rows)))
    return levels


def target(size: int = 30_000_000) -> Target:
    return Target(size, 20.0 * size)
