"""What a plan takes on a cluster: FLOPs, hours, energy, money, storage. What the figures rest on:

- FLOPs are those of matrix products (`search_space.cost`), attention over whole squares as MFU is usually counted, per
  token of pieces of the plan's full length, times the tokens of each stage. A frozen part has no weight gradients;
  activation gradients are made where something that learns lies before them;
- hours are FLOPs, recomputed ones included, over the share `mfu` of all GPUs' peak. Evaluation, checkpoints, start-up
  and faults are not in them;
- energy is that of GPUs at full power, times the building's `pue`; hosts and network are not in it;
- `mfu` is an assumption until somebody measures it; price, power and `pue` always are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

from search_space.axes.axis import has_encoder
from search_space.cost import Products, products
from search_space.design import Design
from search_space.layout import Sample
from search_space.memory import PARTS, Part, skeleton
from sweeps.fleet import Cluster, laid_out, tasks, trained_parts, typical
from trainer.plan import Plan, Stage

__all__ = ["Estimate", "Spent", "estimate", "tokens_of", "training_flops"]

_FLOAT = 4  # bytes
_TOKEN = 4  # bytes of a token in a corpus
_CHECKPOINTS = 3  # of a stage: the two newest, and its last


@dataclass(frozen=True)
class Spent:
    """On a stage, or on all (`+`).

    flops: of the model's training. computed: these and what is computed again. kwh: of the building. price: in the
    cluster's currency. checkpoints: bytes on disk. raw_tokens: of text, counting each time that it is read.
    """

    steps: int
    encoder_tokens: int
    decoder_tokens: int
    raw_tokens: int
    flops: float
    computed: float
    hours: float
    gpu_hours: float
    kwh: float
    price: float
    checkpoints: int

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(**{name: value + getattr(other, name) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Estimate:
    """stages: by name. data: bytes of the text on disk, if none of it is read twice."""

    cluster: Cluster
    stages: dict[str, Spent]
    total: Spent
    data: int

    def as_dict(self) -> dict[str, Any]:
        """For YAML and JSON."""
        return asdict(self)


def estimate(plan: Plan, cluster: Cluster, mfu: float | None = None) -> Estimate:
    """For the plan as its `parallel` says, on all GPUs of `cluster`. mfu: measured; the cluster's where None.

    Raises `UsageError` where the cluster is none.
    """
    if mfu is not None:
        cluster = replace(cluster, mfu=mfu, mfu_is="measured")
    cluster.check()
    stages = {stage.name: _spent(plan, stage, cluster) for stage in plan.stages}
    first, *others = stages.values()
    total = sum(others, start=first)
    return Estimate(cluster, stages, total, _TOKEN * total.raw_tokens)


def tokens_of(samples: Sequence[Sample], design: Design) -> tuple[int, int]:
    """Tokens that are wrapped, and elements that the decoder reads: a latent for N of them, and raw tokens.

    Tags, overlaps and padding are not counted.
    """
    encoder = decoder = 0
    ratio = design.ratio if has_encoder(vars(design)) else 1
    for sample in samples:
        for start, stop, wrapped in sample.segments():
            encoder += (stop - start) * wrapped
            decoder += ceil((stop - start) / ratio) * (design.control != "blind") if wrapped else stop - start
        decoder += len(sample.tokens) * sample.asks
    return encoder, decoder


def _spent(plan: Plan, stage: Stage, cluster: Cluster) -> Spent:
    design = Design.parse(plan.design)
    parts: dict[Part, Products] = {}
    encoder = decoder = 0.0  # tokens of a piece, on average
    for task, share in tasks(stage).items():
        sample = typical(plan.length, plan.format, task)
        for part, own in products(design, plan.size, laid_out(design, plan.size, [sample], groups=True)).items():
            parts[part] = parts.get(part, Products()) + own * share
        wrapped, read = tokens_of([sample], design)
        encoder, decoder = encoder + wrapped * share, decoder + read * share
    pieces = {part: stage.encoder_tokens / max(encoder, 1) for part in parts}
    pieces["decoder"] = stage.decoder_tokens / decoder
    forward = {part: own * pieces[part] for part, own in parts.items()}
    flops, again = training_flops(forward, trained_parts(stage), _tied(plan))
    computed = flops + again * plan.parallel.recompute
    gpu_hours = computed / (cluster.gpu.peak * cluster.mfu) / 3600
    bones = skeleton(design, plan.size)
    state = sum(bones.state(plan.optim.kind, weight) for weight in bones.weights(trained_parts(stage)).values())
    return Spent(
        steps=stage.steps,
        encoder_tokens=stage.encoder_tokens,
        decoder_tokens=stage.decoder_tokens,
        raw_tokens=stage.steps * stage.pieces * plan.length,
        flops=flops,
        computed=computed,
        hours=gpu_hours / cluster.ranks,
        gpu_hours=gpu_hours,
        kwh=gpu_hours * cluster.gpu.watts * cluster.pue / 1000,
        price=gpu_hours * cluster.price,
        checkpoints=_CHECKPOINTS * _FLOAT * (bones.parameters + state),
    )


def _tied(plan: Plan) -> bool:
    """Whether encoder and decoder have one token embedding."""
    design = Design.parse(plan.design)
    return has_encoder(vars(design)) and plan.size.of(design).embeddings == "tied"


def training_flops(
    forward: Mapping[Part, Products], trained: frozenset[Part], tied: bool = False
) -> tuple[float, float]:
    """FLOPs of forward and backward passes, and of the forward passes of layers that recomputation adds.

    A weight's gradient costs as much as its forward product, and so does that of its input; attention's two products
    cost twice as much backward. `tied`: the decoder's embedding learns through the encoder too.
    """
    learns_before: dict[Part, frozenset[Part]] = {
        "encoder": frozenset({"encoder", "decoder"} if tied else {"encoder"}),
        "adapter": frozenset({"encoder", "adapter", "decoder"} if tied else {"encoder", "adapter"}),
        "decoder": PARTS,
    }
    flops = again = 0.0
    for part, own in forward.items():
        slopes = bool(trained & learns_before[part])
        flops += own.flops + own.weights * (part in trained) + (own.weights + 2 * own.pairs) * slopes
        again += (own.layers + own.pairs) * slopes
    return flops, again
