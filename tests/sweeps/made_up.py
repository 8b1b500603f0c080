"""A sweep whose losses are made up and believable, with everything that a real one leaves on the disk."""

from zlib import crc32

import numpy as np

from search_space.layout import Task
from sweeps.config import SweepConfig, dump
from sweeps.executor import Failed, Job
from sweeps.home import Home
from sweeps.ledger import Ledger
from tests.sweeps.virtual import run
from trainer.trial import Heldout, RungResult

__all__ = ["believable", "made_up"]

DOCUMENTS, POINTS = 6, 20
SHARES: dict[Task, float] = {"parallel": 1.0, "reconstruct": 0.9, "continue": 1.4}
FACTORS = {"encoderless": 1.6, "blind": 1.9, "uncompressed": 0.7, "concat": 0.8, "attn_mlp": 1.1}


def believable(job: Job) -> RungResult:
    """Losses fall as a power of the steps, and depend on design, seed and document."""
    recipe, design = job.spec.recipe, job.spec.design
    rng = np.random.default_rng(crc32(f"{design.name} {job.spec.seed}".encode()))
    parts = (design.control, design.pooling, design.adapter)
    factor = float(np.prod([f for part, f in FACTORS.items() if part in parts]) * np.exp(rng.normal(0, 0.02)))
    last, raw = recipe.rung_steps()[-1], recipe.piece * recipe.pieces
    step = recipe.rung_steps()[job.rung - 1]

    def loss(steps: float) -> float:
        return factor * (1.2 + 4.5 * (1 + 20 * steps / last) ** -0.7)

    points = np.unique(np.linspace(1, step, POINTS).astype(int)).tolist()
    curve = [(s * raw, loss(s) * float(np.exp(rng.normal(0, 0.03))), 1.0 if s < 0.9 * step else 0.3) for s in points]
    hard = np.random.default_rng(0).normal(1, 0.1, DOCUMENTS)  # a document is hard for all designs
    documents = {
        t: (loss(step) * share * hard * rng.normal(1, 0.02, DOCUMENTS)).tolist() for t, share in SHARES.items()
    }
    means = {str(task): float(np.mean(losses)) for task, losses in documents.items()}
    heldout = Heldout(
        means,
        {task: float(np.exp(-mean / 3)) for task, mean in means.items()},
        {str(task): losses for task, losses in documents.items()},
        {task: [(0, 0.8 * mean), (1, 0.9 * mean), (4, mean)] for task, mean in means.items()},
    )
    return RungResult(job.rung, step, step * raw, 40.0 * step / last, curve[-1][1], heldout, curve, [])


def made_up(config: SweepConfig, home: Home, failing: int | None = None, stop_after: int | None = None) -> Ledger:
    """Run the sweep, or go on with it. failing: number of a trial that diverges. stop_after: so many events."""
    folder = home.sweep(config.name)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.config.write_text(dump(config))

    def train(job: Job) -> tuple[float, RungResult | Failed]:
        if job.number == failing:
            return 1.0, Failed(job, "Diverged: training loss is nan", "trial")
        result = believable(job)
        folder.trial(job.number).mkdir(parents=True, exist_ok=True)
        result.save(folder.trial(job.number))
        return 1.0, result

    return run(config, home.study_url, train, stop_after=stop_after)
