"""`lclab train DESIGN`: one design by a sweep's recipe, on one device or many."""

import json
import logging
import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from lclab.commands.options import AsJson, HomePath, Overrides
from lclab.console import make_console
from search_space.errors import UsageError

if TYPE_CHECKING:
    from sweeps.config import SweepConfig
    from trainer.parallel import Parallel
    from trainer.trial import RungResult, TrialSpec

__all__ = ["train"]


def train(
    design: Annotated[str, typer.Argument(help="Such as mean-w32-causal-mlp-O0-n8.")],
    preset: Annotated[str, typer.Argument(help="Whose size, recipe and corpus: a preset or a YAML file.")] = "demo",
    overrides: Overrides = None,
    seed: Annotated[int, typer.Option(help="Of weights and data order.")] = 0,
    ray: Annotated[bool, typer.Option("--ray", help="Start the ranks by Ray Train; else one here per device.")] = False,
    home: HomePath = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Train one design, or continue it: the same command goes on from its last checkpoint.

    parallel.strategy=ddp or fsdp with parallel.devices=2 uses several devices; under torchrun, its ranks.
    """
    from search_space.design import Design
    from sweeps.config import load
    from trainer.trial import Interrupted, TrialSpec

    config = load(preset, overrides or [])
    chosen, size = Design.parse(design), config.model_size()
    size.of(chosen)  # refuses what does not fit
    _check_launch(config.parallel, ray)
    from trainer.heldout import check_fit
    from trainer.prepare import prepare

    leads = int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0) == 0
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


def _check_launch(parallel: "Parallel", ray: bool) -> None:
    """Raise `UsageError` where the processes that there are, or will be, are not those of `parallel`."""
    if ray and parallel.strategy == "one":
        raise UsageError("parallel.strategy: Ray Train runs ddp or fsdp; one process needs no --ray")
    started = int(os.environ.get("WORLD_SIZE", parallel.ranks))  # as torchrun says
    if started != parallel.ranks:
        raise UsageError(
            f"parallel.devices: {started} processes were started for {parallel.ranks} ranks; make them equal"
        )


def _claim(folder: Path, spec: "TrialSpec") -> None:
    """`folder` belongs to `spec` from now on. Raises `UsageError` where it belongs to another."""
    settings = json.dumps(asdict(spec), indent=1)
    about = folder / "spec.json"
    if about.exists() and about.read_text() != settings:
        raise UsageError(f"name: {folder} was begun with other settings; give this run a name with name=NEW")
    folder.mkdir(parents=True, exist_ok=True)
    about.write_text(settings)


def _here(config: "SweepConfig", spec: "TrialSpec", folder: Path, console: Console) -> "RungResult":
    import torch

    from trainer.pretrain import pretrain

    if not torch.cuda.is_available():
        torch.set_num_threads(config.threads)
    with _stopped_by_signals() as stopped, _progress(console, spec) as told:

        def progress(step: int, tokens: int) -> bool:
            told(step, tokens)
            return not stopped()

        return pretrain(spec, folder, len(spec.recipe.rungs), progress, config.parallel)


def _by_ray(config: "SweepConfig", spec: "TrialSpec", folder: Path, console: Console) -> "RungResult":
    import ray

    from sweeps.ray_train import pretrain_on_ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address=config.address or "local", log_to_driver=False, logging_level=logging.ERROR)
    try:
        with console.status(f"Ray Train: {config.parallel.ranks} ranks"):
            return pretrain_on_ray(spec, folder, len(spec.recipe.rungs), config.parallel)
    finally:
        ray.shutdown()


@contextmanager
def _stopped_by_signals() -> "Generator[Callable[[], bool]]":
    """Ctrl-C or SIGTERM asks to stop after the step, with a checkpoint; a second one at once."""
    asked: list[int] = []

    def stop(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    old = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def _progress(console: Console, spec: "TrialSpec") -> "Generator[Callable[[int, int], None]]":
    at = TextColumn("step {task.completed} of {task.total}, {task.fields[tokens]:,} tokens")
    columns = (at, BarColumn(24), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=spec.recipe.steps, tokens=0)
        yield lambda step, tokens: progress.update(task, completed=step, tokens=tokens)


def _show(console: Console, result: "RungResult", folder: Path) -> None:
    table = Table("held out", title=f"{result.tokens:,} raw tokens in {result.seconds:,.0f} s", title_justify="left")
    distances = sorted({first for losses in result.heldout.distance.values() for first, _ in losses})
    for header in ("loss", "accuracy", *(f"from {first}" for first in distances)):
        table.add_column(header, justify="right")
    for task, loss in result.heldout.loss.items():
        far = dict(result.heldout.distance[task])
        cells = (f"{far[first]:.3f}" if first in far else "" for first in distances)
        table.add_row(task, f"{loss:.3f}", f"{result.heldout.accuracy[task]:.3f}", *cells)
    console.print(table)
    console.print("Losses in nats per token; `from 16`: of tokens from the 16th behind the span to the next column.")
    console.print(f"Checkpoints and results: {folder}", soft_wrap=True)
