"""A finished sweep and its ladder, made up: losses follow a known law of compute, with noise between seeds."""

from pathlib import Path
from zlib import crc32

import numpy as np

from search_space.layout import Task
from sweeps.config import SweepConfig, dump
from sweeps.executor import Job
from sweeps.home import Home
from sweeps.ladder import note_levels, plan_ladder
from sweeps.ledger import Ledger
from sweeps.scale_up import Wish
from sweeps.tables import refresh_tables
from tests.analysis.ladders import Truth
from tests.sweeps.virtual import config, run
from trainer.corpus import Corpus
from trainer.trial import Heldout, RungResult

__all__ = ["ARM", "BASELINE", "LADDER", "SMALL", "SWEEP", "home_of", "made_up_ladder", "made_up_sweep"]

BASELINE, ARM = "mean-w16-causal-mlp-O0-n4", "concat-w16-causal-mlp-O0-n4"
SWEEP = config(
    *("name=small", "metric=continue", "trials=8", "seeds=3", "replicates=3", "sampler=grid", "ablations=false"),
    *("controls=[blind,encoderless]", "pruner=none", f"space.designs=[{BASELINE},{ARM}]"),
    *("recipe.format=published", "recipe.piece=256", "recipe.documents=6", "recipe.steps=48"),
)
SMALL = Wish(encoder="base", decoder="base", tokens=1e-6, batch=2048, length=256)
"""A run of the sweep's own size on its own corpus."""
LADDER = (0.5, 1.0, 2.0)
TRUTHS = {BASELINE: Truth(2.0, 0.05), ARM: Truth(1.8, 0.05)}
NOISE, DOCUMENTS = 0.002, 6
SHARES: dict[Task, float] = {"parallel": 1.0, "reconstruct": 0.9, "continue": 1.0}


def home_of(folder: Path, corpus: Corpus) -> Home:
    """A home with a corpus."""
    (folder / "corpora").symlink_to(corpus.folder.parent, target_is_directory=True)
    return Home(folder)


def made_up_sweep(
    home: Home, corpus: Corpus, config: SweepConfig = SWEEP, arm: Truth = TRUTHS[ARM], stop_after: int | None = None
) -> Ledger:
    """Everything that a sweep leaves but for checkpoints and MLflow's runs. stop_after: so many events."""
    folder, truths = home.sweep(config.name), TRUTHS | {ARM: arm}
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.config.write_text(dump(config))
    folder.corpus.write_text(corpus.folder.name)

    def train(job: Job) -> tuple[float, RungResult]:
        design, recipe = job.spec.design, job.spec.recipe
        step = recipe.rung_steps()[job.rung - 1]
        tokens = step * recipe.piece * recipe.pieces
        noise = np.random.default_rng(crc32(f"{config.name} {design.name} {job.spec.seed}".encode())).normal(0, NOISE)
        truth = truths.get(design.name, Truth(4.0, 0.0))
        loss = truth.at(6 * config.cost(design).parameters * tokens) * float(np.exp(noise))
        hard = np.random.default_rng(crc32(design.name.encode())).normal(1, 0.01, DOCUMENTS)
        documents = {str(task): (loss * share * hard / hard.mean()).tolist() for task, share in SHARES.items()}
        means = {task: float(np.mean(losses)) for task, losses in documents.items()}
        heldout = Heldout(means, dict.fromkeys(means, 0.5), documents, {t: [(0, mean)] for t, mean in means.items()})
        result = RungResult(job.rung, step, tokens, 1.0, loss, heldout, [(tokens, loss, 1.0)], [])
        folder.trial(job.number).mkdir(parents=True, exist_ok=True)
        result.save(folder.trial(job.number))
        return 1.0, result

    ledger = run(config, home.study_url, train, stop_after=stop_after)
    refresh_tables(home, config.name)
    return ledger


def made_up_ladder(
    home: Home, corpus: Corpus, sweep: str = SWEEP.name, arm: Truth = TRUTHS[ARM], seeds: int = 3
) -> None:
    plan = plan_ladder(home, sweep, top=2, seeds=seeds, sizes=LADDER)
    note_levels(home, sweep, plan)
    for level in plan.levels:
        made_up_sweep(home, corpus, level, arm)
