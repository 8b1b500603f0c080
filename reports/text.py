"""The table of designs as plain strings, for the terminal and for Markdown."""

from analysis import Analysis, Row
from analysis.words import DASH, interval, large, number, p_value, signed, span

__all__ = ["HEADERS", "LOSSES", "cells", "markdown", "table"]

LOSSES = {"parallel": "parallel", "reconstruct": "reconstruct", "continue": "next token"}
HEADERS = [
    "design", "verdict", "seeds", "rung", *LOSSES.values(), "difference", "95% interval",
    "p (Holm)", "seeds needed", "time", "tokens/s", "parameters", "train FLOPs/token", "prefill FLOPs/token", "state",
]  # fmt: skip


def table(analysis: Analysis) -> tuple[list[str], list[list[str]]]:
    """Headers and rows, best first, controls last. Losses and differences in nats per token; time is per trial."""
    return list(HEADERS), [cells(row) for row in analysis.rows]


def markdown(analysis: Analysis) -> str:
    """The sentences and the table, ready for a pull request."""
    headers, rows = table(analysis)
    lines = [headers, ["---"] * len(headers), *([_escaped(cell) for cell in row] for row in rows)]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([f"**{analysis.learnt}**", *analysis.statements, body]) + "\n"


def cells(row: Row) -> list[str]:
    """One row of the table, in the order of `HEADERS`."""
    effect = row.effect
    return [
        row.design,
        row.verdict,
        str(row.seeds),
        str(row.rung or DASH),
        *(number(row.losses[metric]) for metric in LOSSES),
        signed(effect.difference) if effect else DASH,
        interval(effect.low, effect.high) if effect else DASH,
        p_value(effect.p_adjusted) if effect else DASH,
        f"{effect.seeds_needed:,}" if effect and effect.seeds_needed else DASH,
        span(row.seconds),
        large(row.tokens_per_second),
        large(row.parameters),
        large(row.train_flops_per_token),
        large(row.prefill_flops_per_token),
        row.state,
    ]


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("<", "&lt;")
