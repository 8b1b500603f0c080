"""`lclab train PLAN`: a promoted run, here, under torchrun, or on a Ray cluster."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from analysis.words import number
from lclab.console import make_console
from lclab.training import check_launch, first_rank, on_ray, step_bar, stopped_by_signals

if TYPE_CHECKING:
    from trainer.plan import Plan
    from trainer.stages import Outcome
    from trainer.trial import RungResult

__all__ = ["train_plan"]


def train_plan(path: Path, overrides: list[str], ray: bool, home: Path, as_json: bool) -> None:
    """Train the plan in `path`, or continue it."""
    from trainer.plan import load

    plan = load(path, overrides)
    check_launch(plan.parallel, ray)
    from trainer.stages import stage_folder
    from trainer.trial import Interrupted

    leads = first_rank()
    console = make_console(stderr=as_json) if leads else Console(quiet=True)
    folder = home / "plans" / plan.name
    try:
        if leads:
            outcome = _lead(plan, folder, home, ray, console)
        else:
            _here(plan, folder, console)
            return
    except (KeyboardInterrupt, Interrupted):
        console.print("\nStopped; nothing is lost. The same command continues.")
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps({"plan": plan.name, "folder": str(folder)} | asdict(outcome)))
        return
    last = stage_folder(folder, len(plan.stages) - 1, plan.stages[-1])
    console.print(_scored(outcome, plan), soft_wrap=True)
    console.print(f"Checkpoints and results: {folder}\nExport: lclab export {last} OUT", soft_wrap=True)


def _lead(plan: "Plan", folder: Path, home: Path, ray: bool, console: Console) -> "Outcome":
    """On the process that speaks for all ranks."""
    from sweeps.full_run import claim, keep_going, run_plan
    from sweeps.home import Home
    from trainer.stages import check_corpus

    corpus = check_corpus(plan)
    claim(plan, folder)
    if not ray:
        return run_plan(plan, folder, Home(home), corpus, lambda: _here(plan, folder, console))
    from sweeps.ray_train import RankDied, run_stages_on_ray

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    with on_ray(os.environ.get("RAY_ADDRESS", "")), console.status(f"Ray Train: {plan.parallel.ranks} ranks"):
        train = keep_going(plan, folder, lambda: run_stages_on_ray(plan, folder, say=say), RankDied, say)
        return run_plan(plan, folder, Home(home), corpus, train)


def _here(plan: "Plan", folder: Path, console: Console) -> "list[RungResult]":
    """In this process, which is one of the ranks."""
    import torch

    from trainer.stages import run_stages

    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # more are of no use to what fits a CPU, and the order of sums is then always the same
    with stopped_by_signals() as stopped, step_bar(console, plan.steps) as told:

        def watch(stage: int, step: int, tokens: int) -> bool:
            told(sum(s.steps for s in plan.stages[:stage]) + step, tokens)
            return not stopped()

        return run_stages(plan, folder, watch)


def _scored(outcome: "Outcome", plan: "Plan") -> str:
    """What has become of the prediction."""
    loss = f"Held-out loss ({outcome.metric}): {number(outcome.loss)} nats per token"
    if outcome.low is None or outcome.high is None:
        return f"{loss}; nothing was predicted."
    bounds = f"the predicted {number(outcome.low)} to {number(outcome.high)}"
    if outcome.verdict == "inside":
        return f"{loss}, inside {bounds}."
    unlike = plan.evidence["prediction"].get("unlike")
    why = f" That was of a run like the ladder's; this one had {'; '.join(unlike)}." if unlike else ""
    return f"{loss}, {outcome.verdict} the range of {bounds}.{why}"
