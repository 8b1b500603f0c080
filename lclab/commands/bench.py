"""`lclab bench model`: how fast the model is, as ratios measured in one run."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from lclab.commands.options import AsJson
from lclab.console import make_console

if TYPE_CHECKING:
    from lclab.bench.model import AxisCost, Speedup
    from lclab.bench.timing import Ratio

__all__ = ["app", "model"]

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


def _ratio(r: "Ratio") -> tuple[str, str]:
    return f"{r.value:.2f}", f"{r.low:.2f} to {r.high:.2f}"
