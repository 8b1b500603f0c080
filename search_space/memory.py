"""Peak memory of a training step, without taking it.

The forward pass runs on fake tensors, which have shapes and no data, and what autograd would save is added up. So a
pooling or an adapter is priced by its own code, and a new one asks for nothing here. Layers, which repeat, are taken
out of that pass and priced once for all designs that call the same ones: memory is affine in their number.

The peak is the highest of these moments; the rest of the step stays below them:
- the loss, when all is saved for the backward pass: two tensors of a chunk's scores, or, where one chunk holds them
  all, three at the start of the backward pass;
- where layers are checkpointed, a block computed again, be it the last one, when all block inputs are still there, or
  the first one, when all other gradients exist;
- the optimizer's step, when all gradients exist, and the temporaries of one weight.

The step is the trainer's on a CPU: weights, gradients and optimizer state in float32, Muon for linear layers and AdamW
for the rest, or AdamW alone; gradients are dropped at the end of a step. Counted are tensors: the process holds more,
and more yet where glibc keeps what was released (docs/log.md). A GPU has not been measured; it needs less for
attention, which takes bfloat16 there: `gpu` counts that, with attention's own block mask left out. Large sizes come
from the same code and have not been measured either.

Shapes: R rows, T positions of a row, D width, P scored positions, V vocabulary, M rows and N columns of a weight.
"""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from search_space.compressor import Compressor, Size, matrices
from search_space.design import Design
from search_space.errors import UsageError
from search_space.layout import Batch
from search_space.loss import CHUNK_BYTES, chunk_positions
from search_space.transformer import Block, Groups, Layers, Rows, Shape

__all__ = ["PARTS", "Optimizer", "Part", "Precision", "Saved", "Skeleton", "part_of", "skeleton", "training_memory"]

Precision = Literal["32-true", "bf16-mixed"]
Optimizer = Literal["muon", "adamw"]
Part = Literal["encoder", "adapter", "decoder"]
PARTS: frozenset[Part] = frozenset(get_args(Part))
_FLOAT = 4  # bytes


def part_of(name: str) -> Part:
    """Which part a weight or a module of `Compressor` belongs to; the pooling goes with the adapter."""
    top = name.removeprefix("phase.").partition(".")[0]
    return "encoder" if top == "encoder" else "decoder" if top == "decoder" else "adapter"


def training_memory(
    design: Design,
    size: Size,
    batch: Batch,
    precision: Precision = "32-true",
    optimizer: Optimizer = "muon",
    checkpointed: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
    trained: frozenset[Part] = PARTS,
) -> int:
    """Peak bytes of a training step on `batch`, once the optimizer has its state.

    checkpointed: layers compute their blocks again in the backward pass. chunk_bytes: see `search_space.loss`.
    trained: parts that are not frozen. Raises `UsageError` for an unknown precision.
    """
    if precision not in get_args(Precision):
        raise UsageError(f"precision: {precision!r} is not one of {', '.join(get_args(Precision))}")
    bones = skeleton(design, size)
    own = bones.weights(trained)
    gradients = _FLOAT * sum(w.numel() for w in own.values())
    moments = bones.moments(batch, precision, checkpointed, chunk_bytes, trained)
    update = gradients + max((bones.temporaries(optimizer, w) for w in own.values()), default=0)
    state = sum(bones.state(optimizer, w) for w in own.values())
    return _FLOAT * (bones.parameters + state) + max(*moments, update)


@dataclass(frozen=True)
class Saved:
    """Bytes that wait for the backward pass, all at once when the loss is taken.

    total: of everything that autograd keeps, weights apart.
    scores: of tensors of the vocabulary's size that exist beside it.
    kept: of the total, what is there when layers begin to compute their blocks again.
    again: of each call of checkpointed layers, bytes while a block is computed again and differentiated, and bytes of
        the gradients of its weights.
    """

    total: int
    scores: int
    kept: int
    again: tuple[tuple[int, int], ...] = ()


class Skeleton:
    """The model of a design, without data and with its layers taken out.

    parameters: their number. blocks: names of the blocks that its layers had.
    """

    def __init__(self, design: Design, size: Size) -> None:
        with torch.device("meta"):
            self.model = Compressor(design, size)
        self._weights = dict(self.model.named_parameters())
        self._matrices = {id(w) for w in matrices(self.model)}
        self.parameters = sum(w.numel() for w in self._weights.values())
        self.blocks = [name for name, module in self.model.named_modules() if isinstance(module, Block)]
        self._trained = PARTS
        self._calls: list[_Call] = []
        for name, module in self.model.named_modules():
            if isinstance(module, Layers):
                self._take_out(module, part_of(name))

    def weights(self, trained: frozenset[Part] = PARTS) -> dict[str, Tensor]:
        """The weights of these parts by name, without data."""
        return {name: weight for name, weight in self._weights.items() if part_of(name) in trained}

    def state(self, optimizer: Optimizer, weight: Tensor) -> int:
        """Numbers that the optimizer keeps of a weight: Muon one for each of a matrix, AdamW two."""
        return weight.numel() * (1 if self._by_muon(optimizer, weight) else 2)

    def temporaries(self, optimizer: Optimizer, weight: Tensor) -> int:
        """Bytes that the optimizer's step needs for a weight."""
        return _muon_bytes(weight) if self._by_muon(optimizer, weight) else _adamw_bytes(weight)

    def _by_muon(self, optimizer: Optimizer, weight: Tensor) -> bool:
        return optimizer == "muon" and id(weight) in self._matrices

    def _take_out(self, layers: Layers, part: Part) -> None:
        """Leave `layers` empty, so that they hand on what they get, and note how they are called."""
        count = len(layers)

        def note(module: nn.Module, args: tuple[Any, ...], x_RTD: Tensor) -> Tensor:
            rows, learns = args[1], count > 0 and part in self._trained
            groups = rows.groups and rows.groups.shapes
            call = _Call(layers.shape, tuple(x_RTD.shape[:2]), rows.alone, groups, x_RTD.dtype, count)
            self._calls.append(replace(call, trained=part in self._trained, slope=x_RTD.requires_grad))
            # What comes after trained layers is differentiated even where what came before is not.
            return x_RTD.detach().requires_grad_() if learns and not x_RTD.requires_grad else x_RTD

        layers.register_forward_hook(note)
        del layers[:]

    def saved(
        self,
        batch: Batch,
        precision: Precision,
        checkpointed: bool = False,
        chunk_bytes: int = CHUNK_BYTES,
        trained: frozenset[Part] = PARTS,
        gpu: bool = False,
    ) -> Saved:
        """What waits for the backward pass of `batch`. gpu: as attention keeps it there (see the head of this file)."""
        self._calls.clear()
        self._trained = trained
        head, scored = self.model.decoder.head_weight, len(batch.target_P)
        chunk, scores = chunk_positions(len(head), chunk_bytes), _FLOAT * scored * len(head)
        few = chunk_bytes if scored <= chunk else scores // 2  # chunks: none of them is kept, however many there are
        with FakeTensorMode():
            args = _fake(_on_gpu(batch) if gpu else batch), few
            saved = _traced(_Loss(self.model), args, precision, lambda name: part_of(name[6:]) in trained, gpu)
        calls = [replace(call, checkpointed=checkpointed, gpu=gpu) for call in self._calls]
        saved += sum(call.price(precision) for call in calls)

        learns = "decoder" in trained
        if scored <= chunk:
            held, kept = 2 * scores, saved - scores + _FLOAT * head.numel() * learns
        else:
            held, kept = 2 * _FLOAT * chunk * len(head), saved
            if precision == "bf16-mixed":
                # A copy of the head; beside it the chunk as it was multiplied, or what is added to the head's gradient.
                held = 2 * head.numel() + max(held + 2 * chunk * len(head), held // 4 + 2 * head.numel() * learns)
        return Saved(saved, held, kept, tuple(call.again(precision) for call in calls) if checkpointed else ())

    def moments(
        self, batch: Batch, precision: Precision, checkpointed: bool, chunk_bytes: int, trained: frozenset[Part]
    ) -> list[int]:
        """Bytes beside weights and optimizer state until the optimizer's step (see the head of this file)."""
        saved = self.saved(batch, precision, checkpointed, chunk_bytes, trained)
        gradients = _FLOAT * sum(w.numel() for w in self.weights(trained).values())
        moments = [saved.total + saved.scores]
        for again, own in saved.again:
            moments += [saved.kept + again, gradients - own + again]
        return moments


class _Loss(nn.Module):
    """The loss of a model as its forward pass."""

    def __init__(self, model: Compressor) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, chunk_bytes: int) -> Tensor:
        return self.model.loss(batch, chunk_bytes)


@lru_cache(maxsize=256)
def _layout_free(design: Design, size: Size) -> Skeleton:
    return Skeleton(design, size)


def skeleton(design: Design, size: Size) -> Skeleton:
    """One for all designs that differ in their layout alone: their weights are the same."""
    return _layout_free(design.but(window=design.ratio, overlap=0, mask="causal"), size)


@dataclass(frozen=True)
class _Call:
    """A call of layers: all that its price depends on. slope: whether the gradient of the input is asked for."""

    shape: Shape
    rows: tuple[int, ...]
    alone: bool
    groups: tuple[tuple[int, int, bool], ...] | None
    dtype: torch.dtype
    layers: int
    checkpointed: bool = False
    trained: bool = True
    slope: bool = True
    gpu: bool = False

    def price(self, precision: Precision) -> int:
        """Bytes saved for the backward pass, the input included."""
        if self.layers == 0:
            return 0
        first = _price_layers(replace(self, layers=1), precision)
        if self.layers == 1:
            return first
        return first + (self.layers - 1) * (_price_layers(replace(self, layers=2), precision) - first)

    def again(self, precision: Precision) -> tuple[int, int]:
        """Bytes while a block is computed again and differentiated, and bytes of the gradients of its weights.

        Beside what the block saves these are gradients of the feed-forward's two inner states and of what surrounds
        them, as measured.
        """
        if self.layers == 0 or not (self.trained or self.slope):
            return 0, 0
        one, shape, (rows, length) = replace(self, layers=1, checkpointed=False), self.shape, self.rows
        states = rows * length * (2 * shape.feedforward + 3 * shape.width // 2)
        weights = shape.width * (2 * (shape.heads + shape.kv_heads) * shape.head_width + 3 * shape.feedforward)
        return _price_layers(one, precision) + states * (
            2 if precision == "bf16-mixed" else _FLOAT
        ), _FLOAT * weights * self.trained


@lru_cache(maxsize=4096)
def _price_layers(call: _Call, precision: Precision) -> int:
    with torch.device("meta"):
        layers = Layers(call.shape, call.layers)
    layers.checkpointed = call.checkpointed
    with FakeTensorMode():
        place_RT = torch.empty(call.rows, dtype=torch.int64, device="cpu")
        shape_RTD = (*call.rows, call.shape.width)
        x_RTD = torch.empty(shape_RTD, dtype=call.dtype, device="cpu", requires_grad=call.slope)
        groups = None
        if call.groups is not None:
            slot_S = torch.empty(sum(n * length for n, length, _ in call.groups), dtype=torch.int64, device="cpu")
            groups = Groups(call.groups, slot_S, slot_S.bool(), place_RT.flatten())
        args = x_RTD, Rows(place_RT, place_RT, call.alone, groups), True
        return _traced(layers, args, precision, lambda _: call.trained, call.gpu)


class _AttentionOfGpu(TorchFunctionMode):
    """Attention takes bfloat16, as on a GPU under autocast."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            args = [x.bfloat16() for x in args]
        return func(*args, **(kwargs or {}))


def _on_gpu(batch: Batch) -> Batch:
    """With rows as a GPU's kernels take them: neither groups nor a dense mask."""

    def bare(rows: Rows) -> Rows:
        return replace(rows, alone=True, groups=None)

    encoder = batch.encoder
    if encoder is not None:
        spans = encoder.spans and replace(encoder.spans, rows=bare(encoder.spans.rows))
        encoder = replace(encoder, rows=bare(encoder.rows), spans=spans)
    return replace(batch, encoder=encoder, rows=bare(batch.rows))


def _traced(
    model: nn.Module, args: tuple[Any, ...], precision: Precision, trained: Callable[[str], bool], gpu: bool
) -> int:
    """Bytes that autograd saves beside the weights; under a fake mode. trained: whether the weight of a name is."""
    named = model.named_parameters()
    weights = {name: torch.empty(w.shape, device="cpu", requires_grad=trained(name)) for name, w in named}
    counted = {w.untyped_storage()._cdata: 0 for w in weights.values()}

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        counted.setdefault(storage._cdata, storage.nbytes())
        return saved

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")
    attention = _AttentionOfGpu() if gpu and precision == "bf16-mixed" else nullcontext()
    with saved_tensors_hooks(pack, lambda saved: saved), autocast, attention, warnings.catch_warnings(action="ignore"):
        functional_call(model, weights, args)
    return sum(counted.values())


def _fake(value: Any) -> Any:
    """A dataclass with its tensors, also those of its parts, made anew under a fake mode."""
    if isinstance(value, Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device="cpu")
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _fake(getattr(value, f.name)) for f in fields(value)})
    return value


def _muon_bytes(weight_MN: Tensor) -> int:
    """The update in float32, in bfloat16 before and after an iteration, and the two Gram matrices of that."""
    return 8 * weight_MN.numel() + 4 * min(weight_MN.shape) ** 2


def _adamw_bytes(weight: Tensor) -> int:
    """The root of the second moment, before and after the correction of its bias."""
    return 2 * _FLOAT * weight.numel()
