"""What `lclab bench model` measures: the vectorised path against the published loop, and what each axis costs.

Everything runs on the CPU in float32 on one thread (`timing` says how), forward and backward, on documents of
log-normal length that are each compressed as one span and reconstructed.

- `pool` is the pooling step alone, on hidden states of full windows that are there already.
- `encode` is encoder, pooling and adapter; `step` the whole training step up to the gradients. The vectorised side
  starts from the samples and pays for all of `lay_out`, in `encode` too; the published side (see `published`) starts
  from what its loader would have prepared. The published code has two kinds of batch item, and both are measured: one
  sample, and a packed row, here of all samples.
- axes: the step of every design one change away from a baseline, as a multiple of the baseline's step, beside the
  ratios of FLOPs and of parameters that `search_space.cost` predicts. The baseline runs twice: where its second ratio
  is off 1, the machine was not quiet.

Shapes: R rows, T positions of a row, D width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lclab.bench import published
from lclab.bench.timing import Ratio, Tick, alternate, ratio
from search_space.axes import AXES
from search_space.axes.adapter import ADAPTERS
from search_space.axes.axis import Choice
from search_space.axes.pooling import POOLINGS
from search_space.compressor import Compressor, Size
from search_space.cost import forward_flops, parameters
from search_space.design import Design
from search_space.errors import UsageError
from search_space.layout import Sample, Specials, lay_out
from search_space.space import Space
from search_space.transformer import Shape

__all__ = ["WINDOWS", "AxisCost", "Speedup", "Workload", "axis_costs", "pooling", "speedups"]

WINDOWS = (16, 256, 1024)
_TEXT = 500  # ids below are text, the special tokens stand behind them
_SPECIALS = Specials(*range(_TEXT, _TEXT + 5))
_BASELINE = Design(window=256)
_MEDIAN, _SIGMA = 700, 0.8  # of document lengths, in tokens, and of their logarithm


@dataclass(frozen=True)
class Workload:
    """What is measured on.

    documents: in a step. layers, width: of encoder and decoder, with heads of 32 and twice the width between.
    pool_width: of the hidden states for the pooling step alone. rounds: counted runs of everything.
    Raises `UsageError` for a size below 1.
    """

    documents: int = 9
    layers: int = 2
    width: int = 128
    pool_width: int = 1024
    rounds: int = 3

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise UsageError(f"{name.replace('_', '-')}: {value} is not at least 1")

    def size(self) -> Size:
        """As published: positions consecutive, no phase embeddings."""
        shape = Shape(self.layers, self.width, -(-self.width // 32), -(-self.width // 32), 32, 2 * self.width)
        return Size(_TEXT + 5, shape, shape, positions="consecutive", phase_std=0.0)

    def samples(self) -> list[Sample]:
        """Documents at evenly spaced quantiles of their distribution, in a fixed random order."""
        rng, normal = np.random.default_rng(0), NormalDist(np.log(_MEDIAN), _SIGMA)
        lengths = [round(np.exp(normal.inv_cdf((i + 0.5) / self.documents))) for i in range(self.documents)]
        order = rng.permutation(self.documents)
        return [Sample(rng.integers(0, _TEXT, lengths[i]), (), "reconstruct", int(i)) for i in order]


@dataclass(frozen=True)
class Speedup:
    """Seconds of the published loop and of the vectorised path, and the ratio of the two.

    part: `pool`, `encode` or `step`. item: the published batch item, `sample` or `row`; empty for `pool`.
    """

    part: str
    window: int
    item: str
    published: float
    vectorised: float
    ratio: Ratio


@dataclass(frozen=True)
class AxisCost:
    """A training step of `design` in seconds, and time, FLOPs and parameters as multiples of the baseline's."""

    design: str
    change: str
    seconds: float
    time: Ratio
    flops: float
    parameters: float


def speedups(work: Workload, tick: Tick) -> Iterator[Speedup]:
    """The published loop against the vectorised path, for `mean` pooling at each of `WINDOWS`."""
    for window in WINDOWS:
        yield pooling(window, 4 * WINDOWS[-1], work, tick)
        model, samples = Compressor(Design(window=window), work.size()), work.samples()
        items = {"sample": [[sample] for sample in samples], "row": [samples]}
        runs = {"encode": partial(_encode, model, samples), "step": partial(_step, model, samples)}
        for kind, grouped in items.items():
            loaded = [published.load(group, model.design, _SPECIALS) for group in grouped]
            runs[f"encode {kind}"] = partial(_published_encode, model, loaded)
            runs[f"step {kind}"] = partial(published.loss, model, loaded, _SPECIALS)
        seconds = _measure(f"W={window}", runs, list(model.parameters()), work, tick)
        for part in ("encode", "step"):
            for kind in items:
                slow, fast = seconds[f"{part} {kind}"], seconds[part]
                yield Speedup(part, window, kind, min(slow), min(fast), ratio(slow, fast))


def pooling(window: int, tokens: int, work: Workload, tick: Tick) -> Speedup:
    """`mean` pooling alone over `tokens` hidden states, whose number is a multiple of the window."""
    design, text = Design(window=window), np.zeros(tokens, np.int64)
    inputs = lay_out([Sample(text, (), "reconstruct", 0)], design, _SPECIALS, "consecutive").encoder
    assert inputs is not None and inputs.rows.alone
    windows = published.cut([text.tolist()], design, _SPECIALS)
    hidden_RTD = torch.randn(*inputs.token_RT.shape, work.pool_width, requires_grad=True)
    pool = POOLINGS[design.pooling](work.pool_width, design.ratio)
    runs: dict[str, Callable[[], Tensor]] = {
        "vectorised": lambda: pool(hidden_RTD.flatten(0, 1), inputs.blocks),
        "published": lambda: published.pool(hidden_RTD, windows, design),
    }
    seconds = _measure(f"pooling at W={window}", runs, [hidden_RTD], work, tick)
    slow, fast = seconds["published"], seconds["vectorised"]
    return Speedup("pool", window, "", min(slow), min(fast), ratio(slow, fast))


def axis_costs(work: Workload, tick: Tick) -> Iterator[AxisCost]:
    """What each change to the baseline costs: many designs, close together, so fewer documents and more rounds."""
    work = replace(work, documents=-(-work.documents // 3), rounds=2 * work.rounds)
    size, samples = work.size(), work.samples()
    designs = {"baseline": _BASELINE, "baseline again": _BASELINE} | {_change(d): d for d in _neighbours(size, work)}
    models = {change: Compressor(design, size) for change, design in designs.items()}
    runs = {change: partial(_step, model, samples) for change, model in models.items()}
    weights = [weight for model in models.values() for weight in model.parameters()]
    seconds = _measure("axes", runs, weights, work, tick)

    def predicted(design: Design) -> tuple[float, int]:
        batch = lay_out(samples, design, _SPECIALS, size.of(design).positions)
        return forward_flops(design, size, batch), parameters(design, size)

    base_flops, base_parameters = predicted(_BASELINE)
    for change, design in designs.items():
        flops, count = predicted(design)
        taken, relative = min(seconds[change]), ratio(seconds[change], seconds["baseline"])
        yield AxisCost(design.name, change, taken, relative, flops / base_flops, count / base_parameters)


def _neighbours(size: Size, work: Workload) -> list[Design]:
    """One change away from the baseline, and the depth of those that have one; no two alike at this size."""
    twice = f"l{2 * work.layers}"
    choices: dict[str, Any] = {"ratio": [8, 16, 32], "window": list(WINDOWS), "overlap": [0, 64]}
    choices |= {"encoder": ["base", twice], "decoder": ["base", twice]}
    choices |= {axis.name: list(axis.choices()) for axis in AXES if isinstance(axis, Choice)}
    controls = choices.pop("control")
    found = Space(**choices).neighbours(_BASELINE) + [_BASELINE.but(control=control) for control in controls]
    found += [design.but(depth=2) for design in found if ADAPTERS[design.adapter].attention]
    distinct = {size.resolve(design): design for design in [_BASELINE, *found]}
    return list(distinct.values())[1:]


def _change(design: Design) -> str:
    if design.control != "none":
        return design.control
    return ", ".join(f"{axis} {value}" for axis, value in design.params().items() if value != getattr(_BASELINE, axis))


def _encode(model: Compressor, samples: list[Sample]) -> Tensor:
    inputs = lay_out(samples, model.design, _SPECIALS, model.size.positions).encoder
    assert inputs is not None
    return model.encode(inputs)


def _step(model: Compressor, samples: list[Sample]) -> Tensor:
    batch = lay_out(samples, model.design, _SPECIALS, model.size.positions)
    return F.cross_entropy(model(batch), batch.target_P)


def _published_encode(model: Compressor, items: list[published.Item]) -> Tensor:
    return torch.cat([published.encode(model, item, _SPECIALS) for item in items])


def _measure(
    what: str, runs: Mapping[str, Callable[[], Tensor]], weights: Sequence[Tensor], work: Workload, tick: Tick
) -> dict[str, list[float]]:
    """Seconds by round of each run, forward and backward."""

    def there_and_back(run: Callable[[], Tensor]) -> None:
        run().square().sum().backward()
        for weight in weights:
            weight.grad = None

    torch.set_num_threads(1)
    contestants = {name: partial(there_and_back, run) for name, run in runs.items()}
    return alternate(contestants, work.rounds, lambda text: tick(f"{what}: {text}"))
