"""`lclab sweep run|submit|status|stop`: start or continue a sweep, here or on a cluster, look at it, end it.

Here as in every command, what takes seconds to import is imported where it is used, so that `--help` and a mistyped
option answer at once.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from lclab.commands.options import AsJson, HomePath, Overrides, Preset, at
from lclab.console import make_console
from search_space.errors import UsageError
from sweeps.home import Home

__all__ = ["app", "run"]

app = typer.Typer(no_args_is_help=True, help="Run, watch and stop sweeps.")
Name = Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep that was run before.")]


@app.command("run")
def run(
    preset: Preset,
    overrides: Overrides = None,
    home: HomePath = Path("runs"),
    as_json: AsJson = False,
    address: Annotated[str, typer.Option(help="Of a Ray cluster: HOST:PORT, auto or ray://HOST:PORT.")] = "",
) -> None:
    """Run a sweep, or continue it: the same command goes on from whatever exists."""
    from sweeps.config import load

    overrides = [*(overrides or []), *([f"address={address}"] if address else [])]
    config = load(preset, overrides)
    from lclab.live import Live  # after the configuration is known to be good: these take seconds
    from lclab.reporting import make_report
    from lclab.show import show_analysis
    from sweeps.run import run_sweep

    console = make_console(stderr=as_json)
    again = escape(f"lclab sweep run {preset}" + "".join(f" '{o}'" for o in overrides) + at(home))
    try:
        with Live(console, config) as live:
            outcome = run_sweep(config, Home(home), make_report, live.say, live.watch)
    except KeyboardInterrupt:  # before or after training, or the second Ctrl-C: what is written is whole
        console.print(f"\nStopped. Continue with: [bold]{again}[/]", soft_wrap=True)
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps({"sweep": config.name, "stopped": outcome.stopped, "learnt": outcome.analysis.learnt}))
    else:
        show_analysis(console, outcome.analysis)
        console.print(f"\nReport  {outcome.folder.report}\nMLflow  lclab ui{at(home)}", soft_wrap=True)
    if outcome.trouble:
        console.print(f"\nStopped by the machine: {escape(outcome.trouble)}", soft_wrap=True)
    if outcome.stopped:
        console.print(f"\nStopped; nothing is lost. Continue with: [bold]{again}[/]", soft_wrap=True)
        raise typer.Exit(1 if outcome.trouble else 130)


@app.command("ladder")
def ladder(
    name: Name,
    top: Annotated[int, typer.Option(min=1, help="Best designs of the sweep, beside its baseline.")] = 2,
    design: Annotated[list[str] | None, typer.Option(help="These designs in their place; may be repeated.")] = None,
    seeds: Annotated[int, typer.Option(help="Of every design on every level.")] = 3,
    sizes: Annotated[str, typer.Option(help="Factors on the sweep's widths; squared, on steps.")] = "0.5,1,2",
    workers: Annotated[int, typer.Option(help="Trials at a time.", show_default="the sweep's")] = 0,
    ladder_name: Annotated[str, typer.Option("--name", help="Of the ladder; levels are SWEEP.NAME-SIZE.")] = "ladder",
    home: HomePath = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Train a sweep's best designs at several sizes and budgets, or continue: what will hold at full scale?"""
    from sweeps.ladder import note_levels, plan_ladder

    place = Home(home)
    plan = plan_ladder(place, name, top, seeds, _factors(sizes), design or [], ladder_name)
    from lclab.live import Live
    from lclab.reporting import make_report, read_ladder
    from lclab.show import show_ladder
    from sweeps.run import run_sweep

    console = make_console(stderr=as_json)
    again = "The same command continues."
    note_levels(place, name, plan)
    for level in plan.levels:
        level = replace(level, workers=workers or level.workers)
        try:
            with Live(console, level) as live:
                outcome = run_sweep(level, place, make_report, live.say, live.watch)
        except KeyboardInterrupt:
            console.print(f"\nStopped. {again}", soft_wrap=True)
            raise typer.Exit(130) from None
        if outcome.stopped:
            console.print(f"\n{escape(outcome.trouble) or 'Stopped; nothing is lost.'} {again}", soft_wrap=True)
            raise typer.Exit(1 if outcome.trouble else 130)
    make_report(place.existing(name))
    found, trouble, _ = read_ladder(place.existing(name))
    if as_json:
        print(json.dumps({"sweep": name, "levels": [level.name for level in plan.levels], "trouble": trouble}))
    else:
        show_ladder(console, found, trouble)
        console.print(f"\nReport  {place.existing(name).report}", soft_wrap=True)


def _factors(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"sizes: {text!r} are not numbers with commas, such as 0.5,1,2") from None


@app.command("submit")
def submit(
    preset: Preset,
    overrides: Overrides = None,
    kind: Annotated[Literal["job", "kuberay"], typer.Option(help="`ray job submit`, or a RayJob to apply.")] = "job",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print it, submit nothing.")] = False,
    address: Annotated[str, typer.Option(help="Of the cluster's dashboard.")] = "http://127.0.0.1:8265",
    image: Annotated[str, typer.Option(help="KubeRay: with this package installed.")] = "",
    workers: Annotated[int, typer.Option(min=1, help="KubeRay: worker pods.")] = 1,
    memory: Annotated[str, typer.Option(help="KubeRay: of a pod.")] = "16Gi",
    claim: Annotated[str, typer.Option(help="KubeRay: the PersistentVolumeClaim for --home.")] = "lclab-home",
    secret: Annotated[str, typer.Option(help="KubeRay: a Secret with environment variables.")] = "",
    home: HomePath = Path("runs"),
) -> None:
    """Run a sweep as a job of a Ray cluster, whose nodes share the folder --home."""
    from sweeps.config import load

    config = load(preset, overrides or [])
    from sweeps import submit as cluster

    if kind == "kuberay":
        if not dry_run:
            raise UsageError("kind: a RayJob is printed with --dry-run, to be piped into `kubectl apply -f -`")
        if not image:
            raise UsageError("image: a RayJob needs one with this package installed, such as --image HOST/lclab:1")
        pods = cluster.Pods(image, workers, memory, claim, secret)
        print(cluster.to_yaml(cluster.ray_job(config, home, pods)), end="")
        return
    job = cluster.job(preset, overrides or [], home)
    print(cluster.ray_line(job, address) if dry_run else cluster.submit(job, address))


@app.command("status")
def status(name: Name, home: HomePath = Path("runs"), as_json: AsJson = False) -> None:
    """Where a sweep stands, also while another terminal runs it."""
    from lclab.show import show_status
    from sweeps.status import read_status

    found = read_status(Home(home), name)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        show_status(make_console(), found)


@app.command("stop")
def stop(name: Name, home: HomePath = Path("runs")) -> None:
    """Ask the driver of a sweep to stop cleanly, as Ctrl-C in its own terminal would."""
    folder = Home(home).existing(name)
    driver = folder.driver()
    if driver is None:
        raise UsageError(f"sweep: {name!r} is not running")
    folder.ask_to_stop()
    print(f"Asked process {driver} to stop; running trials write a checkpoint first.")
