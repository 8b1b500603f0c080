"""`lclab space`: the axes of a preset, and what each of its designs costs."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.progress import track
from rich.table import Table

from lclab.commands.options import AsJson, Overrides, Preset
from lclab.console import make_console

if TYPE_CHECKING:
    from search_space.cost import Cost
    from search_space.design import Design
    from sweeps.config import SweepConfig

__all__ = ["space"]


def space(
    preset: Preset = "demo",
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Show the axes of a preset, their choices, and every design with its cost."""
    from sweeps.config import load

    config = load(preset, overrides or [])
    designs = list(config.space.members())
    log = make_console(stderr=True)
    watched = track(designs, "Pricing designs", console=log, transient=True, disable=not log.is_terminal)
    costs = [config.cost(design) for design in watched]
    if as_json:
        rows = [{"design": d.name, **asdict(c)} for d, c in zip(designs, costs, strict=True)]
        print(json.dumps({"axes": config.space.axes(), "baseline": config.baseline, "designs": rows}))
    else:
        console = make_console()
        console.print(_axes(config, designs))
        console.print(_costs(config, designs, costs))


def _axes(config: "SweepConfig", designs: "list[Design]") -> Table:
    from search_space.axes import AXES
    from search_space.design import Design

    listed = " (a list of designs)" if config.space.designs else ""
    table = Table("axis", "choices", "means something", title=f"Space of {config.name}{listed}", title_justify="left")
    base = config.model_size().resolve(Design.parse(config.baseline)).params()
    for axis in AXES:
        choices = list(dict.fromkeys(d.params()[axis.name] for d in designs if not axis.idle(d.params())))
        if axis.name != "control" and choices:
            texts = [f"base ({base[axis.name]})" if choice == "base" else str(choice) for choice in choices]
            table.add_row(axis.name, ", ".join(texts), axis.asked)
    return table


def _costs(config: "SweepConfig", designs: "list[Design]", costs: "list[Cost]") -> Table:
    from trainer.recipe import precision_of

    recipe = config.recipe
    table = Table("design", title=f"{len(designs)} designs, no two alike", title_justify="left", caption_justify="left")
    table.caption = (
        f"Of a training step of {recipe.pieces} x {recipe.piece} raw tokens, "
        f"{'interleaved' if recipe.continuation == 1 else 'reconstructed'}: training, and peak memory on a CPU in "
        f"{precision_of(recipe)}.\n"
        f"Of a context of {recipe.piece} raw tokens: prefill, and the decoder's key-value cache in bfloat16."
    )
    columns = [[f"[bold]{d.name} (baseline)[/]" if d.name == config.baseline else d.name for d in designs]]
    for header, values, unit, prefixes in (
        ("parameters", [c.parameters for c in costs], "", "kMBT"),
        ("training", [c.train_flops for c in costs], "FLOPs/token", "kMGT"),
        ("prefill", [c.prefill_flops for c in costs], "FLOPs/token", "kMGT"),
        ("KV cache", [c.kv_bytes for c in costs], "B/token", "kMGT"),
        ("memory", [c.memory for c in costs], "B", "kMGT"),
    ):
        prefix, texts = _scaled(values, prefixes)
        table.add_column(f"{header}\n{prefix}{unit}", justify="right")
        columns.append(texts)
    for row in zip(*columns, strict=True):
        table.add_row(*row)
    return table


def _scaled(values: Sequence[float], prefixes: str) -> tuple[str, list[str]]:
    """One prefix for all `values`, and their texts, with four digits for the largest."""
    power = next(p for p in range(len(prefixes), -1, -1) if max(values) >= 1000**p or p == 0)
    digits = next(d for d in (3, 2, 1, 0) if max(values) < 1000**power * 10 ** (4 - d) or d == 0)
    return f" {prefixes}"[power].strip(), [f"{value / 1000**power:.{digits}f}" for value in values]
