"""What is wanted of a full-scale run, and the plan of it: a sweep's design carried to published sizes and budgets."""

from dataclasses import dataclass, replace

from analysis.ladder import Target
from search_space.axes import shape
from search_space.axes.axis import Impossible
from search_space.axes.shape import QWEN3
from search_space.compressor import Size
from search_space.design import Design
from search_space.errors import UsageError
from search_space.memory import skeleton
from search_space.qwen3 import read_config
from search_space.transformer import Shape
from sweeps.config import SweepConfig
from sweeps.price import tokens_of
from trainer import published
from trainer.corpus import Corpus
from trainer.initial import config_here
from trainer.optim import PartConfig
from trainer.plan import PARTS, Plan, Rates, Stage
from trainer.stream import TrainingSamples
from trainer.tokenizer import QWEN3_EMBEDDINGS

__all__ = ["HORIZON", "ROTARY", "Wish", "assumed", "plan_for", "target_of"]

HORIZON = -0.32
"""The best rate falls with this power of the tokens trained on (Bjorck et al. 2025, arXiv 2409.19913)."""
ROTARY = {"Qwen/Qwen3-Embedding-0.6B": 1e6, "Qwen/Qwen3-4B-Instruct-2507": 5e6}
"""Rotary bases of the published system's initial weights, as their config.json says."""
SCRATCH = ("pretrain-1", "pretrain-2", "pretrain-3", "sft")  # stages that freeze nothing, by other names


@dataclass(frozen=True)
class Wish:
    """What is wanted of a promotion.

    design: one of the sweep's; its winner where empty. carried: the design to train in its place, where the sweep's are
    miniatures; the same where empty. encoder, decoder: shapes as the axes of these names have them; `base` is the
    sweep's own. encoder_weights, decoder_weights: folders or names of Qwen3 models; from scratch without them.
    data: folder of a corpus; the sweep's own for `base` shapes where empty. tokens: times the published budget.
    batch: decoder tokens of a step. length: raw tokens of a piece, at most. name: of the plan.
    """

    design: str = ""
    carried: str = ""
    encoder: str = "0.6b"
    decoder: str = "4b"
    encoder_weights: str = ""
    decoder_weights: str = ""
    data: str = ""
    tokens: float = 1.0
    batch: int = published.BATCH
    length: int = published.LENGTH
    name: str = ""
    force: bool = False

    def check(self) -> None:
        """Raise `UsageError` for the first field that cannot be."""
        if bool(self.encoder_weights) != bool(self.decoder_weights):
            missing = "encoder_weights" if self.decoder_weights else "decoder_weights"
            raise UsageError(f"{missing}: none given; an adapter is trained between two trained models, or all anew")
        if not 0 < self.tokens < float("inf"):
            raise UsageError(f"tokens: {self.tokens} is not a factor above 0")
        for field in ("batch", "length"):
            if getattr(self, field) < 1:
                raise UsageError(f"{field}: {getattr(self, field)} is not at least 1")


def plan_for(config: SweepConfig, design: str, wish: Wish, corpus: Corpus | None) -> Plan:
    """The plan that trains `design` of a sweep as `wish` says."""
    chosen = Design.parse(wish.carried or design)
    size, small = _size(config, wish, corpus), not ({wish.encoder, wish.decoder} & QWEN3.keys())
    size.of(chosen)
    fixed = published.stages(
        chosen.ratio, wish.batch, wish.length, wish.tokens, frozenset(corpus.sources if corpus else ())
    )
    plan = Plan(
        name=wish.name or f"{config.name}-{chosen.name}-{wish.encoder}-{wish.decoder}",
        design=chosen.name,
        stages=fixed,
        corpus=str(corpus.folder.resolve()) if corpus else "",
        tokenizer=str(corpus.manifest["tokenizer"]) if corpus else "",
        encoder=wish.encoder_weights,
        decoder=wish.decoder_weights,
        metric="continue" if config.metric == "parallel" else config.metric,
        batch=wish.batch,
        length=wish.length,
        size=size,
        documents=config.recipe.documents if small else Plan.documents,
        evaluate_every=max(1, sum(s.steps for s in fixed) // 50),
        checkpoint_every=max(1, min(Plan.checkpoint_every, sum(s.steps for s in fixed) // 20)),
        tracking_url=config.tracking_url,
    )
    if not wish.encoder_weights:
        plan = _from_scratch(plan, config)
    if corpus is not None:
        plan = replace(plan, stages=_measured(plan, corpus))
    plan.check()
    return plan


def target_of(plan: Plan) -> Target:
    """Parameters of the plan's model, and the raw tokens of all stages."""
    parameters = skeleton(Design.parse(plan.design), plan.size).parameters
    return Target(parameters, float(sum(s.steps * s.pieces for s in plan.stages) * plan.length))


def _size(config: SweepConfig, wish: Wish, corpus: Corpus | None) -> Size:
    """The shapes that are wished for; of published ones without the aids for small models."""
    for axis, name in ((shape.ENCODER, wish.encoder), (shape.DECODER, wish.decoder)):
        try:
            axis.check(name)
        except Impossible as broken:
            raise UsageError(f"{axis.name}: {broken.rule}") from broken
    size = replace(
        config.model_size(),
        vocab=corpus.vocab if corpus else QWEN3_EMBEDDINGS,
        encoder=_shape("encoder", wish, config.size.encoder),
        decoder=_shape("decoder", wish, config.size.decoder),
    )
    if {wish.encoder, wish.decoder} & QWEN3.keys() or wish.encoder_weights:
        aids = {"phase_std": 0.0, "embedding_std": 0.02, "silent_encoder": False}
        return replace(size, embeddings="separate", positions="consecutive", **aids)
    return size


def _shape(part: str, wish: Wish, own: Shape) -> Shape:
    """That of the initial weights, which may have another rotary base than the shape of its name; else the name's."""
    name, weights = getattr(wish, part), getattr(wish, f"{part}_weights")
    if weights and (folder := config_here(weights, part)):
        return read_config(folder)[0]
    shape_ = shape.apply(name, own)
    return replace(shape_, rope_base=ROTARY[weights]) if weights in ROTARY else shape_


def assumed(wish: Wish, plan: Plan) -> list[str]:
    """What the plan takes for granted of initial weights that are not on this machine."""
    return [
        f"{part}_weights: {weights} is not on this machine; its shape is taken to be {getattr(wish, part)}, with a "
        f"rotary base of {getattr(plan.size, part).rope_base:,.0f}. Where that is wrong the run is refused at its "
        f"start, and size.{part}.rope_base is to be set in the plan"
        for part in ("encoder", "decoder")
        if (weights := getattr(wish, f"{part}_weights")) and weights not in ROTARY and not config_here(weights, part)
    ]


def _from_scratch(plan: Plan, config: SweepConfig) -> Plan:
    """All parts in all stages, at the sweep's own rates carried to the plan's size and horizon."""
    optim = config.recipe.optim
    trained_on = config.recipe.steps * config.recipe.piece * config.recipe.pieces
    factor = (target_of(plan).tokens / trained_on) ** HORIZON
    peak = (optim.muon_rate if optim.kind == "muon" else optim.adamw_rate) * factor
    own, parts = replace(optim, encoder=PartConfig(), adapter=PartConfig(), decoder=PartConfig()), map(optim.of, PARTS)
    by_part = [(c.muon_rate if optim.kind == "muon" else c.adamw_rate, c.weight_decay) for c in parts]
    rates = Rates(*(rate * factor for rate, _ in by_part if rate is not None))
    return replace(
        plan,
        optim=replace(own, muon_rate=optim.muon_rate * factor, adamw_rate=optim.adamw_rate * factor),
        decay=Rates(*(decay for _, decay in by_part if decay is not None)),
        lowest=peak * config.recipe.floor,
        stages=[replace(s, name=n, rates=rates) for n, s in zip(SCRATCH, plan.stages, strict=True)],
    )


def _measured(plan: Plan, corpus: Corpus) -> list[Stage]:
    """The stages with as many pieces in a step as fill the batch on this corpus, by what its first pieces hold."""
    design, stages = Design.parse(plan.design), []
    for stage in plan.stages:
        samples = TrainingSamples(corpus, plan.recipe(stage), plan.seed)
        _, decoder = tokens_of(samples(0), design)
        pieces = max(1, round(samples.raw_tokens(1) * plan.batch / decoder / plan.length))
        stages.append(replace(stage, pieces=pieces))
    return stages
