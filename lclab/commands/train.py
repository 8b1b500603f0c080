"""`lclab train DESIGN`: one design by a sweep's recipe, on one device or many."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lclab.commands.options import AsJson, HomePath, Overrides
from lclab.console import make_console
from lclab.heldout import show_heldout
from lclab.training import check_launch, first_rank, on_ray, step_bar, stopped_by_signals
from search_space.errors import UsageError
from search_space.files import write_text

if TYPE_CHECKING:
    from sweeps.config import SweepConfig
    from trainer.trial import RungResult, TrialSpec

__all__ = ["train"]


def train(
    design: Annotated[str, typer.Argument(metavar="DESIGN|PLAN", help="mean-w32-causal-mlp-O0-n8, or plan.yaml.")],
    preset: Annotated[str, typer.Argument(help="Of a design: where its size, recipe, corpus stand.")] = "demo",
    overrides: Overrides = None,
    seed: Annotated[int, typer.Option(help="Of weights and data order.")] = 0,
    ray: Annotated[bool, typer.Option("--ray", help="Start the ranks by Ray Train; else one here per device.")] = False,
    home: HomePath = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Train one design, or a promoted plan, or continue it: the same command goes on from the last checkpoint.

    parallel.strategy=ddp or fsdp with parallel.devices=2 uses several devices; under torchrun, its ranks.
    """
    if Path(design).suffix in (".yaml", ".yml"):
        from lclab.plans import train_plan

        settings = [*([preset] if "=" in preset else []), *(overrides or [])]
        return train_plan(Path(design), settings, ray, home, as_json)
    from search_space.design import Design
    from sweeps.config import load
    from trainer.trial import Interrupted, TrialSpec

    config = load(preset, overrides or [])
    chosen, size = Design.parse(design), config.model_size()
    size.of(chosen)  # refuses what does not fit
    check_launch(config.parallel, ray)
    from trainer.heldout import check_fit
    from trainer.prepare import prepare

    leads = first_rank()
    console = make_console(stderr=as_json) if leads else Console(quiet=True)
    corpus = prepare(config.corpus, home / "corpora", config.workers)
    check_fit(corpus, config.recipe, config.parallel)
    spec = TrialSpec(chosen, size, config.recipe, seed, str(corpus.folder.resolve()))
    folder = home / "train" / f"{config.name}-{chosen.name}-seed{seed}"
    if leads:
        _claim(folder, spec)
    run = _by_ray if ray else _here
    try:
        result = run(config, spec, folder, console)
    except (KeyboardInterrupt, Interrupted):
        console.print("\nStopped; nothing is lost. The same command continues.")
        raise typer.Exit(130) from None
    if as_json and leads:
        print(json.dumps({"design": chosen.name, "folder": str(folder)} | asdict(result)))
    elif leads:
        _show(console, result, folder)


def _claim(folder: Path, spec: "TrialSpec") -> None:
    """`folder` belongs to `spec` from now on. Raises `UsageError` where it belongs to another."""
    settings = json.dumps(asdict(spec), indent=1)
    about = folder / "spec.json"
    if about.exists() and about.read_text() != settings:
        raise UsageError(f"name: {folder} was begun with other settings; give this run a name with name=NEW")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(about, settings)


def _here(config: "SweepConfig", spec: "TrialSpec", folder: Path, console: Console) -> "RungResult":
    import torch

    from trainer.pretrain import pretrain

    if not torch.cuda.is_available():
        torch.set_num_threads(config.threads)
    with stopped_by_signals() as stopped, step_bar(console, spec.recipe.steps) as told:

        def progress(step: int, tokens: int) -> bool:
            told(step, tokens)
            return not stopped()

        return pretrain(spec, folder, len(spec.recipe.rungs), progress, config.parallel)


def _by_ray(config: "SweepConfig", spec: "TrialSpec", folder: Path, console: Console) -> "RungResult":
    from sweeps.ray_train import pretrain_on_ray

    with on_ray(config.address), console.status(f"Ray Train: {config.parallel.ranks} ranks"):
        return pretrain_on_ray(spec, folder, len(spec.recipe.rungs), config.parallel)


def _show(console: Console, result: "RungResult", folder: Path) -> None:
    show_heldout(console, result.heldout, f"{result.tokens:,} raw tokens in {result.seconds:,.0f} s")
    console.print(f"Checkpoints and results: {folder}", soft_wrap=True)
