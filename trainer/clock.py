"""The clock of a trial: its curve and its time, when it writes a checkpoint, and what makes it stop."""

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from search_space.files import write_json
from search_space.layout import Batch
from trainer import checkpoint
from trainer.module import CompressorModule
from trainer.stream import TrainingSamples
from trainer.trial import Diverged, Evaluation, Heldout, Progress, TrialSpec

__all__ = ["LIVE", "Clock"]

CURVE_POINTS = 60  # per trial
LIVE = "live.json"  # what is known of a trial on its way, for whoever watches
KEPT = 2  # checkpoints: the newest, and the one before it should the newest be damaged


class Clock(Callback):
    """Keeps curve and time, writes checkpoints, watches for divergence and for the wish to stop.

    evaluate: the held-out loss at the moment, asked for as often as the recipe says.
    """

    def __init__(
        self,
        spec: TrialSpec,
        samples: TrainingSamples,
        folder: Path,
        rung: int,
        progress: Progress,
        evaluate: Callable[[Trainer], Heldout] | None = None,
    ) -> None:
        self.folder, self.progress = folder, progress
        self.stop = spec.recipe.rung_steps()[rung - 1]
        self.recipe = spec.recipe
        self.every = max(1, spec.recipe.steps // CURVE_POINTS)
        self._samples, self._evaluate = samples, evaluate
        self.step, self.seconds, self.interrupted = 0, 0.0, False
        self.curve: list[tuple[int, float, float]] = []
        self.recovered: list[str] = []
        self.evaluations: list[Evaluation] = []
        self._losses: list[Tensor] = []  # since the last point of the curve
        self._before: list[float] = []  # likewise, before a checkpoint
        self._since = 0.0

    def tokens(self) -> int:
        return self._samples.raw_tokens(self.step)

    def state_dict(self) -> dict[str, Any]:
        pending = torch.stack(self._losses).tolist() if self._losses else []
        evaluations = [tuple(evaluation) for evaluation in self.evaluations]
        known = {"step": self.step, "seconds": self._elapsed(), "curve": self.curve, "evaluations": evaluations}
        return known | {"pending": pending}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step, self.seconds, self.curve = state_dict["step"], state_dict["seconds"], state_dict["curve"]
        self.evaluations = [Evaluation(*entry) for entry in state_dict.get("evaluations", [])]
        self._before = state_dict["pending"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._losses = [torch.tensor(loss, device=pl_module.device) for loss in self._before]
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:  # a batch of a step that goes on
            return
        self.step += 1
        assert isinstance(pl_module, CompressorModule)
        self._losses.append(pl_module.step_loss.detach().clone())
        marks = self.step % self.every == 0 or self.step == self.stop
        if marks:
            self._mark()
        if self._evaluate and self.recipe.evaluate_every and self.step % self.recipe.evaluate_every == 0:
            self._look(self._evaluate, trainer)
            marks = True
        if marks and self.recipe.evaluate_every and trainer.is_global_zero:  # a sweep's trial is watched by its driver
            evaluations = [evaluation._asdict() for evaluation in self.evaluations]
            write_json(self.folder / LIVE, {"step": self.step, "curve": self.curve, "evaluations": evaluations})
        self.interrupted = self._wants_to_stop(trainer) and self.step < self.stop
        if self.step % self.recipe.checkpoint_every == 0 or self.step == self.stop or self.interrupted:
            self._checkpoint(trainer)
        trainer.should_stop = self.interrupted

    def _wants_to_stop(self, trainer: Trainer) -> bool:
        """Whether any rank was asked to."""
        wish = not self.progress(self.step, self.tokens())
        return trainer.strategy.reduce_boolean_decision(wish, all=False) if trainer.world_size > 1 else wish

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

    def _look(self, evaluate: Callable[[Trainer], Heldout], trainer: Trainer) -> None:
        """Evaluate; the time it takes is not training's."""
        self.seconds, self._since = self._elapsed(), 0.0
        loss = evaluate(trainer).loss
        self.evaluations.append(Evaluation(self.step, self.tokens(), loss))
        if not all(map(math.isfinite, loss.values())):
            raise Diverged(f"held-out loss is {loss} at step {self.step}")
        self._since = time.perf_counter()

    def _checkpoint(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(checkpoint.path_of(self.folder, self.step), weights_only=False)
        if trainer.is_global_zero:
            for old in checkpoint.steps(self.folder)[:-KEPT]:
                shutil.rmtree(checkpoint.path_of(self.folder, old), ignore_errors=True)
