"""From a sweep to a full-scale run: the evidence, the decision about it, and what goes with the plan (`scale_up`).

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
from analysis.gate import Decision, Prediction, decide, unfinished, winning
from analysis.ladder import OTHER_RATIO, Ladder, Target, analyse_ladder, other_ratio
from analysis.table import load as load_table
from search_space.axes.shape import QWEN3
from search_space.errors import UsageError
from search_space.files import write_text
from sweeps.config import SweepConfig, load
from sweeps.fleet import Cluster, choose
from sweeps.home import Home, SweepFolder
from sweeps.ladder import read_levels
from sweeps.mlflow_server import provenance
from sweeps.price import Estimate, estimate
from sweeps.scale_up import Wish, assumed, plan_for, target_of
from sweeps.status import read_status
from trainer.corpus import Corpus
from trainer.plan import Plan, dump
from trainer.recipe import Recipe

__all__ = ["Promotion", "default_target", "ladder_of", "promote", "read_decision", "save"]

FOLDER = "promotion"


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
    won = winning(analysis, frame)
    design = wish.design or (won.design if won else "")
    if not design:
        raise UsageError(f"sweep: {sweep!r} has nothing to promote: {'; '.join(unfinished(analysis, frame))}")
    plan = plan_for(config, design, wish, _corpus(home, folder, wish))
    ladder, trouble = ladder_of(home, sweep, target_of(plan))
    decision = decide(analysis, frame, ladder, wish.design or None, wish.force)
    record = _record(decision, ladder, folder, config, plan, wish)
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
    write_text(folder / "decision.yaml", OmegaConf.to_yaml(OmegaConf.create(promotion.record)))
    plan = folder / "plan.yaml"
    if promotion.plan is None:
        plan.unlink(missing_ok=True)
    else:
        write_text(plan, dump(promotion.plan))
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
        return None, f"{', '.join(unfinished)} has trials left; the command that began the ladder goes on"
    try:
        return analyse_ladder(levels, config.baseline, config.metric, target), ""
    except UsageError as error:
        return None, str(error)


def default_target(home: Home, sweep: str) -> Target:
    """The published run of the sweep's baseline."""
    config = load(str(home.existing(sweep).config))
    return target_of(plan_for(config, config.baseline, Wish(), None))


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


def _record(
    decision: Decision, ladder: Ladder | None, folder: SweepFolder, config: SweepConfig, plan: Plan, wish: Wish
) -> dict[str, Any]:
    """What is to be known of a decision later, in plain values."""
    about, target = provenance("lclab promote"), target_of(plan)
    corpus = _own_corpus(folder)
    return _plain(
        {
            "decision": asdict(decision),
            "target": asdict(target),
            "prediction": _carried_over(decision, ladder, config, plan, corpus),
            "sweep": config.name,
            "trained_as": plan.design,
            "assumed": assumed(wish, plan),
            "wish": asdict(wish),
            "who": about["mlflow.user"],
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": about["mlflow.source.git.commit"],
            "data": corpus.manifest["hash"],
        }
    )


def _carried_over(
    decision: Decision, ladder: Ladder | None, config: SweepConfig, plan: Plan, corpus: Corpus
) -> dict[str, Any]:
    """The predicted loss of the plan's own run; none, with the reason, where that is another kind of loss or of run.

    corpus: the sweep's.
    """
    told = decision.prediction
    ours, theirs = config.recipe, plan.recipe(plan.stages[-1])
    if told is None or ladder is None:
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
    elif other := other_ratio(ladder.levels, ladder.target):
        why = other
    elif not told.trusted:
        why = "the ladder did not predict its own largest level"
    else:
        return {"loss": told.loss, "low": told.low, "high": told.high, "unlike": _unlike(config.recipe, plan)}
    return {"loss": None, "low": None, "high": None, "why": why}


def _unlike(ours: Recipe, plan: Plan) -> list[str]:
    """How the plan trains otherwise than the ladder did, of which its prediction knows nothing."""
    found = []
    if len(plan.stages) > 1:
        found.append(f"{len(plan.stages)} schedules in a row, each with a new optimizer, in place of one")
    step = round(target_of(plan).tokens / plan.steps)
    if not 1 / OTHER_RATIO <= step / (ours.piece * ours.pieces) <= OTHER_RATIO:
        found.append(f"steps of {step:,} raw tokens in place of {ours.piece * ours.pieces:,}")
    return found


def _plain(value: Any) -> Any:
    """Without NumPy's numbers and tuples, which YAML has no word for."""
    return json.loads(json.dumps(value, default=float))
