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
attention, which takes bfloat16 there. Large sizes come from the same code and have not been measured either.

Shapes: R rows, T positions of a row, D width, P scored positions, V vocabulary, M rows and N columns of a weight.
"""

import warnings
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from search_space.compressor import Compressor, Size, matrices
from search_space.design import Design
from search_space.errors import UsageError
from search_space.layout import Batch
from search_space.loss import CHUNK_BYTES, chunk_positions
from search_space.transformer import Groups, Layers, Rows, Shape

__all__ = ["Optimizer", "Precision", "Skeleton", "skeleton", "training_memory"]

Precision = Literal["32-true", "bf16-mixed"]
Optimizer = Literal["muon", "adamw"]
_FLOAT = 4  # bytes


def training_memory(
    design: Design,
    size: Size,
    batch: Batch,
    precision: Precision = "32-true",
    optimizer: Optimizer = "muon",
    checkpointed: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> int:
    """Peak bytes of a training step on `batch`, once the optimizer has its state.

    checkpointed: layers compute their blocks again in the backward pass. chunk_bytes: see `search_space.loss`.
    """
    if precision not in get_args(Precision):
        raise UsageError(f"precision: {precision!r} is not one of {', '.join(get_args(Precision))}")
    bones = skeleton(design, size)
    weights = _FLOAT * bones.parameters
    moments = bones.moments(batch, precision, checkpointed, chunk_bytes)
    return weights + _FLOAT * bones.state[optimizer] + max(*moments, weights + bones.temporaries[optimizer])


class Skeleton:
    """The model of a design, without data and with its layers taken out.

    parameters: trained numbers.
    state: numbers that an optimizer keeps; Muon one per weight of a matrix, AdamW two.
    temporaries: bytes that an optimizer needs for the weight that needs most.
    """

    def __init__(self, design: Design, size: Size) -> None:
        with torch.device("meta"):
            self.model = Compressor(design, size)
        weights = list(self.model.parameters())
        self.parameters = sum(w.numel() for w in weights)
        self.state: dict[Optimizer, int] = {}
        self.temporaries: dict[Optimizer, int] = {}
        by_muon: dict[Optimizer, set[int]] = {"muon": {id(w) for w in matrices(self.model)}, "adamw": set()}
        for optimizer, ids in by_muon.items():
            self.state[optimizer] = sum(w.numel() * (1 if id(w) in ids else 2) for w in weights)
            self.temporaries[optimizer] = max(_muon_bytes(w) if id(w) in ids else _adamw_bytes(w) for w in weights)
        self._calls: list[_Call] = []
        for module in self.model.modules():
            if isinstance(module, Layers):
                self._take_out(module)

    def _take_out(self, layers: Layers) -> None:
        """Leave `layers` empty, so that they hand on what they get, and note how they are called."""
        count = len(layers)

        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            x_RTD, rows = args[:2]
            groups = rows.groups and rows.groups.shapes
            self._calls.append(_Call(layers.shape, tuple(x_RTD.shape[:2]), rows.alone, groups, x_RTD.dtype, count))

        layers.register_forward_pre_hook(note)
        del layers[:]

    def moments(self, batch: Batch, precision: Precision, checkpointed: bool, chunk_bytes: int) -> list[int]:
        """Bytes beside weights and optimizer state until the optimizer's step (see the head of this file)."""
        self._calls.clear()
        with FakeTensorMode():
            saved = _traced(_Loss(self.model), (_fake(batch), chunk_bytes), precision)
        calls = [replace(call, checkpointed=checkpointed) for call in self._calls]
        saved += sum(call.price(precision) for call in calls)

        head, scored = self.model.decoder.head_weight, len(batch.target_P)
        chunk, scores = chunk_positions(len(head), chunk_bytes), _FLOAT * scored * len(head)
        if scored <= chunk:
            moments, kept = [saved + 2 * scores], saved - scores + _FLOAT * head.numel()
        else:
            # In bfloat16 the head and the part of its gradient that is added up next are copies of it.
            copies = 4 * head.numel() if precision == "bf16-mixed" else 0
            moments, kept = [saved + 2 * _FLOAT * chunk * len(head) + copies], saved
        if checkpointed:
            for call in calls:
                again, own = call.again(precision)
                moments += [kept + again, _FLOAT * self.parameters - own + again]
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
    """A call of layers: all that its price depends on."""

    shape: Shape
    rows: tuple[int, ...]
    alone: bool
    groups: tuple[tuple[int, int, bool], ...] | None
    dtype: torch.dtype
    layers: int
    checkpointed: bool = False

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
        if self.layers == 0:
            return 0, 0
        one, shape, (rows, length) = replace(self, layers=1, checkpointed=False), self.shape, self.rows
        states = rows * length * (2 * shape.feedforward + 3 * shape.width // 2)
        weights = shape.width * (2 * (shape.heads + shape.kv_heads) * shape.head_width + 3 * shape.feedforward)
        return _price_layers(one, precision) + states * (2 if precision == "bf16-mixed" else _FLOAT), _FLOAT * weights


@lru_cache(maxsize=4096)
def _price_layers(call: _Call, precision: Precision) -> int:
    with torch.device("meta"):
        layers = Layers(call.shape, call.layers)
    layers.checkpointed = call.checkpointed
    with FakeTensorMode():
        place_RT = torch.empty(call.rows, dtype=torch.int64, device="cpu")
        shape_RTD = (*call.rows, call.shape.width)
        x_RTD = torch.empty(shape_RTD, dtype=call.dtype, device="cpu", requires_grad=True)
        groups = None
        if call.groups is not None:
            slot_S = torch.empty(sum(n * length for n, length, _ in call.groups), dtype=torch.int64, device="cpu")
            groups = Groups(call.groups, slot_S, slot_S.bool(), place_RT.flatten())
        return _traced(layers, (x_RTD, Rows(place_RT, place_RT, call.alone, groups), True), precision)


def _traced(model: nn.Module, args: tuple[Any, ...], precision: Precision) -> int:
    """Bytes that autograd saves beside the weights; under a fake mode."""
    weights = {name: torch.empty(w.shape, device="cpu", requires_grad=True) for name, w in model.named_parameters()}
    counted = {w.untyped_storage()._cdata: 0 for w in weights.values()}

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        counted.setdefault(storage._cdata, storage.nbytes())
        return saved

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")
    with saved_tensors_hooks(pack, lambda saved: saved), autocast, warnings.catch_warnings(action="ignore"):
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
