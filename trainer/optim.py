"""Muon for the matrices of the layers, AdamW for everything else, as one optimizer.

Both are torch's own. They are joined so that Lightning sees one optimizer: one step count, one clipping, one
schedule, one state to save.
"""

from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from search_space.compressor import matrices
from trainer.recipe import Recipe

__all__ = ["MuonAdamW", "build"]


class MuonAdamW(Optimizer):
    """Steps both parts; parameter groups and state are the union of theirs."""

    def __init__(self, muon: Muon, adamw: AdamW) -> None:
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._muon, self._adamw = muon, adamw
        self._share()

    def _share(self) -> None:
        """Let the parts work on this optimizer's groups and state, also after either was replaced by loading."""
        split = len(self._muon.param_groups)
        self._muon.param_groups, self._adamw.param_groups = self.param_groups[:split], self.param_groups[split:]
        self._muon.state = self._adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._muon.step()
        self._adamw.step()
        return loss


def build(model: nn.Module, recipe: Recipe) -> MuonAdamW:
    """The optimizer of `recipe`. Weights of linear layers go to Muon; embeddings, an untied head, norms and biases to
    AdamW, without weight decay."""
    for_muon = matrices(model)
    chosen = {id(p) for p in for_muon}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return MuonAdamW(
        Muon(for_muon, lr=recipe.muon_rate, weight_decay=recipe.weight_decay),
        AdamW(rest, lr=recipe.adamw_rate, betas=(0.9, 0.95), weight_decay=0.0),
    )
