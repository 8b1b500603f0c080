"""The Lightning module: one design, its loss, its optimizer and its evaluation.

Shapes: P scored positions.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from search_space.compressor import Compressor, Size
from search_space.design import Design
from search_space.layout import Batch
from trainer import optim, scaling
from trainer.evaluate import Scores, summarise
from trainer.parallel import Parallel
from trainer.recipe import Recipe
from trainer.strategies import shard
from trainer.trial import Heldout

__all__ = ["CompressorModule"]


class CompressorModule(LightningModule):
    """Trains `design` by `recipe`; the weights at the start depend on `seed` alone.

    step_loss: of the last step, nats per scored token over all ranks and accumulated batches. heldout: of the last
    validation.
    """

    def __init__(self, design: Design, size: Size, recipe: Recipe, seed: int, parallel: Parallel | None = None) -> None:
        super().__init__()
        self.recipe, self.parallel = recipe, parallel or Parallel()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = Compressor(design, size)
        scaling.rescale(self.model, recipe.optim.scaling)
        optim.freeze(self.model, recipe.optim)
        self.model.checkpoint_activations(self.parallel.recompute)
        self.step_loss = torch.zeros(())
        self.heldout = Heldout({}, {}, {}, {})
        self._totals: list[Tensor] = []  # (loss, tokens) of the step's batches
        self._scores: list[Scores] = []
        self._trained: list[nn.Parameter] = []

    def configure_model(self) -> None:
        if self.parallel.strategy == "fsdp":
            assert self.device_mesh is not None, "the strategy has set it"
            shard(self.model, self.device_mesh)

    def on_train_start(self) -> None:
        self._trained = [w for w in self.parameters() if w.requires_grad]  # once: a walk takes half a millisecond

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Sum over the scored positions; `configure_gradient_clipping` divides by their number in the whole step."""
        loss = self.model.loss(batch)
        self._totals.append(torch.stack([loss.detach(), loss.new_tensor(len(batch.target_P))]))
        return loss * self.trainer.accumulate_grad_batches  # which Lightning divides by

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        """Every token of the step weighs the same, on whichever rank and in whichever batch it was."""
        total, tokens = torch.stack(self._totals).sum(0)
        self._totals.clear()
        ranks = self.trainer.world_size
        if ranks > 1:
            both = torch.stack([total, tokens])
            dist.all_reduce(both)
            total, tokens = both
        self.step_loss = total / tokens
        torch._foreach_mul_([w.grad for w in self._trained if w.grad is not None], ranks / tokens)  # ranks average
        torch.nn.utils.clip_grad_norm_(self._trained, self.recipe.optim.clip)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if not self._totals:  # the step is over; gradients need not wait for the next one
            for weight in self._trained:
                weight.grad = None

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Done in `on_train_batch_end`."""

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Without a walk through the batch where it is there already."""
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def validation_step(self, batch: Batch, index: int) -> None:
        loss, right = self.model.scores(batch)
        self._scores.append(Scores(loss, right, batch.task_P, batch.document_P, batch.offset_P))

    def on_validation_epoch_end(self) -> None:
        self.heldout = summarise(self._scores)
        self._scores.clear()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = optim.build(self.model, self.recipe.optim)
        groups = optimizer.param_groups
        factors: list[Callable[[int], float]] = [partial(self.recipe.rate_at, peak=group["lr"]) for group in groups]
        scheduler = LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
