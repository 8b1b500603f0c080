"""A plan on a cluster: what a GPU is, and how the plan is spread so that it fits.

Plain data and arithmetic; nothing is built and no GPU is asked. Memory is traced (`sweeps.sharding`) on pieces of the
plan's full length, and stays below the GPU's by a reserve. What the run takes is `sweeps.price`'s.
"""

from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil
from typing import Literal

import numpy as np

from search_space.compressor import Size
from search_space.design import Design
from search_space.errors import UsageError
from search_space.layout import Batch, Sample, Specials, lay_out
from search_space.memory import PARTS, Part, Saved, skeleton
from sweeps.sharding import Memory, sharded_memory
from trainer import interleave
from trainer.parallel import Parallel
from trainer.plan import Plan, Stage

__all__ = [
    "KINDS",
    "Cluster",
    "Gpu",
    "choose",
    "laid_out",
    "memory_per_gpu",
    "tasks",
    "trained_parts",
    "typical",
]

_QUESTION = 16  # tokens of a request for what was compressed, about
_SPECIALS = Specials(0, 1, 2, 3, 4)  # lengths are all that matters here


@dataclass(frozen=True)
class Gpu:
    """memory: bytes. peak: FLOP/s of dense matrix products in bfloat16. watts: of the board, at most."""

    memory: float
    peak: float
    watts: float


KINDS = {
    "a100": Gpu(80e9, 312e12, 400),  # NVIDIA, A100 Tensor Core GPU datasheet: SXM, 80 GB
    "h100": Gpu(80e9, 989.4e12, 700),  # NVIDIA, H100 Tensor Core GPU Architecture white paper: SXM5
    "h200": Gpu(141e9, 989.4e12, 700),  # NVIDIA, H200 Tensor Core GPU datasheet: SXM
    "b200": Gpu(180e9, 2250e12, 1000),  # NVIDIA, Blackwell datasheet: HGX B200, half of the figure with sparsity
    # AMD, Instinct MI300A data sheet: 550 to 760 W; its processor lives in the same memory.
    "mi300a": Gpu(128e9, 980.6e12, 760),
    "mi300x": Gpu(192e9, 1307.4e12, 750),  # AMD, Instinct MI300X data sheet
}


@dataclass(frozen=True)
class Cluster:
    """nodes, and gpus of each, of a kind in `KINDS`.

    price: of a GPU for an hour, in `currency`. pue: power of the building for each unit that GPUs take.
    mfu: share of the peak at which matrix products are computed. mfu_is: whether somebody has measured that.
    reserve: share of a GPU's memory for what is no tensor of the model: CUDA or ROCm, NCCL, what the allocator loses.
    """

    nodes: int
    gpus: int
    kind: str
    price: float = 2.5
    currency: str = "USD"
    pue: float = 1.3
    mfu: float = 0.35
    mfu_is: Literal["assumed", "measured"] = "assumed"
    reserve: float = 0.15

    def check(self) -> None:
        """Raise `UsageError` for the first field that cannot be."""
        for name in ("nodes", "gpus"):
            if getattr(self, name) < 1:
                raise UsageError(f"cluster.{name}: {getattr(self, name)} is not at least 1")
        if self.kind not in KINDS:
            raise UsageError(f"cluster.kind: {self.kind!r} is not one of {', '.join(KINDS)}")
        if not self.price >= 0 or not self.pue >= 1:
            raise UsageError(f"cluster.price, cluster.pue: {self.price}, {self.pue} are not at least 0 and 1")
        if not 0 < self.mfu <= 1 or not 0 <= self.reserve < 1:
            raise UsageError(f"cluster.mfu, cluster.reserve: {self.mfu}, {self.reserve} are no shares of a whole")
        if self.mfu_is not in ("assumed", "measured"):
            raise UsageError(f"cluster.mfu_is: {self.mfu_is!r} is not one of assumed, measured")

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus

    @property
    def gpu(self) -> Gpu:
        return KINDS[self.kind]

    @property
    def room(self) -> float:
        """Bytes of a GPU for the model and a step."""
        return self.gpu.memory * (1 - self.reserve)


def trained_parts(stage: Stage) -> frozenset[Part]:
    """The parts that are not frozen."""
    return frozenset(part for part in PARTS if getattr(stage.rates, part) > 0)


def _most_parts(stage: Stage) -> int:
    """Into how many batches any step can be divided: each source of a mixture has its share of pieces, rounded down."""
    whole = sum(stage.mixture.values())
    return sum(int(stage.pieces * share / whole) for share in stage.mixture.values()) if whole else stage.pieces


def typical(length: int, format: Literal["spans", "published"], reconstruct: bool) -> Sample:
    """A piece of full length, interleaved or asked for, as `trainer.stream` makes it; its tokens are zeros."""
    rng, tokens = np.random.default_rng(0), np.zeros(length, np.int64)
    if format == "published" and reconstruct:
        read = min(length, interleave.TRAINABLE)
        return Sample(np.zeros(2 * read + _QUESTION, np.int64), (read,), "reconstruct", 0, quiet=read + _QUESTION)
    if reconstruct:
        return Sample(tokens, (), "reconstruct", 0)
    published = format == "published"
    cuts = interleave.document(length, rng) if published else interleave.curriculum(length, length, rng)
    return Sample(tokens, cuts, "continue", 0)


def laid_out(design: Design, size: Size, samples: list[Sample], groups: bool = False) -> Batch:
    """As a GPU takes them; with `groups`, attention's work is that inside segments (see `search_space.cost`)."""
    return lay_out(samples, design, _SPECIALS, size.of(design).positions, groups)


def tasks(stage: Stage) -> dict[bool, float]:
    """Share of the pieces that are reconstructed, and of the others; those that there are."""
    shares = {True: stage.reconstruct, False: 1 - stage.reconstruct}
    return {task: share for task, share in shares.items() if share > 0}


def memory_per_gpu(plan: Plan, stage: Stage, parallel: Parallel) -> Memory:
    """Of the stage's largest batch: pieces of full length, and of the two tasks the one that needs more."""
    pieces = ceil(stage.pieces / (parallel.ranks * parallel.accumulate))
    return _memory(plan, stage, parallel, pieces)


def _memory(plan: Plan, stage: Stage, parallel: Parallel, pieces: int) -> Memory:
    trained = trained_parts(stage)
    both = [_saved(plan, task, pieces, trained, parallel.recompute) for task in tasks(stage)]
    of = (
        sharded_memory(Design.parse(plan.design), plan.size, s, parallel.ranks, trained, plan.optim.kind) for s in both
    )
    return max(of, key=lambda memory: memory.total)


def _saved(plan: Plan, task: bool, pieces: int, trained: frozenset[Part], recompute: bool) -> Saved:
    """Of equal pieces, as many as there may be: what waits for the backward pass is affine in their number."""
    settings = (plan.size, plan.length, plan.format, task, trained, recompute)
    one = _traced(Design.parse(plan.design), *settings, pieces=1)
    if pieces == 1:
        return one
    two = _traced(Design.parse(plan.design), *settings, pieces=2)

    def of(a: int, b: int) -> int:
        return a + (pieces - 1) * max(0, b - a)

    again = tuple((of(a, b), own) for (a, own), (b, _) in zip(one.again, two.again, strict=True))
    return Saved(of(one.total, two.total), max(one.scores, two.scores), of(one.kept, two.kept), again)


@lru_cache(maxsize=256)
def _traced(
    design: Design,
    size: Size,
    length: int,
    format: Literal["spans", "published"],
    task: bool,
    trained: frozenset[Part],
    recompute: bool,
    pieces: int,
) -> Saved:
    batch = laid_out(design, size, [typical(length, format, task)] * pieces)
    return skeleton(design, size).saved(batch, "bf16-mixed", recompute, trained=trained, gpu=True)


def choose(plan: Plan, cluster: Cluster) -> Parallel:
    """The plan's `parallel` for `cluster`: all GPUs, batches as large as fit, and nothing computed again if that fits.

    Raises `UsageError` where the cluster is too small, or has more GPUs than a step has pieces.
    """
    cluster.check()
    most = min(_most_parts(stage) for stage in plan.stages)
    if cluster.ranks > most:
        raise UsageError(
            f"cluster: {cluster.ranks} GPUs are more than the {most} pieces that a step has at least; "
            f"take {most} GPUs or fewer, or raise the plan's batch"
        )
    if chosen := _fit(plan, cluster, cluster.ranks, most):
        return chosen
    more = (ranks for ranks in _doubled(cluster.ranks, most) if _fit(plan, cluster, ranks, most))
    enough = next(more, None)
    needs = max(_memory(plan, s, _spread(plan, cluster, cluster.ranks, 1, True), 1).total for s in plan.stages)
    advice = f"{enough} of them would do" if enough else "take a kind of GPU with more memory"
    raise UsageError(
        f"cluster: a step of {plan.name} needs {needs / 1e9:.1f} GB on each of {cluster.ranks} {cluster.kind}, which "
        f"have {cluster.room / 1e9:.1f} GB for it; {advice}"
    )


def _doubled(ranks: int, most: int) -> list[int]:
    return [ranks * 2**n for n in range(1, 20) if ranks * 2**n <= most]


def _spread(plan: Plan, cluster: Cluster, ranks: int, accumulate: int, recompute: bool) -> Parallel:
    nodes, devices = (cluster.nodes, cluster.gpus) if ranks == cluster.ranks else (1, ranks)
    strategy = "fsdp" if ranks > 1 else "one"
    return replace(
        plan.parallel, strategy=strategy, devices=devices, nodes=nodes, accumulate=accumulate, recompute=recompute
    )


def _fit(plan: Plan, cluster: Cluster, ranks: int, most: int) -> Parallel | None:
    """The fewest batches to accumulate with which every stage fits, without recomputation if there are any such."""
    for recompute in (False, True):
        accumulate = 1
        for stage in {(trained_parts(s), *tasks(s), s.pieces): s for s in plan.stages}.values():
            parallel = _spread(plan, cluster, ranks, 1, recompute)
            pieces = _most_pieces(plan, stage, parallel, cluster.room)
            accumulate = max(accumulate, ceil(stage.pieces / (ranks * pieces))) if pieces else most + 1
        if accumulate * ranks <= most:
            return _spread(plan, cluster, ranks, accumulate, recompute)
    return None


def _most_pieces(plan: Plan, stage: Stage, parallel: Parallel, room: float) -> int:
    """Pieces of the largest batch that fits, of those that a rank can have; 0 where none does."""
    candidates = range(1, ceil(stage.pieces / parallel.ranks) + 1)
    return bisect_right(candidates, room, key=lambda pieces: _memory(plan, stage, parallel, pieces).total)
