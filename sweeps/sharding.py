"""What a rank holds of a plan's model under FSDP2, as `trainer.strategies.shard` spreads it.

Notable choices:
- each weight is cut along its first dimension into equal parts, the last of which may be shorter or empty; a rank's
  share is that of rank 0, which has most;
- a group per transformer block is gathered for its forward pass and again for its backward pass, the next one while
  it computes; everything else (embeddings, untied head, adapter, norms) is one group, whole from the start of the
  forward pass to the end of the backward pass;
- weights, gradients and optimizer state are float32; autocast keeps bfloat16 copies of whole weights from the forward
  to the backward pass, which count as activations;
- a batch's gradients are reduced before the next batch of the step, so that they accumulate as shards.

What waits for the backward pass is traced on the model's own code (`search_space.memory`). Measured is FSDP2 on a CPU,
by the tests; GPUs, where the allocator, NCCL and kernels need room of their own, are not, which is what a cluster's
reserve is for.
"""

from dataclasses import dataclass
from math import prod

from torch import Tensor

from search_space.compressor import Size
from search_space.design import Design
from search_space.memory import Optimizer, Part, Saved, skeleton

__all__ = ["Memory", "shard_bytes", "sharded_memory"]

_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU. weights, gradients, optimizer: its shards.

    gathered: whole weights, and the whole gradients of one block.
    And one after the other, so that the largest of them counts:
    activations and logits: what waits for the backward pass, and scores of a chunk of positions, at the loss;
    recomputed: what then waits, and a block that is computed again; 0 where none is;
    reduced: whole gradients of all that is in no block, at the end of the backward pass.
    """

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    logits: int
    recomputed: int
    reduced: int

    @property
    def total(self) -> int:
        """At the step's peak."""
        shards = self.weights + self.gradients + self.optimizer
        return shards + self.gathered + max(self.activations + self.logits, self.recomputed, self.reduced)


def shard_bytes(shape: tuple[int, ...], ranks: int, rank: int = 0) -> int:
    """Of a float32 weight that is cut along its first dimension."""
    rows = -(-shape[0] // ranks)
    return _FLOAT * max(0, min(rows, shape[0] - rank * rows)) * prod(shape[1:])


def sharded_memory(
    design: Design,
    size: Size,
    saved: Saved,
    ranks: int,
    trained: frozenset[Part],
    optimizer: Optimizer = "adamw",
) -> Memory:
    """Of a step for whose batches `saved` waits, once the optimizer has its state."""
    bones = skeleton(design, size)
    weights, own = bones.weights(), bones.weights(trained)

    def shards(part: dict[str, Tensor]) -> int:
        return sum(shard_bytes(tuple(w.shape), ranks) for w in part.values())

    blocks = [{n: w for n, w in weights.items() if n.startswith(f"{block}.")} for block in bones.blocks]
    inside = {name for block in blocks for name in block}
    rest = {name: w for name, w in weights.items() if name not in inside}
    largest = max((_whole(block) for block in blocks), default=0)
    slope = max((_whole({n: w for n, w in block.items() if n in own}) for block in blocks), default=0)
    state = sum(bones.state(optimizer, w) // w.numel() * shard_bytes(tuple(w.shape), ranks) for w in own.values())
    many = ranks > 1
    return Memory(
        weights=shards(weights),
        gradients=shards(own),
        optimizer=state,
        # The block in hand, the next one, and the buffer it arrives in; gradients once more as they are sent.
        gathered=(_whole(rest) + 3 * largest + 2 * slope) * many,
        activations=saved.total,
        logits=saved.scores,
        recomputed=max((saved.kept + again for again, _ in saved.again), default=0),
        # An embedding that is also the head has two gradients to add up; then all are copied to be sent.
        reduced=2 * _whole({name: w for name, w in rest.items() if name in own}) * many,
    )


def _whole(weights: dict[str, Tensor]) -> int:
    return _FLOAT * sum(w.numel() for w in weights.values())
