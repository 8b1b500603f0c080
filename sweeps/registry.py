"""The winner of a sweep in MLflow's model registry, where the registered model has the sweep's name.

Notable choices:
- a version points to a run of the winner and carries the evidence as tags; the alias `candidate` is at the newest;
- the run is the winner's first, not its luckiest: the evidence is the design's, over all of its seeds;
- no weights are uploaded: the checkpoints of a search are small models with the state of their optimizers, and what is
  promoted is a design, which is trained anew. What the version's source holds is `trial.yaml` and `sweep.yaml`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from analysis import Analysis, Row
from analysis.gate import Decision, winning
from analysis.table import comparable
from analysis.words import interval, number, signed

__all__ = ["ALIAS", "PROMOTED", "Winner", "register", "register_decision", "winner"]

ALIAS = "candidate"
PROMOTED = "promoted"


@dataclass(frozen=True)
class Winner:
    """trial: number of the trial that stands for the design. evidence: tags of the version."""

    trial: int
    evidence: dict[str, str]
    description: str


def winner(analysis: Analysis, frame: pd.DataFrame) -> Winner | None:
    """The lowest loss at the last rung, of baseline and arms within the limits; None where none got there."""
    row = winning(analysis, frame)
    if row is None:
        return None
    own = frame[frame["role"].isin(["baseline", "arm"])]
    trial = _stands_for(row.design, own, analysis.metric)
    return Winner(trial, _evidence(analysis, row, own["trial"].nunique()), _sentence(analysis, row))


def _stands_for(design: str, own: pd.DataFrame, metric: str) -> int:
    """The first of a design's trials that came to the last rung."""
    usable = comparable(own, metric)
    return int(usable.loc[(usable["design"] == design) & (usable["rung"] == own["rungs"].max()), "trial"].min())


def _evidence(analysis: Analysis, row: Row, trials: int) -> dict[str, str]:
    """What is known of it; `verdict` is `baseline` where that has won, and then there is no difference."""
    effect, known = row.effect, analysis.comparison
    evidence = {
        "design": row.design,
        "baseline": known.baseline,
        "verdict": row.verdict,
        "metric": analysis.metric,
        "loss": row.losses[analysis.metric],
        "difference": effect and effect.difference,
        "low": effect and effect.low,
        "high": effect and effect.high,
        "seeds": row.seeds,
        "sigma": known.sigma,
        "rung": row.rung,
        "trials": trials,
    }
    return {name: str(value) for name, value in evidence.items() if value is not None}


def _sentence(analysis: Analysis, row: Row) -> str:
    loss, e = f"held-out {analysis.metric} loss {number(row.losses[analysis.metric])}", row.effect
    if e is None:
        return f"The baseline {row.design} has the lowest loss: {loss}."
    against = f"{signed(e.difference)} nats per token (95% interval {interval(e.low, e.high)})"
    return f"{row.design}: {loss}; against the baseline {analysis.comparison.baseline} {against}: {row.verdict}."


def register(client: MlflowClient, sweep: str, won: Winner, run: Run, more: Mapping[str, str]) -> None:
    """Make the newest version of `sweep` be of `run`, with its evidence and `more`, and move the alias there.

    Repeatable: a version of that run which is the newest already is kept, and its evidence brought up to date.
    """
    version = _version(client, sweep, won, run, more)
    client.set_registered_model_alias(sweep, ALIAS, version)


def register_decision(
    client: MlflowClient, sweep: str, decision: Decision, frame: pd.DataFrame, more: Mapping[str, str]
) -> bool:
    """Keep a decision as tags of a version of its design, which has the alias `promoted` unless it was refused: a
    refusal takes it from the same design, and leaves it where another one was promoted before.

    False where the design's trial is not in MLflow.
    """
    own = frame[frame["role"].isin(["baseline", "arm"])]
    usable = comparable(own, decision.metric)
    of_design = usable[(usable["design"] == decision.design) & usable["mlflow_run"].notna()]
    if of_design.empty:
        return False
    first = of_design.sort_values(["rung", "trial"], ascending=[False, True]).iloc[0]
    told = {name: value for name, value in vars(decision).items() if isinstance(value, (str, int, float))}
    told |= {"reasons": "; ".join(decision.reasons)}
    if decision.prediction:
        told |= {f"predicted_{name}": getattr(decision.prediction, name) for name in ("loss", "low", "high", "turned")}
    evidence = {f"promotion.{name}": str(value) for name, value in told.items() if value not in (None, "")}
    sentence = f"{decision.status}: {decision.design}" + (f" ({told['reasons']})" if decision.reasons else "")
    won = Winner(int(first["trial"]), evidence, sentence)
    version = _version(client, sweep, won, client.get_run(str(first["mlflow_run"])), more, decision.design)
    if decision.status != "refused":
        client.set_registered_model_alias(sweep, PROMOTED, version)
    elif _promoted(client, sweep) == decision.design:
        client.delete_registered_model_alias(sweep, PROMOTED)
    return True


def _promoted(client: MlflowClient, sweep: str) -> str | None:
    """The design of the version that has the alias."""
    if PROMOTED not in client.get_registered_model(sweep).aliases:
        return None
    return client.get_model_version_by_alias(sweep, PROMOTED).tags["promotion.design"]


def _version(
    client: MlflowClient, sweep: str, won: Winner, run: Run, more: Mapping[str, str], keep: str | None = None
) -> str:
    """The newest version of `sweep`, if it is of `run`, else a new one; brought up to date.

    keep: what the version is of, where it keeps what it says already.
    """
    try:
        client.create_registered_model(sweep, {"lclab.sweep": sweep}, f"Winners of the sweep {sweep}, by `lclab`.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {**won.evidence, **more}
    newest = client.search_model_versions(f"name = '{sweep}'", max_results=1, order_by=["version_number DESC"])
    if newest and newest[0].run_id == run.info.run_id:
        version = newest[0]
        for name in version.tags.keys() - tags.keys():
            if name.startswith("promotion.") == (keep is not None):  # of the kind that is told anew
                client.delete_model_version_tag(sweep, version.version, name)
        for name, value in tags.items() - version.tags.items():
            client.set_model_version_tag(sweep, version.version, name, value)
        if keep is None and version.description != won.description:
            client.update_model_version(sweep, version.version, won.description)
    else:
        source = str(run.info.artifact_uri)
        version = client.create_model_version(sweep, source, run.info.run_id, tags, description=won.description)
    return version.version
