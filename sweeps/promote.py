"""From a sweep to the plan of a full-scale run: the evidence, the decision about it, and what is to be trained.

What is kept of it in the sweep's folder: `promotion/decision.yaml`, also of a refusal, and `promotion/plan.yaml`. The
decision is in the model registry too, and in the report.
"""

import json
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from analysis import analyse
from analysis.gate import Decision, Prediction, decide
from analysis.ladder import Ladder, Target, analyse_ladder
from analysis.table import load as load_table
from search_space.axes import shape
from search_space.axes.axis import Impossible
from search_space.axes.shape import QWEN3
from search_space.compressor import Size
from search_space.design import Design
from search_space.errors import UsageError
from search_space.memory import skeleton
from search_space.qwen3 import read_config
from search_space.transformer import Shape
from sweeps.config import SweepConfig, load
from sweeps.fleet import Cluster, choose
from sweeps.home import Home, SweepFolder
from sweeps.ladder import read_levels
from sweeps.mlflow_server import provenance
from sweeps.price import Estimate, estimate, tokens_of
from sweeps.status import read_status
from trainer import published
from trainer.corpus import Corpus
from trainer.optim import PartConfig
from trainer.plan import PARTS, Plan, Rates, Stage, dump
from trainer.stream import TrainingSamples
from trainer.tokenizer import QWEN3_EMBEDDINGS

__all__ = [
    *("HORIZON", "Promotion", "Wish"),
    *("default_target", "ladder_of", "plan_for", "promote", "read_decision", "save", "target_of"),
]

HORIZON = -0.32
"""The best rate falls with this power of the tokens trained on (Bjorck et al. 2025, arXiv 2409.19913)."""
FOLDER = "promotion"
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


@dataclass(frozen=True)
class Promotion:
    """plan, cost: None where it was refused; cost also without a cluster. trouble: why there is no ladder."""

    decision: Decision
    record: dict[str, Any]
    plan: Plan | None
    cost: Estimate | None
    ladder: Ladder | None
    trouble: str
    frame: pd.DataFrame


def promote(home: Home, sweep: str, wish: Wish, cluster: Cluster | None = None) -> Promotion:
    """Decide, and plan what is promoted. Nothing is written.

    Raises `UsageError` for an unfinished sweep, a wish that cannot be, and a cluster that is too small.
    """
    wish.check()
    if cluster is not None:
        cluster.check()
    folder = home.existing(sweep)
    config = load(str(folder.config))
    _refuse_unfinished(home, sweep)
    frame = load_table(folder.table)
    analysis = analyse(frame)
    first = decide(analysis, frame, None, wish.design or None, wish.force)
    if first.design is None:
        raise UsageError(f"sweep: {sweep!r} has nothing to promote: {'; '.join(first.reasons)}")
    plan = plan_for(config, first.design, wish, _corpus(home, folder, wish))
    ladder, trouble = ladder_of(home, sweep, target_of(plan))
    decision = decide(analysis, frame, ladder, wish.design or None, wish.force)
    record = _record(decision, folder, config, plan, wish)
    if decision.status == "refused":
        return Promotion(decision, record, None, None, ladder, trouble, frame)
    cost = None
    if cluster is not None:
        plan = replace(plan, parallel=choose(plan, cluster))
        cost = estimate(plan, cluster)
        record["cost"] = _plain(cost.as_dict())
    return Promotion(decision, record, replace(plan, evidence=record), cost, ladder, trouble, frame)


def save(home: Home, sweep: str, promotion: Promotion) -> Path:
    """Write the record, and the plan if there is one; the folder. A plan of before that is not confirmed goes."""
    folder = home.existing(sweep).path / FOLDER
    folder.mkdir(exist_ok=True)
    (folder / "decision.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(promotion.record)))
    plan = folder / "plan.yaml"
    if promotion.plan is None:
        plan.unlink(missing_ok=True)
    else:
        plan.write_text(dump(promotion.plan))
    return folder


def read_decision(folder: SweepFolder) -> tuple[Decision, Target] | None:
    """The decision about a sweep and the run that it was about, where there is one."""
    file = folder.path / FOLDER / "decision.yaml"
    if not file.exists():
        return None
    record: Any = OmegaConf.to_container(OmegaConf.load(file))
    known = {field.name: record["decision"][field.name] for field in fields(Decision)}
    if known["prediction"]:
        known["prediction"] = Prediction(**known["prediction"])
    return Decision(**known), Target(**record["target"])


def ladder_of(home: Home, sweep: str, target: Target) -> tuple[Ladder | None, str]:
    """The ladder of a sweep as seen from `target`, or why there is none."""
    config = load(str(home.existing(sweep).config))
    levels = read_levels(home, sweep)
    if not levels:
        return None, f"it was not trained; `lclab sweep ladder {sweep}` does"
    unfinished = [level.name for level in levels if read_status(home, level.name).unfinished]
    if unfinished:
        return None, f"{', '.join(unfinished)} has trials left; `lclab sweep ladder {sweep}` goes on"
    try:
        return analyse_ladder(levels, config.baseline, config.metric, target), ""
    except UsageError as error:
        return None, str(error)


def default_target(home: Home, sweep: str) -> Target:
    """The published run of the sweep's baseline."""
    config = load(str(home.existing(sweep).config))
    return target_of(plan_for(config, config.baseline, Wish(), None))


def target_of(plan: Plan) -> Target:
    """Parameters of the plan's model, and the raw tokens of all stages."""
    parameters = skeleton(Design.parse(plan.design), plan.size).parameters
    return Target(parameters, float(sum(s.steps * s.pieces for s in plan.stages) * plan.length))


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
        encoder=_shape(wish.encoder, wish.encoder_weights, config.size.encoder),
        decoder=_shape(wish.decoder, wish.decoder_weights, config.size.decoder),
    )
    if {wish.encoder, wish.decoder} & QWEN3.keys() or wish.encoder_weights:
        aids = {"phase_std": 0.0, "embedding_std": 0.02, "silent_encoder": False}
        return replace(size, embeddings="separate", positions="consecutive", **aids)
    return size


def _shape(name: str, weights: str, own: Shape) -> Shape:
    """That of a folder with weights, which may have another rotary base than the shape of its name; else the name's."""
    folder = Path(weights)
    if not weights or not (folder / "config.json").is_file():
        return shape.apply(name, own)
    return read_config(folder)[0]


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


def _corpus(home: Home, folder: SweepFolder, wish: Wish) -> Corpus | None:
    if wish.data:
        return Corpus(Path(wish.data), verify=False)
    if {wish.encoder, wish.decoder} & QWEN3.keys():
        return None  # a sweep's small vocabulary is not theirs
    return _own_corpus(folder)


def _own_corpus(folder: SweepFolder) -> Corpus:
    """What the sweep was trained on."""
    return Corpus(folder.path.parent / "corpora" / folder.corpus.read_text(), verify=False)


def _refuse_unfinished(home: Home, sweep: str) -> None:
    left = read_status(home, sweep).unfinished
    if left:
        raise UsageError(f"sweep: {sweep!r} has {left} trials left; finish it with `lclab sweep run`")


def _record(decision: Decision, folder: SweepFolder, config: SweepConfig, plan: Plan, wish: Wish) -> dict[str, Any]:
    """What is to be known of a decision later, in plain values."""
    about, target = provenance("lclab promote"), target_of(plan)
    corpus = _own_corpus(folder)
    return _plain(
        {
            "decision": asdict(decision),
            "target": asdict(target),
            "prediction": _carried_over(decision, config, plan, corpus),
            "sweep": config.name,
            "trained_as": plan.design,
            "wish": asdict(wish),
            "who": about["mlflow.user"],
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": about["mlflow.source.git.commit"],
            "data": corpus.manifest["hash"],
        }
    )


def _carried_over(decision: Decision, config: SweepConfig, plan: Plan, corpus: Corpus) -> dict[str, Any]:
    """The predicted loss of the plan's own run; none, with the reason, where it would be of another kind of loss.

    corpus: the sweep's.
    """
    told = decision.prediction
    ours, theirs = config.recipe, plan.recipe(plan.stages[-1])
    if told is None:
        why = "there is no ladder"
    elif plan.design != decision.design:
        why = f"the ladder trained {decision.design}, and the plan trains {plan.design}"
    elif plan.metric != config.metric:
        why = f"the sweep was selected on {config.metric}, which the plan does not train"
    elif plan.encoder or plan.decoder:
        why = "the ladder was trained from scratch, and the plan begins with trained weights"
    elif plan.size.vocab != config.corpus.vocab or plan.tokenizer != corpus.manifest["tokenizer"]:
        why = "losses per token of two tokenizers are not comparable"
    elif Corpus(Path(plan.corpus), verify=False).manifest["hash"] != corpus.manifest["hash"]:
        why = "the plan's corpus has another text to hold out"
    elif changed := [name for name in ("format", "piece", "documents") if getattr(ours, name) != getattr(theirs, name)]:
        why = f"what is held out is cut in another way: {', '.join(changed)}"
    elif not told.trusted:
        why = "the ladder did not predict its own largest level"
    else:
        return {"loss": told.loss, "low": told.low, "high": told.high}
    return {"loss": None, "low": None, "high": None, "why": why}


def _plain(value: Any) -> Any:
    """Without NumPy's numbers and tuples, which YAML has no word for."""
    return json.loads(json.dumps(value, default=float))
