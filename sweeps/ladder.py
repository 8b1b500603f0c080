"""The ladder of a sweep: its best designs and its baseline, at several sizes and token budgets, with seeds.

Every level is an ordinary sweep over these designs alone, in the same home under the name SWEEP.ladder-FACTOR. So what
holds of sweeps holds of levels: none is lost, each has its report and its experiment in MLflow, and running again is
continuing. Running again with more seeds or other sizes adds them; other designs want a ladder by another name, as
Optuna lets no study have more choices than it began with. Which levels there are stands in `ladder.json`, in the
sweep's folder: those of the ladder that was run last.

A level of factor f has f times the width, heads and feed-forward of both transformers and f squared times the steps,
so that tokens grow with the weights of the layers (Hoffmann et al. 2022, arXiv 2203.15556); learning rates follow by
the recipe's own scaling rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from json import loads
from math import gcd, inf

from analysis import analyse
from analysis.ladder import FEWEST_LEVELS, Level
from analysis.table import load as load_table
from search_space.axes.base import BASE
from search_space.design import Design
from search_space.errors import UsageError
from search_space.files import write_json, write_text
from search_space.space import Space
from search_space.transformer import Shape
from sweeps.config import Limits, SweepConfig, load
from sweeps.home import Home

__all__ = ["SIZES", "LadderPlan", "levels_of", "note_levels", "plan_ladder", "read_levels"]

SIZES = (0.5, 1.0, 2.0)
_FILE = "ladder.json"


@dataclass(frozen=True)
class LadderPlan:
    """designs: the baseline first. levels: sweeps to run, the smallest first."""

    designs: list[str]
    levels: list[SweepConfig]


def plan_ladder(
    home: Home,
    sweep: str,
    top: int = 2,
    seeds: int = 3,
    sizes: Sequence[float] = SIZES,
    designs: Sequence[str] = (),
    name: str = "ladder",
) -> LadderPlan:
    """The levels for the `top` designs of a sweep, or for `designs`, and its baseline. Nothing is written.

    name: of the ladder. A level that was begun keeps the designs and seeds that it has.
    Raises `UsageError` for a sweep that has nothing to choose from, settings that cannot be, and designs that a level
    was begun without.
    """
    if len(set(sizes)) < FEWEST_LEVELS or not all(0 < factor < inf for factor in sizes):
        raise UsageError(f"sizes: {list(sizes)} are not {FEWEST_LEVELS} or more different factors above 0")
    if seeds < 2:
        raise UsageError(f"seeds: {seeds} is not at least 2, and one seed tells nothing of the noise")
    folder = home.existing(sweep)
    config = load(str(folder.config))
    chosen = _chosen(home, sweep, top, designs, config.baseline)
    for design in map(Design.parse, chosen):
        if (design.encoder, design.decoder) != (BASE, BASE):
            raise UsageError(
                f"designs: {design.name} has a shape of its own, which no level could make larger or smaller"
            )
    levels = [_level(config, f"{sweep}.{name}-{factor:g}", factor, chosen, seeds) for factor in sorted(set(sizes))]
    return LadderPlan(chosen, [_gone_on(home, level) for level in levels])


def levels_of(home: Home, sweep: str) -> list[str]:
    """Names of the sweeps that are the ladder's levels; none where there is no ladder."""
    file = home.existing(sweep).path / _FILE
    return list(loads(file.read_text())["levels"]) if file.exists() else []


def note_levels(home: Home, sweep: str, plan: LadderPlan) -> None:
    """Keep which levels there are, beside others of this ladder, and that all read the sweep's own text."""
    corpus = home.existing(sweep).corpus.read_text()
    for level in plan.levels:
        folder = home.sweep(level.name)
        if not folder.corpus.exists():
            folder.path.mkdir(exist_ok=True)
            write_text(folder.corpus, corpus)
    own = plan.levels[0].name.rpartition("-")[0]
    before = [name for name in levels_of(home, sweep) if name.rpartition("-")[0] == own]
    names = dict.fromkeys([*before, *(level.name for level in plan.levels)])
    write_json(home.existing(sweep).path / _FILE, {"levels": list(names)})


def read_levels(home: Home, sweep: str) -> list[Level]:
    """The levels that have a table."""
    found = []
    for name in levels_of(home, sweep):
        folder = home.sweep(name)
        if not folder.table.exists():
            continue
        frame = load_table(folder.table)
        baseline = load(str(folder.config)).baseline
        own = frame.loc[frame["design"] == baseline, "parameters"]
        if len(own):
            found.append(Level(name, int(own.iloc[0]), frame))
    return found


def _chosen(home: Home, sweep: str, top: int, designs: Sequence[str], baseline: str) -> list[str]:
    frame = load_table(home.existing(sweep).table)
    known = set(frame.loc[frame["role"].isin(["baseline", "arm"]), "design"])
    if unknown := [name for name in designs if name not in known]:
        raise UsageError(f"designs: {unknown[0]} is not one of the sweep's: {', '.join(sorted(known))}")
    if designs:
        return list(dict.fromkeys([baseline, *designs]))
    rows = [row for row in analyse(frame).rows if row.role == "arm" and "infeasible" not in row.state and row.rung]
    if top < 1 or not rows:
        why = f"{top} is not at least 1" if top < 1 else f"sweep {sweep!r} has no arm that reached a rung"
        raise UsageError(f"top: {why}")
    return [baseline, *(row.design for row in rows[:top])]


def _gone_on(home: Home, level: SweepConfig) -> SweepConfig:
    """With the designs, and at least the seeds, that the level was begun with."""
    if level.name not in home.sweeps():
        return level
    begun = load(str(home.sweep(level.name).config))
    designs, seeds = begun.space.designs, max(begun.seeds, level.seeds)
    if more := [name for name in level.space.designs if name not in designs]:
        raise UsageError(
            f"designs: {level.name} was begun without {more[0]}, with {', '.join(designs)}; go on with these by "
            "--design, or begin another ladder with --name"
        )
    return replace(
        level, seeds=seeds, replicates=seeds, trials=seeds * len(designs), space=replace(level.space, designs=designs)
    )


def _level(config: SweepConfig, name: str, factor: float, designs: list[str], seeds: int) -> SweepConfig:
    size = replace(
        config.size, encoder=_scaled(config.size.encoder, factor), decoder=_scaled(config.size.decoder, factor)
    )
    steps = max(len(config.recipe.rungs), round(config.recipe.steps * factor**2))
    level = replace(
        config,
        name=name,
        seeds=seeds,
        replicates=seeds,
        trials=seeds * len(designs),
        controls=[],
        ablations=False,
        sampler="grid",
        pruner="none",
        rates=[],
        objectives=["loss"],
        limits=Limits(),
        space=Space(designs=designs),
        size=size,
        recipe=replace(config.recipe, steps=steps),
    )
    level.check()
    return level


def _scaled(shape: Shape, factor: float) -> Shape:
    """Wider by `factor`, with heads of the same width, whose number stays a multiple of that of key-value heads."""
    kv = max(1, round(shape.kv_heads * factor))
    heads = max(1, round(shape.heads * factor))
    while gcd(heads, kv) < kv:
        kv -= 1
    width, inner = (max(8, round(field * factor / 8) * 8) for field in (shape.width, shape.feedforward))
    return replace(shape, width=width, feedforward=inner, heads=heads, kv_heads=kv)
