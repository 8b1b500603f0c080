"""A plan's dry run: everything that can be known before a GPU is asked for.

The real model is built without data, its weights are counted and divided among ranks, the plan's corpus is opened and
its first step of every stage read, and initial weights are looked at by their headers. Nothing is written.
"""

from dataclasses import dataclass

import torch

from search_space.axes.axis import has_encoder
from search_space.compressor import Compressor
from search_space.design import Design
from search_space.errors import UsageError
from search_space.layout import lay_out
from search_space.memory import Part, part_of
from search_space.transformer import Shape
from sweeps.fleet import Cluster, memory_per_gpu
from sweeps.price import tokens_of
from sweeps.sharding import Memory, shard_bytes
from trainer.corpus import Corpus
from trainer.initial import check_initial
from trainer.plan import Plan, Stage
from trainer.stages import check_corpus, stage_specs
from trainer.stream import TrainingSamples
from trainer.trial import TrialSpec

__all__ = ["Rehearsal", "Step", "parameters_of", "rehearse"]


@dataclass(frozen=True)
class Step:
    """What the first step of a stage reads, and the average step of the plan. off: its decoder tokens against the
    plan's batch, as a share. pieces: of documents. padding: share of a batch's positions, encoder and decoder."""

    pieces: int
    encoder_tokens: int
    decoder_tokens: int
    planned_encoder_tokens: float
    planned_decoder_tokens: float
    off: float
    padding: float


@dataclass(frozen=True)
class Rehearsal:
    """parameters: by part; a shared embedding is the decoder's. shards: bytes of float32 weights on each rank.
    memory: of a GPU, by stage. room: bytes of a GPU for it; None without a cluster.
    sources: documents' sources of the corpus. vocab: ids that its tokenizer has. steps: by stage.
    """

    parameters: dict[Part, int]
    shards: list[int]
    memory: dict[str, Memory]
    room: float | None
    sources: list[str]
    vocab: int
    steps: dict[str, Step]

    @property
    def total(self) -> int:
        """Parameters of the model."""
        return sum(self.parameters.values())


def rehearse(plan: Plan, cluster: Cluster | None = None, verify: bool = True) -> Rehearsal:
    """Go through `plan` as far as one gets without GPUs, which takes seconds and a look at the corpus's files.

    verify: whether the corpus's files are compared with their checksums. Raises `UsageError`, in one line, for what
    would stop the run: a plan that cannot be, a cluster that is too small or of another number of GPUs, a corpus that
    is missing, damaged, of another tokenizer or too small, initial weights that are missing or of another shape.
    """
    plan.check()
    design = Design.parse(plan.design)
    with torch.device("meta"):
        model = Compressor(design, plan.size)
    parameters = _count(model)
    check_initial(model, plan.encoder, plan.decoder)
    memory = {stage.name: memory_per_gpu(plan, stage, plan.parallel) for stage in plan.stages}
    if cluster is not None:
        _check_room(plan, cluster, memory)
    corpus = check_corpus(plan, verify)
    _check_specials(corpus, plan.size.vocab)
    shapes = [tuple(weight.shape) for weight in model.parameters()]
    ranks = plan.parallel.ranks
    return Rehearsal(
        parameters=parameters,
        shards=[sum(shard_bytes(shape, ranks, rank) for shape in shapes) for rank in range(ranks)],
        memory=memory,
        room=cluster.room if cluster else None,
        sources=corpus.sources,
        vocab=corpus.vocab,
        steps={
            stage.name: _first_step(plan, stage, spec, corpus)
            for stage, spec in zip(plan.stages, stage_specs(plan, corpus), strict=True)
        },
    )


def parameters_of(shape: Shape, vocab: int, head: bool) -> int:
    """Of a Qwen3 transformer, by arithmetic on its shape; Qwen3-0.6B has 596,049,920 and Qwen3-4B 4,022,468,096."""
    d, e = shape.width, shape.head_width
    attention = 2 * d * e * (shape.heads + shape.kv_heads) + 2 * e
    block = attention + 3 * d * shape.feedforward + 2 * d
    embeddings = vocab * d * (2 if head and not shape.tied_head else 1)
    return embeddings + shape.layers * block + d


def _count(model: Compressor) -> dict[Part, int]:
    """Parameters by part. Encoder and decoder are compared with what their shapes say."""
    parts: dict[Part, int] = {}
    for name, weight in model.named_parameters():
        parts[part_of(name)] = parts.get(part_of(name), 0) + weight.numel()
    size, phase = model.size, sum(w.numel() for w in model.phase.parameters()) if model.phase else 0
    expected = parameters_of(size.decoder, size.vocab, head=True) + phase
    if has_encoder(vars(model.design)):
        shared = size.vocab * size.encoder.width if size.embeddings == "tied" else 0
        expected += parameters_of(size.encoder, size.vocab, head=False) - shared
    counted = sum(parts.values()) - parts.get("adapter", 0)
    assert counted == expected, (
        f"{model.design.name} has {counted} parameters beside its adapter; shapes say {expected}"
    )
    return parts


def _check_room(plan: Plan, cluster: Cluster, memory: dict[str, Memory]) -> None:
    cluster.check()
    if plan.parallel.ranks != cluster.ranks:
        raise UsageError(
            f"parallel: the plan is for {plan.parallel.ranks} ranks, and the cluster has {cluster.ranks} GPUs; "
            "make them equal"
        )
    name, most = max(memory.items(), key=lambda item: item[1].total)
    if most.total > cluster.room:
        raise UsageError(
            f"cluster: stage {name} needs {most.total / 1e9:.1f} GB on each {cluster.kind}, which have "
            f"{cluster.room / 1e9:.1f} GB for it; raise parallel.accumulate, set parallel.recompute, or take more GPUs"
        )


def _check_specials(corpus: Corpus, vocab: int) -> None:
    """The special tokens are the tokenizer's, one each, and have rows in the embeddings."""
    tokenizer, ids = corpus.tokenizer, vars(corpus.specials)
    for name, number in ids.items():
        if tokenizer.id_to_token(number) is None or number >= vocab or list(ids.values()).count(number) > 1:
            raise UsageError(
                f"corpus: {corpus.folder} has no token of its own for {name} (id {number}); prepare it anew"
            )


def _first_step(plan: Plan, stage: Stage, spec: TrialSpec, corpus: Corpus) -> Step:
    """Its samples are counted; of them the first batch of the first rank is laid out as the trainer does."""
    samples = TrainingSamples(corpus, spec.recipe, spec.seed, spec.read)
    whole = samples(0)
    encoder, decoder = tokens_of(whole, spec.design)
    parts = plan.parallel.accumulate * plan.parallel.ranks
    positions = plan.size.of(spec.design).positions
    batch = lay_out(samples(0, 0, parts), spec.design, corpus.specials, positions, groups=False)
    rows = [batch.rows, *([batch.encoder.rows] if batch.encoder else [])]
    places = sum(r.segment_RT.numel() for r in rows)
    return Step(
        pieces=len(samples.pieces(0)),
        encoder_tokens=encoder,
        decoder_tokens=decoder,
        planned_encoder_tokens=stage.encoder_tokens / stage.steps,
        planned_decoder_tokens=stage.decoder_tokens / stage.steps,
        off=decoder / plan.batch - 1,
        padding=sum(int((r.segment_RT < 0).sum()) for r in rows) / places,
    )
