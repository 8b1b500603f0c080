"""Cross-entropy of a linear head whose scores never exist all at once.

At a vocabulary of 151,936 the scores of 2,048 positions are 1.2 GB, and the plain loss keeps three tensors of that
size. Here positions are taken in chunks, and each chunk's gradients are made while its scores exist (as in Hsu et al.
2024, "Liger Kernel"): nothing is computed twice, and what waits for the backward pass has the size of the inputs. What
fits into one chunk takes the plain path. torch 2.13 brings the like of it; docs/log.md compares them.

Shapes: P scored positions, C positions of a chunk, D width, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["CHUNK_BYTES", "chunk_positions", "linear_cross_entropy", "linear_scores"]

CHUNK_BYTES = 2**27  # 220 positions at a vocabulary of 151,936
_FLOAT = 4  # bytes


def linear_cross_entropy(
    hidden_PD: Tensor, weight_VD: Tensor, target_P: Tensor, chunk_bytes: int = CHUNK_BYTES
) -> Tensor:
    """Sum over positions of the cross-entropy of `hidden_PD @ weight_VD.T`, in nats, in float32 or better.

    chunk_bytes: of a chunk's scores in float32. Up to two tensors of that size exist at a time.
    """
    size = chunk_positions(len(weight_VD), chunk_bytes)
    if len(target_P) <= size:
        return F.cross_entropy(_scores(hidden_PD, weight_VD), target_P, reduction="sum")
    if not torch.is_grad_enabled():
        return linear_scores(hidden_PD, weight_VD, target_P, chunk_bytes)[0].sum()
    return _Chunked.apply(hidden_PD, weight_VD, target_P, size)


@torch.no_grad()
def linear_scores(
    hidden_PD: Tensor, weight_VD: Tensor, target_P: Tensor, chunk_bytes: int = CHUNK_BYTES
) -> tuple[Tensor, Tensor]:
    """Per position its cross-entropy (P,), and whether the likeliest token is right (P,); no gradients."""
    size = chunk_positions(len(weight_VD), chunk_bytes)
    losses, right = [], []
    for hidden_CD, target_C in zip(hidden_PD.split(size), target_P.split(size), strict=True):
        score_CV = _scores(hidden_CD, weight_VD)
        losses.append(F.cross_entropy(score_CV, target_C, reduction="none"))
        right.append(score_CV.argmax(-1) == target_C)
    return torch.cat(losses), torch.cat(right)


def chunk_positions(vocab: int, chunk_bytes: int) -> int:
    """Positions of a chunk."""
    return max(1, chunk_bytes // (_FLOAT * vocab))


def _scores(hidden_CD: Tensor, weight_VD: Tensor) -> Tensor:
    """(C, V), multiplied in the precision of autocast."""
    score_CV = F.linear(hidden_CD, weight_VD)
    return score_CV.to(torch.promote_types(score_CV.dtype, torch.float32))


class _Chunked(torch.autograd.Function):
    """The loss and, at once, its gradients, which the backward pass scales."""

    @staticmethod
    def forward(ctx: Any, hidden_PD: Tensor, weight_VD: Tensor, target_P: Tensor, size: int) -> Tensor:
        device = hidden_PD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_PD.dtype
        exact = torch.promote_types(dtype, torch.float32)
        head_VD = weight_VD.to(dtype)
        total = hidden_PD.new_zeros((), dtype=exact)
        by_hidden_PD = torch.empty_like(hidden_PD)
        by_weight_VD = torch.zeros_like(weight_VD, dtype=exact) if ctx.needs_input_grad[1] else None
        with torch.autocast(device, enabled=False):
            for first in range(0, len(target_P), size):
                chunk = slice(first, first + size)
                hidden_CD, target_C1 = hidden_PD[chunk].to(dtype), target_P[chunk, None]
                slope_CV = F.linear(hidden_CD, head_VD).log_softmax(-1, dtype=exact)
                total -= slope_CV.gather(1, target_C1).sum()
                slope_CV.exp_().scatter_add_(1, target_C1, slope_CV.new_full((1, 1), -1).expand_as(target_C1))
                slope_CV = slope_CV.to(dtype)
                by_hidden_PD[chunk] = slope_CV @ head_VD
                if by_weight_VD is not None and dtype == exact:
                    by_weight_VD.addmm_(slope_CV.T, hidden_CD)
                elif by_weight_VD is not None:
                    by_weight_VD += slope_CV.T @ hidden_CD
                del slope_CV  # before the next chunk has its own
        ctx.save_for_backward(by_hidden_PD, None if by_weight_VD is None else by_weight_VD.to(weight_VD.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        # In place, since a copy of the head's gradient may be the largest tensor there is; torch refuses a second pass.
        return *(None if grad is None else grad.mul_(slope) for grad in ctx.saved_tensors), None, None
