"""Held-out evaluation: fixed documents and positions, one loss per document and task, so that designs can be paired."""

import torch

from search_space.layout import TASKS, Batch
from trainer.module import CompressorModule
from trainer.trial import Heldout

__all__ = ["evaluate"]


@torch.no_grad()
def evaluate(module: CompressorModule, batches: list[Batch]) -> Heldout:
    """Scores every batch; every document weighs the same, however many of its tokens are scored."""
    batches = [module.transfer_batch_to_device(b, module.device, 0) for b in batches]
    training = module.training
    module.eval()
    with module.trainer.precision_plugin.forward_context():
        scored = [module.losses(batch) for batch in batches]
    module.train(training)
    loss = torch.cat([s[0] for s in scored]).double()
    right = torch.cat([s[1] for s in scored]).double()
    task = torch.cat([b.task_P for b in batches])
    document = torch.cat([b.document_P for b in batches])
    out = Heldout({}, {}, {})
    for i, name in enumerate(TASKS):
        here = task == i
        _, group, count = document[here].unique(return_inverse=True, return_counts=True)
        by_document = torch.zeros_like(count, dtype=torch.double).index_add_(0, group, loss[here]) / count
        rightness = torch.zeros_like(count, dtype=torch.double).index_add_(0, group, right[here]) / count
        out.loss[name] = float(by_document.mean())
        out.accuracy[name] = float(rightness.mean())
        out.documents[name] = by_document.tolist()
    return out
