"""Peak memory of a training step, without taking it.

The forward pass runs on fake tensors, which have shapes and no data, and what autograd would save is added up. So a
pooling or an adapter is priced by its own code, and a new one asks for nothing here. Layers, which repeat, are taken
out of that pass and priced once for all designs that call the same ones: memory is affine in their number.

The peak is the highest of three moments; the rest of the step stays below them:
- the loss, when all is saved for the backward pass and the last step's gradients are still there (Lightning drops them
  between the two passes);
- the start of the backward pass, when three tensors of all scores exist;
- the optimizer's step, when all gradients exist, and the temporaries of one weight.

The step is the trainer's on a CPU: weights, gradients and optimizer state in float32, Muon for linear layers and AdamW
for the rest, the logits of all scored positions at once, nothing computed twice. Counted are tensors: the process holds
more, and more yet where glibc keeps what was released (docs/log.md). A GPU has not been measured; it needs less for
attention, where it takes a block mask for a dense one and bfloat16 for float32. Large sizes come from the same code and
have not been measured either.

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
from search_space.transformer import Layers, Rows, Shape

__all__ = ["Precision", "Skeleton", "skeleton", "training_memory"]

Precision = Literal["32-true", "bf16-mixed"]
_FLOAT = 4  # bytes


def training_memory(design: Design, size: Size, batch: Batch, precision: Precision = "32-true") -> int:
    """Peak bytes of a training step on `batch`, once the optimizer has its state."""
    if precision not in get_args(Precision):
        raise UsageError(f"precision: {precision!r} is not one of {', '.join(get_args(Precision))}")
    bones = skeleton(design, size)
    saved, scores = bones.saved(batch, precision)
    weights = _FLOAT * bones.parameters
    moments = (
        weights + saved + 2 * scores,  # logits and their log-softmax
        saved + 3 * scores,  # log-softmax, the gradient of the loss and that of the log-softmax
        weights + bones.temporaries,
    )
    return weights + _FLOAT * bones.state + max(moments)


class Skeleton:
    """The model of a design, without data and with its layers taken out.

    parameters: trained numbers.
    state: numbers that the optimizer keeps, one per weight of a matrix (Muon), else two (AdamW).
    temporaries: bytes that the optimizer needs for the weight that needs most.
    """

    def __init__(self, design: Design, size: Size) -> None:
        with torch.device("meta"):
            self.model = Compressor(design, size)
        weights = list(self.model.parameters())
        muon = {id(w) for w in matrices(self.model)}
        self.parameters = sum(w.numel() for w in weights)
        self.state = sum(w.numel() * (1 if id(w) in muon else 2) for w in weights)
        self.temporaries = max(_muon_bytes(w) if id(w) in muon else _adamw_bytes(w) for w in weights)
        self._calls: list[_Call] = []
        for module in self.model.modules():
            if isinstance(module, Layers):
                self._take_out(module)

    def _take_out(self, layers: Layers) -> None:
        """Leave `layers` empty, so that they hand on what they get, and note how they are called."""
        count = len(layers)

        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            x_RTD, rows = args[:2]
            self._calls.append(_Call(layers.shape, tuple(x_RTD.shape[:2]), rows.alone, x_RTD.dtype, count))

        layers.register_forward_pre_hook(note)
        del layers[:]

    def saved(self, batch: Batch, precision: Precision) -> tuple[int, int]:
        """Bytes saved for the backward pass but for the scores, and bytes of the scores (P, V) in float32."""
        self._calls.clear()
        with FakeTensorMode():
            saved, logits_PV = _traced(self.model, (_fake(batch),), precision)
        return saved + sum(call.price(precision) for call in self._calls), _FLOAT * logits_PV.numel()


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
    dtype: torch.dtype
    layers: int

    def price(self, precision: Precision) -> int:
        """Bytes saved for the backward pass, the input included."""
        if self.layers == 0:
            return 0
        first = _price_layers(replace(self, layers=1), precision)
        if self.layers == 1:
            return first
        return first + (self.layers - 1) * (_price_layers(replace(self, layers=2), precision) - first)


@lru_cache(maxsize=4096)
def _price_layers(call: _Call, precision: Precision) -> int:
    with torch.device("meta"):
        layers = Layers(call.shape, call.layers)
    with FakeTensorMode():
        place_RT = torch.empty(call.rows, dtype=torch.int64, device="cpu")
        shape_RTD = (*call.rows, call.shape.width)
        x_RTD = torch.empty(shape_RTD, dtype=call.dtype, device="cpu", requires_grad=True)
        return _traced(layers, (x_RTD, Rows(place_RT, place_RT, call.alone), True), precision)[0]


def _traced(model: nn.Module, args: tuple[Any, ...], precision: Precision) -> tuple[int, Tensor]:
    """Bytes that autograd saves beside the weights, and the output; under a fake mode."""
    weights = {name: torch.empty(w.shape, device="cpu", requires_grad=True) for name, w in model.named_parameters()}
    counted = {w.untyped_storage()._cdata: 0 for w in weights.values()}

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        counted.setdefault(storage._cdata, storage.nbytes())
        return saved

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")
    with saved_tensors_hooks(pack, lambda saved: saved), autocast, warnings.catch_warnings(action="ignore"):
        output = functional_call(model, weights, args)
    return sum(counted.values()), output


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
