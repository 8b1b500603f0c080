"""Pre-train one design up to a rung: the one function that every sweep, test and benchmark calls.

What a call leaves in the trial's folder: `step-*.safetensors` (the two newest checkpoints) and `rung-K.json` for each
rung reached. Calling again continues from the newest good checkpoint, bit for bit as if it had not stopped; a rung
already reached is read back, not trained again.
"""

import logging
import math
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from search_space.layout import Batch
from trainer import checkpoint
from trainer.corpus import Corpus
from trainer.evaluate import evaluate
from trainer.module import CompressorModule
from trainer.recipe import Recipe, precision_of
from trainer.stream import Steps, TrainingSamples, heldout_batches
from trainer.trial import Diverged, Interrupted, Progress, RungResult, TrialSpec

__all__ = ["pretrain"]

CURVE_POINTS = 60  # per trial
KEPT = 2  # checkpoints: the newest, and the one before it should the newest be damaged


def pretrain(spec: TrialSpec, folder: Path, rung: int, progress: Progress = lambda step, tokens: True) -> RungResult:
    """Train to the end of `rung` and evaluate there.

    Raises `Diverged`, or `Interrupted` when `progress` returned False; either way `folder` holds what the next call
    needs.
    """
    reached = RungResult.path(folder, rung)
    if reached.exists():
        return RungResult.load(reached)
    folder.mkdir(parents=True, exist_ok=True)
    for scratch in folder.glob("*.part"):  # of a process that was killed while it wrote
        scratch.unlink(missing_ok=True)
    _quiet()
    corpus = Corpus(Path(spec.corpus), verify=False)  # the sweep has verified it once for all trials
    samples = TrainingSamples(corpus.train, spec.recipe, spec.seed)
    documents = list(heldout_batches(corpus, spec.recipe, spec.design, spec.size))
    module = CompressorModule(spec.design, spec.size, spec.recipe, spec.seed)
    clock = _Clock(spec, samples, folder, rung, progress)
    start, clock.recovered = checkpoint.newest(folder, clock.stop)
    trainer = _trainer(spec.recipe, clock)
    first = checkpoint.step_of(start) if start else 0
    if start is None or first < clock.stop:
        steps = Steps(samples, spec.design, spec.size, corpus.specials, first)
        trainer.fit(module, DataLoader(steps, batch_size=None), ckpt_path=start, weights_only=False)
    else:  # killed between the rung's checkpoint and its evaluation
        trainer.strategy.connect(module)
        state = checkpoint.read(start)
        module.load_state_dict(state["state_dict"])
        clock.load_state_dict(state["callbacks"][clock.state_key])
    if clock.interrupted:
        raise Interrupted(f"stopped at step {clock.step}")
    module.trainer = trainer
    heldout = evaluate(module, documents)
    if not all(map(math.isfinite, heldout.loss.values())):
        raise Diverged(f"held-out loss is {heldout.loss} at step {clock.step}")
    result = RungResult(
        rung, clock.step, clock.tokens(), clock.seconds, clock.curve[-1][1], heldout, clock.curve, clock.recovered
    )
    result.save(folder)
    return result


class _Clock(Callback):
    """Keeps curve and time, writes checkpoints, watches for divergence and for the wish to stop."""

    def __init__(self, spec: TrialSpec, samples: TrainingSamples, folder: Path, rung: int, progress: Progress) -> None:
        self.folder, self.progress = folder, progress
        self.stop = spec.recipe.rung_steps()[rung - 1]
        self.recipe = spec.recipe
        self.every = max(1, spec.recipe.steps // CURVE_POINTS)
        self.raw_tokens = samples.raw_tokens(self.stop)
        self.step, self.seconds, self.interrupted = 0, 0.0, False
        self.curve: list[tuple[int, float, float]] = []
        self.recovered: list[str] = []
        self._losses: list[Tensor] = []
        self._since = 0.0

    def tokens(self) -> int:
        return int(self.raw_tokens[self.step - 1])

    def state_dict(self) -> dict[str, Any]:
        pending = torch.stack(self._losses) if self._losses else torch.zeros(0)
        return {"step": self.step, "seconds": self._elapsed(), "curve": self.curve, "pending": pending}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step, self.seconds, self.curve = state_dict["step"], state_dict["seconds"], state_dict["curve"]
        self._losses = list(state_dict["pending"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.step += 1
        self._losses.append(outputs["loss"].detach())
        if self.step % self.every == 0 or self.step == self.stop:
            self._mark()
        self.interrupted = not self.progress(self.step, self.tokens()) and self.step < self.stop
        if self.step % self.recipe.checkpoint_every == 0 or self.step == self.stop or self.interrupted:
            self._checkpoint(trainer)
        trainer.should_stop = self.interrupted

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = self._elapsed()
        self._since = 0.0

    def _elapsed(self) -> float:
        return self.seconds + (time.perf_counter() - self._since if self._since else 0.0)

    def _mark(self) -> None:
        loss = float(torch.stack(self._losses).mean())
        if not math.isfinite(loss):
            raise Diverged(f"training loss is {loss} at step {self.step}")
        self.curve.append((self.tokens(), loss, self.recipe.rate_at(self.step - 1)))
        self._losses.clear()

    def _checkpoint(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.folder / f"step-{self.step:09d}.safetensors", weights_only=False)
        for old in sorted(self.folder.glob("step-*.safetensors"), key=checkpoint.step_of)[:-KEPT]:
            old.unlink(missing_ok=True)


def _trainer(recipe: Recipe, clock: _Clock) -> Trainer:
    return Trainer(
        accelerator="auto",
        devices=1,
        max_steps=clock.stop,
        precision=precision_of(recipe),
        gradient_clip_val=recipe.clip,
        callbacks=[clock],
        plugins=[checkpoint.SafetensorsIO()],
        logger=False,
        enable_checkpointing=False,  # `_Clock` decides when
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _quiet() -> None:
    """Lightning's advice is for people who call it by hand."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for advice in ("does not have many workers", "Mismatch dtype between input", "not resumable", "LeafSpec"):
        warnings.filterwarnings("ignore", f".*{advice}.*")
