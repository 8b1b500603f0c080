"""Numbers as people read them. One place, so that sentences, tables and plots agree."""

from collections.abc import Sequence
from itertools import pairwise

__all__ = [
    *("DASH", "METRIC_NAMES", "MINUS"),
    *("count", "interval", "joined", "large", "number", "p_value", "percent", "signed", "span", "stretches"),
]

DASH = "\N{EN DASH}"  # no value
MINUS = "\N{MINUS SIGN}"
METRIC_NAMES = {"parallel": "parallel reconstruction", "reconstruct": "reconstruction", "continue": "next-token"}


def number(value: float | None) -> str:
    """A loss: three decimals, or two significant digits where it is small. None and NaN are a dash."""
    if value is None or value != value:
        return DASH
    text = f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2g}"
    return text.replace("-", MINUS)


def signed(value: float | None) -> str:
    text = number(value)
    return f"+{text}" if value is not None and value > 0 else text


def interval(low: float | None, high: float | None) -> str:
    return DASH if low is None or high is None else f"{signed(low)} to {signed(high)}"


def p_value(p: float | None) -> str:
    if p is None:
        return DASH
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def percent(share: float | None) -> str:
    if share is None:
        return DASH
    text = f"{share:.0%}" if abs(share) >= 0.1 or share == 0 else f"{100 * share:.2g}%"
    return text.replace("-", MINUS)


def large(value: float | None) -> str:
    """Three digits and a unit: 950, 1.25M, 3.4T."""
    if value is None or value != value:
        return DASH
    units = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    for size, unit in units:
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def span(seconds: float | None) -> str:
    """A duration: 48 s, 3 min 20 s, 2 h 05 min."""
    if seconds is None or seconds != seconds:
        return DASH
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def joined(parts: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def stretches(firsts: Sequence[int]) -> list[str]:
    """Where each begins and ends, the last having no end: 0; 1 to 3; 4 on."""
    ends = [f"{DASH}{after - 1}" if after - 1 > first else "" for first, after in pairwise(firsts)]
    return [f"{first}{end}" for first, end in zip(firsts, [*ends, "+"], strict=True)]
