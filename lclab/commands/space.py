"""`lclab space`: the axes of a preset, and what each of its designs costs."""

import json
from dataclasses import asdict

from rich.table import Table

from lclab.commands.options import AsJson, Overrides, Preset
from lclab.console import make_console

__all__ = ["space"]


def space(
    preset: Preset = "demo",
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Show the axes of a preset, their choices, and every design with its cost."""
    from search_space.cost import cost
    from sweeps.config import load

    config = load(preset, overrides or [])
    designs = list(config.space.designs())
    costs = [cost(d, config.size, config.recipe.piece) for d in designs]
    if as_json:
        rows = [{"design": d.name, **asdict(c)} for d, c in zip(designs, costs, strict=True)]
        print(json.dumps({"axes": config.space.axes(), "baseline": config.baseline, "designs": rows}))
        return
    console = make_console()
    axes = Table("axis", "choices", "asked for", title=f"Space of {config.name}", title_justify="left")
    when = {"overlap": "where window > ratio", "depth": "with an attention adapter"}
    for axis, choices in config.space.axes().items():
        axes.add_row(axis, ", ".join(map(str, choices)), when.get(axis, "always"))
    console.print(axes)
    table = Table("design", title=f"{len(designs)} designs, no two alike", title_justify="left")
    for header in ("parameters", "training MFLOPs/token", "prefill MFLOPs/token"):
        table.add_column(header, justify="right")
    for design, c in zip(designs, costs, strict=True):
        name = f"[bold]{design.name} (baseline)[/]" if design.name == config.baseline else design.name
        table.add_row(name, f"{c.parameters:,}", f"{c.train_flops / 1e6:.2f}", f"{c.prefill_flops / 1e6:.2f}")
    console.print(table)
