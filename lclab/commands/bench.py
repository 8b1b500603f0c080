"""`lclab bench`: how fast model and training are, as ratios measured in one run, which learning rate is best, and what
a search costs."""

import json
import tempfile
import zlib
from dataclasses import asdict, is_dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lclab.commands.options import AsJson, HomePath, Overrides, Preset
from lclab.console import make_console

if TYPE_CHECKING:
    from lclab.bench.engine import Driven, Real
    from lclab.bench.model import AxisCost, Speedup
    from lclab.bench.rates import BestRate
    from lclab.bench.recorded import Recorded
    from lclab.bench.sweep import Summary
    from lclab.bench.timing import Ratio, Tick
    from lclab.bench.train import Lightning, Loader, Stepping
    from search_space.compressor import Size
    from search_space.design import Design
    from sweeps.config import SweepConfig

__all__ = ["app", "model", "rates", "sweep", "train"]

_DRIVEN: Any = (
    ("random", "memory", 10_000),
    ("tpe", "memory", 10_000),
    ("random", "sqlite", 1_000),
    ("tpe", "sqlite", 1_000),
)
"""Sampler, storage and trials whose driver is measured."""

DesignName = Annotated[str, typer.Option("--design", help="Such as concat-w64-causal-mlp-O0-n8; else the baseline.")]

app = typer.Typer(no_args_is_help=True, help="Measure, as ratios in one run.")


@app.callback()
def bench() -> None:
    """Measure, as ratios in one run."""


@app.command("model")
def model(
    documents: Annotated[int, typer.Option(help="Documents in a step, of 700 tokens in the median.")] = 9,
    layers: Annotated[int, typer.Option(help="Of encoder and decoder.")] = 2,
    width: Annotated[int, typer.Option(help="Of encoder and decoder.")] = 128,
    pool_width: Annotated[int, typer.Option(help="Of the hidden states where pooling is measured alone.")] = 1024,
    rounds: Annotated[int, typer.Option(help="How often everything is run; the fastest counts.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Compare the vectorised model with the published loop, and each axis with a baseline; takes minutes."""
    from lclab.bench.model import Workload, axis_costs, speedups

    work = Workload(documents, layers, width, pool_width, rounds)
    console = make_console(stderr=as_json)
    with console.status("starting") as status:
        faster, costs = list(speedups(work, status.update)), list(axis_costs(work, status.update))
    if as_json:
        tokens = sum(len(sample.tokens) for sample in work.samples())
        found = {"workload": asdict(work) | {"tokens": tokens}}
        print(json.dumps(found | {"speedups": [asdict(s) for s in faster], "axes": [asdict(c) for c in costs]}))
    else:
        _show_speedups(console, faster)
        _show_costs(console, costs)


@app.command("train")
def train(
    preset: Preset = "demo",
    overrides: Overrides = None,
    design: DesignName = "",
    steps: Annotated[int, typer.Option(help="Of a round.")] = 8,
    rounds: Annotated[int, typer.Option(help="How often everything is run; the fastest counts.")] = 5,
    home: HomePath = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Compare a preset's training step with the plain loop, the matmul floor, its loader and a loop without Lightning.

    The demo takes 2 minutes on 2 CPU cores, and another to make its corpus the first time. Time per axis: bench model.
    """
    config, chosen = _configured(preset, overrides, design)
    from lclab.bench.loop import Work
    from lclab.bench.train import lightning, loading, stepping
    from trainer.prepare import prepare
    from trainer.recipe import precision_of

    console = make_console(stderr=as_json)
    Work.check(steps, rounds)
    with console.status("preparing the corpus") as status:
        corpus = prepare(config.corpus, home / "corpora", config.workers)
        work = Work(chosen, config.model_size(), config.recipe, corpus, steps, rounds)
        around = lightning(work, status.update)
        step, loaders = stepping(work, status.update), loading(work, status.update)
    precision = precision_of(config.recipe)
    if as_json:
        about = {"design": chosen.name, "preset": config.name, "precision": precision, "steps": steps, "rounds": rounds}
        found = {"stepping": asdict(step), "loading": [asdict(r) for r in loaders], "lightning": asdict(around)}
        print(json.dumps(about | {"device": work.device.type} | found))
    else:
        _show_training(console, f"{chosen.name}, {config.name}'s recipe, {precision}", step, loaders, around)


@app.command("rates")
def rates(
    preset: Preset = "demo",
    overrides: Overrides = None,
    design: DesignName = "",
    size: Annotated[list[str] | None, typer.Option(help="WIDTHxLAYERS, any number; else 64x2 128x2 256x2.")] = None,
    home: HomePath = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Train a design at several sizes and multiples of the recipe's learning rates, and find the best one of each size.

    Fifteen trials by default, one after the other. The same command goes on where it was stopped.
    """
    config, chosen = _configured(preset, overrides, design)
    sizes = [_size(text, config) for text in size or ("64x2", "128x2", "256x2")]
    for one in sizes:
        one.of(chosen)  # refuses what does not fit
    import torch

    from lclab.bench.rates import best_rates
    from trainer.heldout import check_fit
    from trainer.prepare import prepare

    torch.set_num_threads(config.threads)
    console = make_console(stderr=as_json)
    with console.status("preparing the corpus") as status:
        corpus = prepare(config.corpus, home / "corpora", config.workers)
        check_fit(corpus, config.recipe, config.parallel)
        settings = [asdict(config.recipe), [asdict(one) for one in sizes], str(corpus.folder.resolve())]
        key = zlib.crc32(json.dumps(settings).encode())
        folder = home / "rates" / f"{config.name}-{chosen.name}-{key:08x}"
        found = list(best_rates(chosen, sizes, config.recipe, corpus.folder.resolve(), folder, tick=status.update))
    if as_json:
        print(json.dumps({"design": chosen.name, "preset": config.name, "rates": [_finite(asdict(r)) for r in found]}))
    else:
        _show_rates(console, f"{chosen.name}, {config.name}'s recipe", found)


@app.command("sweep")
def sweep(
    seeds: Annotated[int, typer.Option(help="Replays of each search.")] = 20,
    trials: Annotated[int, typer.Option(help="Of a replayed sweep; 0 is as many as there are designs.")] = 0,
    table: Annotated[Path | None, typer.Option(help="A recorded one; else that of the tests.")] = None,
    record: Annotated[Path | None, typer.Option(help="Train a table anew in this folder; 15 minutes.")] = None,
    engine: Annotated[bool, typer.Option("--engine", help="Measure the driver's own time instead.")] = False,
    real: Annotated[bool, typer.Option("--real", help="Measure trials of the demo on Ray instead.")] = False,
    home: HomePath = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Replay sweeps on a table of real trainings, and measure what each search spends until it has the answer.

    Minutes on 2 CPU cores. The engine's own time: --engine, virtual, and --real, on Ray, minutes each.
    """
    console = make_console(stderr=as_json)
    found: dict[str, Any] = {}
    with console.status("starting") as status:
        if record:
            from lclab.bench.recorded import record as train_table

            found |= {"table": str(train_table(record, status.update))}
        elif engine:
            found |= {"engine": _engine(status.update)}
        elif real:
            found |= {"real": _real(home, status.update)}
        else:
            found |= _replayed(seeds, trials, table, status.update)
    if as_json:
        print(json.dumps(_finite(_plain(found))))
    elif record:
        console.print(found["table"], soft_wrap=True)
    elif engine:
        _show_engine(console, found["engine"])
    elif real:
        _show_real(console, found["real"])
    else:
        _show_searches(console, found["table"], found["searches"])


def _replayed(seeds: int, trials: int, path: Path | None, tick: "Tick") -> "dict[str, Recorded | list[Summary]]":
    """Every sampler with every pruner."""
    from lclab.bench.recorded import TABLE, Recorded
    from lclab.bench.sweep import searches, table_of
    from search_space.errors import UsageError

    if seeds < 1 or trials < 0:
        raise UsageError(f"seeds: {seeds} is not at least 1" if seeds < 1 else f"trials: {trials} is not at least 0")
    recorded = Recorded.load(path or TABLE)
    return {"table": recorded, "searches": list(table_of(searches(trials), recorded, seeds, tick=tick))}


def _engine(tick: "Tick") -> "list[Driven]":
    from lclab.bench.engine import driven

    found = []
    for sampler, storage, trials in _DRIVEN:
        tick(f"{trials:,} trials, {sampler}, {storage}")
        found.append(driven(sampler, storage, trials))
    return found


def _real(home: Path, tick: "Tick") -> "Real":
    """The demo's trials, longer."""
    from lclab.bench.engine import real
    from sweeps.config import load
    from trainer.prepare import prepare

    config = load("demo", ["recipe.steps=200"])
    corpus = prepare(config.corpus, home / "corpora", config.workers)
    tick("trials on Ray")
    with tempfile.TemporaryDirectory() as folder:
        return real(config, corpus, Path(folder), trials=6)


def _configured(preset: str, overrides: list[str] | None, design: str) -> "tuple[SweepConfig, Design]":
    """The configuration and the design, which fits its size. Raises `UsageError`."""
    from search_space.design import Design
    from sweeps.config import load

    config = load(preset, overrides or [])
    chosen = Design.parse(design or config.baseline)
    config.model_size().of(chosen)
    return config, chosen


def _size(text: str, config: "SweepConfig") -> "Size":
    """The preset's size with square shapes of WIDTHxLAYERS. Raises `UsageError`."""
    from lclab.bench.rates import square
    from search_space.errors import UsageError

    width, _, layers = text.partition("x")
    if not (width.isdecimal() and layers.isdecimal() and int(width) and int(layers)):
        raise UsageError(f"size: {text!r} is not WIDTHxLAYERS, such as 128x2")
    size = config.model_size()
    shapes = square(int(width), int(layers), size.vocab)
    return replace(size, encoder=shapes.encoder, decoder=shapes.decoder)


def _finite(value: Any) -> Any:
    """JSON has no word for a number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    """Dataclasses as dictionaries; of a recorded table what it comes to."""
    from lclab.bench.recorded import Recorded

    def plain(value: Any) -> Any:
        if isinstance(value, Recorded):
            about = {"designs": len(value.designs), "seeds": value.seeds, "within_noise": value.contenders}
            return about | {"sigma": value.sigma, "spread": float(value.truth_D.std()), "about": value.about}
        return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value

    return {k: [plain(one) for one in v] if isinstance(v, list) else plain(v) for k, v in found.items()}


def _show_searches(console: Console, table: "Recorded", rows: "list[Summary]") -> None:
    title = f"Compute until the answer, as a share of the grid of {len(table.designs)} designs"
    shown = Table("search", title=title, title_justify="left")
    for header in ("median", "mean", "nine tenths", "never", "spent in all", "right at the end"):
        shown.add_column(header, justify="right")
    for r in rows:
        reached = [f"{share:.3f}" if isfinite(share) else "never" for share in (r.median, r.mean, r.most)]
        shown.add_row(r.search, *reached, f"{r.never:.0%}", f"{r.spent:.2f}", f"{r.right:.0%}")
    shown.caption = (
        f"{rows[0].replays} replays each; sigma of a seed {table.sigma:.3f} nats, of the designs "
        f"{table.truth_D.std():.3f}; {table.contenders} designs are within noise of the best one. Aim: 0.15."
    )
    console.print(shown)


def _show_engine(console: Console, rows: "list[Driven]") -> None:
    table = Table("sampler", "storage", title="CPU time of the driver, trials that take no time", title_justify="left")
    for header in ("trials", "seconds for 1,000", "ms per event at 100 trials", "at 1,000", "at 10,000"):
        table.add_column(header, justify="right")
    for r in rows:
        at = [f"{1000 * r.at[size]:.2f}" if size in r.at else "" for size in (100, 1_000, 10_000)]
        table.add_row(r.sampler, r.storage, f"{r.trials:,}", f"{r.seconds:.1f}", *at)
    table.caption = "Aim: 1,000 trials in 10 s, and an event that costs the same however many there are."
    console.print(table)


def _show_real(console: Console, r: "Real") -> None:
    table = Table("what", title=f"{r.trials} trials on {r.workers} Ray workers", title_justify="left")
    for header in ("measured", "aim"):
        table.add_column(header, justify="right")
    seconds = f"{r.training / r.trials:,.1f} s of training each, ratio {r.ratio:.3f}"
    table.add_row("wall time over training time", seconds, "at most 1.05 at 30 s")
    table.add_row("warm hand-over", f"{1000 * r.handover:,.0f} ms", "at most 50 ms")
    console.print(table)


def _show_training(
    console: Console, title: str, step: "Stepping", loaders: "list[Loader]", around: "Lightning"
) -> None:
    table = Table("what", "measured", title=f"Training step of {title}", title_justify="left")
    for header in ("ratio", "in one round", "aim"):
        table.add_column(header, justify="right")
    table.add_row("step", f"{1000 * step.seconds:,.1f} ms, {step.tokens:,.0f} raw tokens/s")
    if step.plain:
        plain = f"{1000 * step.plain.published:,.1f} ms against {1000 * step.plain.ours:,.1f}"
        table.add_row("plain published loop, same step", plain, *_ratio(step.plain.faster))
    shape = " x ".join(map(str, step.floor.shape))
    rate = f"{step.floor.flops / 1e9:,.2f} GFLOP at {step.floor.rate / 1e9:,.0f} GFLOP/s ({shape})"
    table.add_row("matmul floor, of the step", rate, *_ratio(step.floor.share))
    for loader in loaders:
        name = f"loader, {loader.workers} process" if loader.workers else "loader, a thread"
        table.add_row(name, f"{loader.batches:,.0f} batches/s, of wall time", *_ratio(loader.faster), "at least 10")
    both = f"{1000 * around.seconds:,.1f} ms against {1000 * around.bare:,.1f}"
    table.add_row("Lightning, over a bare loop", both, *_ratio(around.ratio, 3), "at most 1.030 at 50 ms")
    table.add_row("the bare loop, over itself", "noise", *_ratio(around.noise, 3))
    console.print(table)


def _show_rates(console: Console, title: str, found: "list[BestRate]") -> None:
    table = Table("width", "layers", title=f"Held-out loss of reconstruction, {title}", title_justify="left")
    table.caption = "Columns: multiples of the recipe's rates; best: bottom of the valley, empty where it is outside."
    for factor in found[0].losses:
        table.add_column(f"x {factor:g}", justify="right")
    table.add_column("best", justify="right")
    for r in found:
        losses = [f"{loss:.4f}" if isfinite(loss) else "diverged" for loss in r.losses.values()]
        best = f"x {r.best:.2f}" if isfinite(r.best) else ""
        table.add_row(str(r.size.decoder.width), str(r.size.decoder.layers), *losses, best)
    console.print(table)


def _show_speedups(console: Console, rows: "list[Speedup]") -> None:
    table = Table("part", "window", "published batch item", title="Vectorised against published", title_justify="left")
    for header in ("published, ms", "vectorised, ms", "times faster", "in one round"):
        table.add_column(header, justify="right")
    for r in rows:
        seconds = (f"{1000 * r.published:,.1f}", f"{1000 * r.vectorised:,.1f}")
        table.add_row(r.part, str(r.window), r.item, *seconds, *_ratio(r.ratio))
    console.print(table)


def _show_costs(console: Console, rows: "list[AxisCost]") -> None:
    table = Table("change", title=f"Training step, as a multiple of {rows[0].design}", title_justify="left")
    for header in ("ms", "time", "in one round", "predicted FLOPs", "parameters"):
        table.add_column(header, justify="right")
    for r in rows:
        table.add_row(r.change, f"{1000 * r.seconds:,.1f}", *_ratio(r.time), f"{r.flops:.2f}", f"{r.parameters:.2f}")
    console.print(table)


def _ratio(r: "Ratio", digits: int = 2) -> tuple[str, str]:
    return f"{r.value:.{digits}f}", f"{r.low:.{digits}f} to {r.high:.{digits}f}"
