"""Tables with a row per design or per trial."""

from itertools import groupby

import pandas as pd

from analysis import Analysis, Effect, Row
from analysis.gains import CONTROLS
from analysis.table import DISTANCES, METRICS, latest
from analysis.words import DASH, span, stretches
from reports.about import About
from reports.grid import Cell, Column, Grid, Line, between, heading, loss, p, size, verdict, word

__all__ = ["LOSSES", "UNSUCCESSFUL", "designs", "distance", "each_trial", "failures", "gains"]

LOSSES = {"parallel": "parallel", "reconstruct": "reconstruct", "continue": "next token"}
GAINS = {"blind": "gain, blind", "uncompressed": "gap, raw", "encoderless": "gap, encoderless"}
UNSUCCESSFUL = ("failed", "infeasible")


def designs(analysis: Analysis, trials: pd.DataFrame | None = None, about: About | None = None) -> Grid:
    """Best first, controls last. Losses and differences in nats per token; time is per trial.

    With trials that know their MLflow runs, the last column leads there, by seed.
    """
    columns = heading(
        "design", "verdict", "seeds", "rung", *LOSSES.values(), "difference", "95% interval", "p (Holm)",
        "seeds needed", "time", "tokens/s", "parameters", "train FLOPs/token", "prefill FLOPs/token", "state",
        words=("verdict", "state", "MLflow, by seed"),
    )  # fmt: skip
    runs = _runs(trials, about) if trials is not None and about else {}
    if runs:
        columns += (Column("MLflow, by seed", numeric=False),)
    lines = (
        Line(_cells(row) + ((Cell("", row.design, links=runs.get(row.design, ())),) if runs else ()), row.role)
        for row in analysis.rows
    )
    return Grid("designs", columns, tuple(lines))


def _runs(trials: pd.DataFrame, about: About) -> dict[str, tuple[tuple[str, str], ...]]:
    known = latest(trials[trials["role"] != "rate"]).dropna(subset=["mlflow_run"]).sort_values(["design", "seed"])
    rows = zip(known["design"], known["seed"], known["mlflow_run"], strict=True)
    return {
        design: tuple((str(seed), about.run(run)) for _, seed, run in group)
        for design, group in groupby(rows, key=lambda row: row[0])
    }


def _cells(row: Row) -> tuple[Cell, ...]:
    effect = row.effect or Effect(row.design, row.role)
    needed = effect.seeds_needed
    return (
        word(row.design),
        verdict(row.verdict, effect.reason or ""),
        Cell(str(row.seeds), row.seeds),
        Cell(str(row.rung or DASH), row.rung or None),
        *(loss(row.losses[metric]) for metric in LOSSES),
        loss(effect.difference, sign=True),
        between(effect.low, effect.high),
        p(effect.p_adjusted),
        Cell(f"{needed:,}" if needed else DASH, needed),
        Cell(span(row.seconds), row.seconds),
        *map(size, (row.tokens_per_second, row.parameters, row.train_flops_per_token, row.prefill_flops_per_token)),
        word(row.state),
    )


def gains(analysis: Analysis) -> Grid:
    """Designs against the controls of each kind, by each loss. Empty where nothing can be said."""
    columns = (Column("design", numeric=False), *(Column(name) for _ in METRICS for name in GAINS.values()))
    known = {(gain.design, gain.metric, gain.control): gain for gain in analysis.gains}
    lines = []
    for design in dict.fromkeys(gain.design for gain in analysis.gains):
        cells = [word(design)]
        for gain in (known[design, metric, control] for metric in METRICS for control in CONTROLS):
            below = "" if gain.low is None else between(gain.low, gain.high).text
            missing = Cell("", None, below="cannot be said", title=gain.reason or "")
            said = Cell(loss(gain.value, sign=True).text, gain.value, below, title=gain.reason or "")
            cells.append(missing if gain.value is None else said)
        lines.append(Line(tuple(cells), "baseline" if design == analysis.comparison.baseline else ""))
    said = any(gain.value is not None for gain in analysis.gains)
    groups = (("", 1), *((name, len(GAINS)) for name in LOSSES.values()))
    return Grid("gains", columns, tuple(lines) if said else (), groups)


def distance(analysis: Analysis) -> Grid:
    """Next-token loss in every stretch behind the span that anything was scored in."""
    scored = [any(profile.losses[i] is not None for profile in analysis.profiles) for i in range(len(DISTANCES))]
    names = [name for name, any_ in zip(stretches(DISTANCES), scored, strict=True) if any_]
    lines = (
        Line(
            (
                word(profile.design),
                Cell(str(profile.rung), profile.rung),
                *(loss(value) for value, any_ in zip(profile.losses, scored, strict=True) if any_),
            ),
            profile.role,
        )
        for profile in analysis.profiles
    )
    return Grid("distance", heading("design", "rung", *names), tuple(lines) if names else ())


def failures(trials: pd.DataFrame) -> Grid:
    """Trials that ended without a result, and why."""
    last = latest(trials[["trial", "design", "seed", "state", "reason", "rung"]])
    rows = last[last["state"].isin(UNSUCCESSFUL)].fillna({"reason": "no reason recorded"}).to_dict("records")
    lines = (
        Line((_count(row["trial"]), word(row["design"], "name"), _count(row["seed"]), word(row["state"]),
              word(row["reason"], "reason")))
        for row in rows
    )  # fmt: skip
    return Grid("failures", heading("trial", "design", "seed", "state", "reason", words=_TEXTS), tuple(lines))


def each_trial(trials: pd.DataFrame, metric: str, about: About) -> Grid:
    """Every trial at its largest rung: held-out loss in nats per token, and the time it took so far."""
    needed = ["trial", "design", "role", "rate", "seed", "state", "reason", "rung", metric, "seconds", "mlflow_run"]
    last = latest(trials[needed])
    linked, factors = bool(last["mlflow_run"].notna().any()), bool((last["rate"] != 1).any())
    names = [*("trial", "design", "role"), *(["rate"] if factors else []), *("seed", "state", "rung", "loss", "time")]
    names += ["MLflow run"] if linked else []
    lines = []
    for row in last.to_dict("records"):
        run = _text(row["mlflow_run"])
        cells = {
            "trial": _count(row["trial"]),
            "design": word(row["design"], "name"),
            "role": word(row["role"]),
            "rate": Cell(f"x{row['rate']:g}", row["rate"]),
            "seed": _count(row["seed"]),
            "state": word(row["state"], title=_text(row["reason"])),
            "rung": Cell(str(row["rung"] or DASH), row["rung"] or None),
            "loss": loss(_known(row[metric])),
            "time": Cell(span(row["seconds"]), _known(row["seconds"])),
            "MLflow run": Cell("" if run else DASH, run or None, links=((run[:8], about.run(run)),) if run else ()),
        }
        lines.append(Line(tuple(cells[name] for name in names), row["role"]))
    return Grid("trials", heading(*names, words=_TEXTS), tuple(lines))


_TEXTS = ("design", "role", "state", "reason", "MLflow run")


def _count(number: int) -> Cell:
    return Cell(str(number), number)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _known(value: float) -> float | None:
    return value if value == value else None
