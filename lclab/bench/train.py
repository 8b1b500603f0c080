"""What `lclab bench train` measures: a training step against the plain loop and the matmul floor, the loader against
the need, and Lightning against a bare loop.

Everything runs in one process on the steps of one recipe, at the last span of its curriculum, in its own precision, on
one CPU thread or on a GPU. A step is forward, backward, clipping, optimizer and schedule, on batches laid out before.

- `stepping`: raw tokens per second; the same training in the published loop (see `published`), both with positions
  consecutive and no phase embeddings, which is all that loop knows, and ours laying out its batches within the time;
  and the matmul floor, the time of the step's model FLOPs (padding counts) at the rate of its largest matrix products,
  taken alone in its precision. Floor over step is what is called MFU on a GPU, but of the rate that matrix products
  reach and not of the one in the data sheet. No GPU has been measured yet.
- `loading`: batches per second of the trainer's loader with nobody using them.
- `lightning`: the trainer's steps in Lightning's loop, and between them the same steps on the same batches in a bare
  loop, twice, in turns. What the second bare loop takes over the first one is noise.

Time per axis is what `lclab bench model` measures.
"""

import random
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch.utils.data import DataLoader

from lclab.bench import published
from lclab.bench.loop import SEED, Loop, Work, clock_of
from lclab.bench.timing import Ratio, Tick, alternate, ratio
from search_space.axes.adapter import ADAPTERS
from search_space.axes.base import BASE
from search_space.cost import forward_flops
from search_space.design import Design
from search_space.layout import Batch, lay_out
from search_space.loss import CHUNK_BYTES, chunk_positions
from trainer.clock import Clock
from trainer.module import CompressorModule
from trainer.parallel import Parallel
from trainer.patient import Patient
from trainer.pretrain import fit, make_trainer
from trainer.recipe import precision_of
from trainer.trial import TrialSpec

__all__ = ["Floor", "Lightning", "Loader", "Plain", "Stepping", "lightning", "loading", "stepping"]

_THERE_AND_BACK = 3  # a backward pass costs two forward passes
_FILL = 8  # batches, until those that were made ahead are used up
_BATCHES = 8  # times the steps of a round: what is loaded in one


@dataclass(frozen=True)
class Plain:
    """Seconds of a step in the published loop and of the same in ours, and their ratio; loss: nats per scored token,
    mean over the steps of the first round, of the published loop and of ours."""

    published: float
    ours: float
    faster: Ratio
    loss: tuple[float, float]


@dataclass(frozen=True)
class Floor:
    """flops: of a step's matrix products. rate: FLOPs per second of the fastest of its largest ones alone, of `shape`
    (positions, inputs, outputs). share: of the step's time that its FLOPs take at that rate."""

    flops: float
    rate: float
    shape: tuple[int, int, int]
    share: Ratio


@dataclass(frozen=True)
class Stepping:
    """seconds: of a step. tokens: raw, per second. plain: None where the published loop does not know the design."""

    seconds: float
    tokens: float
    plain: Plain | None
    floor: Floor


@dataclass(frozen=True)
class Loader:
    """workers: processes; 0 is a thread. batches: per second of wall time. faster: than steps need them."""

    workers: int
    batches: float
    faster: Ratio


@dataclass(frozen=True)
class Lightning:
    """Seconds of a step in Lightning's loop and in a bare one, medians. ratio: median of the steps' ratios; noise: the
    same of the bare loop to itself. loss: nats per scored token over all steps, in either."""

    seconds: float
    bare: float
    ratio: Ratio
    noise: Ratio
    loss: tuple[float, float]


def stepping(work: Work, tick: Tick) -> Stepping:
    """A step against the published loop and against the floor."""
    loop, batches = Loop(work, work.design, work.size), work.batches(work.steps)
    pair = _Pair(work) if _published_knows(work.design) else None
    flops = _THERE_AND_BACK * sum(forward_flops(work.design, work.size, batch) for batch in batches)
    products = {shape: _product(work, shape, flops) for shape in _shapes(work, batches[0])}
    contestants: dict[str, Callable[[], object]] = {"our steps": lambda: [loop.ours(batch) for batch in batches]}
    contestants |= {_named(shape): product for shape, (product, _) in products.items()}
    contestants |= pair.runs if pair else {}
    seconds = alternate(contestants, work.rounds, tick, clock_of(work.device))

    ours = seconds["our steps"]
    at_rate = {shape: [t * flops / done for t in seconds[_named(shape)]] for shape, (_, done) in products.items()}
    shape = min(at_rate, key=lambda s: min(at_rate[s]))
    rate = flops / min(at_rate[shape])
    floor = Floor(flops / work.steps, rate, shape, ratio(at_rate[shape], ours))
    tokens = work.samples().raw_tokens(work.steps)
    return Stepping(min(ours) / work.steps, tokens / min(ours), pair.result(seconds) if pair else None, floor)


class _Pair:
    """The published loop and ours, at what both of them know and from equal weights."""

    def __init__(self, work: Work) -> None:
        design, specials = work.design.but(positions=BASE), work.corpus.specials
        size, samples = replace(work.size, positions="consecutive", phase_std=0.0), work.samples()
        self._steps = [samples(i) for i in range(work.steps)]
        items = [[published.load([sample], design, specials) for sample in step] for step in self._steps]
        slow, fast = Loop(work, design, size), Loop(work, design, size)

        def theirs() -> None:
            with work.device:
                for step in items:
                    slow(lambda model, step=step: published.loss(model, step, specials))

        def ours() -> None:
            for step in self._steps:
                batch = lay_out(step, design, specials, size.positions)
                fast.ours(move_data_to_device(batch, work.device))

        self._loops = slow, fast
        self.runs: dict[str, Callable[[], object]] = {"published loop": theirs, "ours beside it": ours}

    def result(self, seconds: dict[str, list[float]]) -> Plain:
        steps = len(self._steps)
        slow, fast = (seconds[name] for name in self.runs)
        losses = [loop.loss(0, steps) for loop in self._loops]
        return Plain(min(slow) / steps, min(fast) / steps, ratio(slow, fast), (losses[0], losses[1]))


def loading(work: Work, tick: Tick) -> list[Loader]:
    """The loader in a thread and with a worker process, wall time against wall time."""
    loop, batches = Loop(work, work.design, work.size), work.batches(work.steps)
    step: list[float] = []
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for number in range(work.rounds + 1):
        tick(f"loader, round {number} of {work.rounds}")
        start = time.perf_counter()
        for batch in batches:
            loop.ours(batch)
        float(loop.losses[-1])  # a GPU has then done it
        step.append((time.perf_counter() - start) / work.steps)
        for workers, rounds in seconds.items():
            rounds.append(_load(work, workers))
    return [Loader(w, 1 / min(times[1:]), ratio(step[1:], times[1:])) for w, times in seconds.items()]


def _load(work: Work, workers: int) -> float:
    """Seconds of a batch."""
    number = _BATCHES * work.steps
    loader = DataLoader(work.microbatches(), batch_size=None, num_workers=workers)
    with closing(Patient(loader, seconds=600)) as patient:
        source = iter(patient)
        for _ in range(_FILL):
            next(source)
        start = time.perf_counter()
        for _ in range(number):
            next(source)
        return (time.perf_counter() - start) / number


def lightning(work: Work, tick: Tick) -> Lightning:
    """Lightning and the bare loop step by step, so that the same minute strikes both."""
    clock_now, shuffle, batches = clock_of(work.device), random.Random(SEED).shuffle, work.batches(work.total)
    loops = {name: Loop(work, work.design, work.size) for name in ("bare", "again")}
    taken: dict[str, list[float]] = {name: [] for name in ("lightning", *loops)}
    order, since = list(loops), clock_now()

    def between(step: int, tokens: int) -> bool:
        nonlocal since
        taken["lightning"].append(clock_now() - since)
        tick(f"Lightning and a bare loop, step {step} of {work.total}")
        shuffle(order)
        for name in order:
            start = clock_now()
            loops[name].ours(batches[step - 1])
            taken[name].append(clock_now() - start)
        since = clock_now()
        return True

    recipe = work.measured()
    spec = TrialSpec(work.design, work.size, recipe, SEED, str(work.corpus.folder))
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock(spec, work.samples(), Path(folder), 1, between)
        module = CompressorModule(work.design, work.size, recipe, SEED)
        made: Any = batches  # by the bare loop's hand, so that both are given the same
        fit(make_trainer(recipe, clock, Parallel(), None), module, clock, lambda _: DataLoader(made, batch_size=None))
    ours, bare, again = (times[work.steps :] for times in taken.values())
    losses = clock.curve[-1][1], loops["bare"].loss(0)
    return Lightning(
        median(ours), median(bare), _paired(ours, bare, work.steps), _paired(again, bare, work.steps), losses
    )


def _paired(above: list[float], below: list[float], steps: int) -> Ratio:
    """The median over all steps, and the least and the greatest of a round: an overhead of a few per cent is less than
    what the fastest rounds differ by on a busy machine."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    rounds = [median(ratios[i : i + steps]) for i in range(0, len(ratios), steps)]
    return Ratio(median(ratios), min(rounds), max(rounds))


def _published_knows(design: Design) -> bool:
    plain = design.pooling in ("mean", "concat", "eos") and not ADAPTERS[design.adapter].attention
    return plain and design.control == "none"


def _shapes(work: Work, batch: Batch) -> set[tuple[int, int, int]]:
    """Positions, inputs and outputs of the largest matrix products: feed-forward layers, and a chunk of the head."""
    size = work.size.of(work.design)
    scored = min(len(batch.target_P), chunk_positions(size.vocab, CHUNK_BYTES))
    shapes = {(scored, size.decoder.width, size.vocab)}
    shapes.add((batch.token_RT.numel(), size.decoder.width, size.decoder.feedforward))
    if batch.encoder is not None and size.encoder.layers:
        shapes.add((batch.encoder.token_RT.numel(), size.encoder.width, size.encoder.feedforward))
    return shapes


def _product(work: Work, shape: tuple[int, int, int], flops: float) -> tuple[Callable[[], None], float]:
    """A matrix product as a linear layer has it, repeated to about `flops`, and its FLOPs."""
    positions, inputs, outputs = shape
    kind = torch.bfloat16 if precision_of(work.recipe) == "bf16-mixed" else torch.float32
    make = partial(torch.randn, device=work.device, dtype=kind)
    x_PI, weight_OI, y_PO = make(positions, inputs), make(outputs, inputs), make(positions, outputs)
    once = 2 * positions * inputs * outputs
    times = max(1, round(flops / once))

    def run() -> None:
        for _ in range(times):
            torch.mm(x_PI, weight_OI.t(), out=y_PO)

    return run, float(once * times)


def _named(shape: tuple[int, int, int]) -> str:
    return "products of " + " x ".join(map(str, shape))
