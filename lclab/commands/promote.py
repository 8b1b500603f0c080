"""`lclab promote`: from a sweep's evidence to the plan of a full-scale run, or to the reasons against it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lclab.commands.options import AsJson, HomePath, at
from lclab.console import make_console
from search_space.errors import UsageError
from sweeps.home import Home

if TYPE_CHECKING:
    from sweeps.price import Estimate
    from sweeps.promote import Promotion
    from sweeps.rehearse import Rehearsal

__all__ = ["promote"]


def promote(
    name: Annotated[str, typer.Argument(metavar="SWEEP", help="A finished sweep.")],
    design: Annotated[str, typer.Option(help="One of its designs.", show_default="its winner")] = "",
    carried: Annotated[str, typer.Option("--as", help="Train this design in its place, where it is a miniature.")] = "",
    encoder: Annotated[str, typer.Option(help="0.6b, 4b, 8b, sizes such as l4d256, or base: the sweep's.")] = "0.6b",
    decoder: Annotated[str, typer.Option(help="As --encoder.")] = "4b",
    encoder_weights: Annotated[str, typer.Option(help="Folder or name of a Qwen3 model; else from scratch.")] = "",
    decoder_weights: Annotated[str, typer.Option(help="As --encoder-weights.")] = "",
    data: Annotated[str, typer.Option(help="Folder that `lclab data prepare` made; the sweep's own for base.")] = "",
    tokens: Annotated[float, typer.Option(help="Times the published 350B tokens.")] = 1.0,
    batch: Annotated[int, typer.Option(help="Decoder tokens of a step.")] = 4_194_304,
    length: Annotated[int, typer.Option(help="Raw tokens of a piece of text, at most.")] = 16_384,
    plan_name: Annotated[str, typer.Option("--name", help="Of the plan and its run.")] = "",
    nodes: Annotated[int, typer.Option(help="Of the cluster; 0 plans for none.")] = 0,
    gpus: Annotated[int, typer.Option(help="Of each node.")] = 8,
    kind: Annotated[str, typer.Option(help="Of GPU: a100, h100, h200, b200, mi300a, mi300x.")] = "h200",
    mfu: Annotated[float, typer.Option(help="Share of the GPUs' peak that is reached.")] = 0.35,
    measured: Annotated[bool, typer.Option("--measured", help="That --mfu was measured, not assumed.")] = False,
    price: Annotated[float, typer.Option(help="USD for a GPU and an hour.")] = 2.5,
    force: Annotated[bool, typer.Option("--force", help="In spite of reasons against it, which are recorded.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Go through the plan without GPUs; write nothing.")
    ] = False,
    home: HomePath = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Decide whether a sweep's winner may be trained at full scale, and plan how: stages, cluster, hours, price.

    Exit code 1 where it is refused; the reasons are in promotion/decision.yaml, in the report and in MLflow.
    """
    from sweeps.fleet import Cluster
    from sweeps.promote import promote as decide
    from sweeps.promote import save
    from sweeps.rehearse import rehearse
    from sweeps.scale_up import Wish

    place = Home(home).saved(name)
    shapes, weights = (encoder, decoder), (encoder_weights, decoder_weights)
    wish = Wish(design, carried, *shapes, *weights, data, tokens, batch, length, plan_name, force)
    status = "measured" if measured else "assumed"
    cluster = Cluster(nodes, gpus, kind, price=price, mfu=mfu, mfu_is=status) if nodes else None
    found = decide(place, name, wish, cluster)
    if dry_run and found.plan and not found.plan.corpus:
        raise UsageError("data: a dry run reads a batch of the text to train on; name its folder with --data")
    console = make_console(stderr=as_json)
    _say(console, found)
    rehearsal = rehearse(found.plan, cluster) if dry_run and found.plan else None
    where = None
    if rehearsal:
        _rehearsed(console, rehearsal)
    if not dry_run:
        where = save(place, name, found)
        _tell(console, place, name, found)
        if found.plan:
            plan = where / "plan.yaml"
            console.print(f"\nPlan    {plan}\nTrain   lclab train {plan}{at(home)}", soft_wrap=True)
    if as_json:
        print(json.dumps(_as_dict(found, where, rehearsal)))
    if found.decision.status == "refused":
        raise typer.Exit(1)


def _say(console: Console, found: "Promotion") -> None:
    from analysis.words import large
    from reports.ladder import ladder_section

    section = ladder_section(found.ladder, found.decision)
    assert section is not None
    console.print(f"[bold]{escape(section.headline)}[/]", soft_wrap=True, highlight=False)
    for reason in section.reasons:
        console.print(f"  against it: {escape(reason)}", soft_wrap=True, highlight=False)
    for note in () if found.ladder else section.notes:  # which the ladder's sentences say too
        console.print(f"  {escape(note)}", soft_wrap=True, highlight=False)
    if found.trouble:
        console.print(f"  the ladder: {escape(found.trouble)}", soft_wrap=True, highlight=False)
    for sentence in section.said:
        console.print(f"• {escape(sentence)}", soft_wrap=True, highlight=False)
    if found.plan is None:
        return
    table = Table(title=f"Stages of {found.plan.name}", title_justify="left", box=SIMPLE)
    for header in ("stage", "trains", "steps", "encoder tokens", "decoder tokens"):
        table.add_column(header, justify="left" if header in ("stage", "trains") else "right")
    for stage in found.plan.stages:
        rates = ", ".join(f"{part} {rate:.2g}" for part, rate in vars(stage.rates).items() if rate)
        cells = (f"{stage.steps:,}", large(stage.encoder_tokens), large(stage.decoder_tokens))
        table.add_row(stage.name, rates, *cells)
    console.print(table)
    if unlike := found.record["prediction"].get("unlike"):
        said = f"is of a run like the ladder's, and the plan's has {'; '.join(unlike)}"
        console.print(f"  the prediction: {escape(said)}", soft_wrap=True, highlight=False)
    for what in found.record["assumed"]:
        console.print(f"  assumed: {escape(what)}", soft_wrap=True, highlight=False)
    if found.cost:
        _cost(console, found.cost)


def _cost(console: Console, cost: "Estimate") -> None:
    cluster, total = cost.cluster, cost.total
    console.print(
        f"{cluster.ranks} {cluster.kind} at an MFU of {cluster.mfu:.0%} ({cluster.mfu_is}): {total.hours:,.0f} hours, "
        f"{total.gpu_hours:,.0f} GPU-hours, {total.kwh / 1000:,.1f} MWh, {total.price:,.0f} {cluster.currency} at "
        f"{cluster.price:g} an hour (assumed); "
        f"checkpoints {total.checkpoints / 1e9:,.0f} GB, text {cost.data / 1e9:,.0f} GB.",
        soft_wrap=True,
        highlight=False,
    )


def _rehearsed(console: Console, found: "Rehearsal") -> None:
    from analysis.words import large

    parts = ", ".join(f"{part} {large(count)}" for part, count in found.parameters.items())
    console.print(f"Dry run: {found.total:,} parameters ({parts}); {max(found.shards) / 1e9:.2f} GB of weights a rank.")
    for name, step in found.steps.items():
        memory = found.memory[name].total / 1e9
        console.print(
            f"  {name}: {memory:.1f} GB a rank by the memory model; its first step has {step.pieces} pieces and "
            f"{step.decoder_tokens:,} decoder tokens, {step.off:+.1%} of the batch; padding {step.padding:.1%}",
            soft_wrap=True,
            highlight=False,
        )


def _tell(console: Console, home: Home, name: str, found: "Promotion") -> None:
    """The report and MLflow; a server that is away keeps nobody from the plan."""
    from lclab.reporting import make_report
    from sweeps.mlflow_server import FAULTS, connect, first_line, settle
    from sweeps.registry import register_decision

    make_report(home.existing(name))
    settle()
    more = {f"promotion.{key}": str(found.record[key]) for key in ("who", "when", "commit", "data", "trained_as")}
    try:
        if not register_decision(connect(home), name, found.decision, found.frame, more):
            console.print("MLflow has no run of this design, so that its registry was not told.")
    except FAULTS as error:
        console.print(f"MLflow was not told: {escape(first_line(error))}", soft_wrap=True)


def _as_dict(found: "Promotion", where: Path | None, rehearsal: "Rehearsal | None") -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "status": found.decision.status,
        "design": found.decision.design,
        "reasons": found.decision.reasons,
        "plan": str(where / "plan.yaml") if where and found.plan else None,
        "hours": found.cost and found.cost.total.hours,
        "parameters": rehearsal and rehearsal.total,
        "steps": rehearsal and {name: asdict(step) for name, step in rehearsal.steps.items()},
    }
