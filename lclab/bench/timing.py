"""How benchmarks measure: contestants take turns in one process, and ratios are what is reported.

Noise is handled so: time is the process's CPU time on one thread, so that others on the machine make a run wait but not
look slow; every round runs every contestant once, in an order of its own, so that a bad minute strikes all of them; the
first round warms up and is not counted; a time is the minimum over the rounds, and a ratio that of two minima. Beside
it stand the least and the greatest ratio of one round: where they lie far apart, the machine was not fit to measure on.
"""

import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Ratio", "Tick", "alternate", "ratio"]

Tick = Callable[[str], None]
"""Told what runs next."""


@dataclass(frozen=True)
class Ratio:
    """value: of the two minima. low, high: of the rounds."""

    value: float
    low: float
    high: float


def ratio(above: list[float], below: list[float]) -> Ratio:
    """How many times `below` fits in `above`, both seconds by round."""
    rounds = [a / b for a, b in zip(above, below, strict=True)]
    return Ratio(min(above) / min(below), min(rounds), max(rounds))


def alternate(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    tick: Tick,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Seconds by `clock` of each contestant in each round, after one round to warm up."""
    order, shuffle = list(contestants), random.Random(0).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        shuffle(order)
        gc.disable()  # a loop in Python makes enough objects to set it off
        try:
            for name in order:
                tick(f"{name}, " + (f"round {number} of {rounds}" if number else "warming up"))
                start = clock()
                contestants[name]()
                seconds[name].append(clock() - start)
        finally:
            gc.enable()
    return {name: times[1:] for name, times in seconds.items()}
