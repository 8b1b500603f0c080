"""Held-out evaluation: one loss per document and task, so that designs can be paired, and loss by distance.

Shapes: P scored positions.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass

import torch
import torch.distributed as dist
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from search_space.compressor import Compressor
from search_space.layout import TASKS, Batch
from trainer.trial import Heldout

__all__ = ["DISTANCES", "Scores", "score", "summarise"]

DISTANCES = (0, 1, 4, 16, 64, 256, 1024, 4096)
"""First tokens behind the span of the stretches whose losses are told apart."""


@dataclass
class Scores:
    """Of every scored position (P,): cross-entropy in nats, whether the likeliest token is right, index into TASKS,
    document, and tokens between the span's end and it (in a reconstruction: asked for before it)."""

    loss: Tensor
    right: Tensor
    task: Tensor
    document: Tensor
    offset: Tensor


def score(model: Compressor, batches: Iterable[Batch]) -> Heldout:
    """Of a compressor on its own device, outside of any training."""
    scores = []
    for batch in batches:
        here = move_data_to_device(batch, model.decoder.embed_tokens.weight.device)
        loss, right = model.scores(here)
        scores.append(Scores(loss, right, here.task_P, here.document_P, here.offset_P))
    return summarise(scores)


def summarise(scores: list[Scores]) -> Heldout:
    """Means over documents, of all ranks; every document weighs the same, however many of its tokens are scored.

    A document that several ranks have scored counts once. Losses by distance are means over tokens.
    """
    columns = [torch.cat(column).double().cpu() for column in zip(*(astuple(s) for s in scores), strict=True)]
    table = torch.stack(columns)
    if dist.is_initialized() and dist.get_world_size() > 1:
        tables: list[Tensor] = [torch.empty(0)] * dist.get_world_size()
        dist.all_gather_object(tables, table)
        table = torch.cat(tables, 1)
    out = Heldout({}, {}, {}, {})
    for i, name in enumerate(TASKS):
        loss, right, _, document, offset = table[:, table[2] == i]
        if not len(loss):
            continue
        by_document = _means(loss, document)[1]
        out.loss[name] = float(by_document.mean())
        out.accuracy[name] = float(_means(right, document)[1].mean())
        out.documents[name] = by_document.tolist()
        stretch = torch.bucketize(offset, torch.tensor(DISTANCES[1:], dtype=offset.dtype), right=True)
        which, means = _means(loss, stretch)
        out.distance[name] = [(DISTANCES[int(k)], float(m)) for k, m in zip(which, means, strict=True)]
    return out


def _means(values: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    """The groups in ascending order, and the mean of each."""
    groups, group, count = by.unique(return_inverse=True, return_counts=True)
    return groups, torch.zeros(len(groups), dtype=torch.double).index_add_(0, group, values) / count
