"""The Lightning module: one design, its loss and its optimizer.

Shapes: P scored positions.
"""

import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from search_space.compressor import Compressor, Size
from search_space.design import Design
from search_space.layout import Batch
from trainer import optim
from trainer.recipe import Recipe

__all__ = ["CompressorModule"]


class CompressorModule(LightningModule):
    """Trains `design` by `recipe`; the weights at the start depend on `seed` alone."""

    def __init__(self, design: Design, size: Size, recipe: Recipe, seed: int) -> None:
        super().__init__()
        self.recipe = recipe
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = Compressor(design, size)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Per scored position: cross-entropy in nats (P,), and whether the likeliest token is right (P,)."""
        logits_PV = self.model(batch).float()
        return F.cross_entropy(logits_PV, batch.target_P, reduction="none"), logits_PV.argmax(-1) == batch.target_P

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Mean over all scored positions of the step, so that every token weighs the same."""
        return F.cross_entropy(self.model(batch).float(), batch.target_P)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = optim.build(self.model, self.recipe)
        scheduler = LambdaLR(optimizer, self.recipe.rate_at)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
