"""Shape of the encoder and of the decoder: layers, width, heads, key-value heads, head width and feed-forward.

A value is `base` (what the sweep's size says), the name of a Qwen3 model, or the sizes that differ from the base, each
a letter and a number: `l4` has four layers, `l4d256h8k8` also another width and more heads. A decoder's `t` says
whether its head is the token embedding (1) or a matrix of its own (0).
"""

import re
from dataclasses import replace
from typing import Any

from search_space.axes.adapter import ADAPTERS
from search_space.axes.axis import Impossible, Values, has_encoder, has_windows
from search_space.axes.base import BASE, OfSize
from search_space.transformer import Shape

__all__ = ["DECODER", "ENCODER", "QWEN3", "apply"]

QWEN3: dict[str, Shape] = {
    "0.6b": Shape(28, 1024, 16, 8, 128, 3072),
    "4b": Shape(36, 2560, 32, 8, 128, 9728),
    "8b": Shape(36, 4096, 32, 8, 128, 12288, tied_head=False),
}
LETTERS = {
    "l": "layers",
    "d": "width",
    "h": "heads",
    "k": "kv_heads",
    "e": "head_width",
    "f": "feedforward",
    "t": "tied_head",
}
_ATTENTION = ("heads", "kv_heads", "head_width", "feedforward")
_SPELLED = re.compile(
    "(?=.)" + "".join(f"(?:{x}(?P<{field}>{'[01]' if x == 't' else '[0-9]+'}))?" for x, field in LETTERS.items())
)


class ShapeAxis(OfSize):
    """Of one of the two transformers; `used` are the fields that mean anything to it."""

    def __init__(self, name: str, used: tuple[str, ...]) -> None:
        self.name, self.used = name, used
        self.prefix = name[:3]
        self.pattern = rf"(?:-{self.prefix}_(?P<{name}>[\w.]+))?"

    def check(self, value: Any) -> None:
        if value == BASE or value in QWEN3:
            return
        sizes = _sizes(value) if isinstance(value, str) else {}
        if not sizes.keys() <= set(self.used) or not sizes:
            legend = ", ".join(f"{letter} {field}" for letter, field in LETTERS.items() if field in self.used)
            raise Impossible(f"{value!r} is not base, {', '.join(QWEN3)} or sizes such as l4d256 ({legend})", BASE)
        if sizes.get("layers") == 0 and self.name == "encoder":
            raise Impossible(f"{value!r} has no layers; that is the control encoderless", _spell(sizes | {"layers": 1}))
        small = [field for field, size in sizes.items() if size < 1 and field != "tied_head"]
        if small:
            raise Impossible(f"{value!r} has {small[0]} 0, which is below 1", _spell(sizes | dict.fromkeys(small, 1)))

    def idle(self, beside: Values) -> bool:
        return self.name == "encoder" and not has_encoder(beside)

    def canonical(self, value: str, beside: Values) -> str:
        """Sizes in order, a published shape by its name, and nothing of layers that are not there."""
        if self.idle(beside) or value == BASE:
            return BASE
        sizes = _sizes(self.spell(QWEN3[value]) if value in QWEN3 else value)
        sizes = {field: size for field, size in sizes.items() if field in self._means_something(beside)}
        for name, shape in QWEN3.items():
            if len(sizes) == len(self.used) and all(getattr(shape, field) == size for field, size in sizes.items()):
                return name
        return _spell(sizes)

    def _means_something(self, beside: Values) -> set[str]:
        used = set(self.used)
        if self.name == "encoder" and not has_windows(beside):
            used -= {"layers"}
            if not ADAPTERS[beside["adapter"]].in_pooled_width:
                used -= set(_ATTENTION)
        return used

    def write(self, value: str) -> str:
        return "" if value == BASE else f"-{self.prefix}_{value}"

    def spell(self, shape: Shape) -> str:
        """A shape as a value that leaves nothing to the base."""
        return _spell({field: getattr(shape, field) for field in self.used})


def apply(value: str, base: Shape) -> Shape:
    """The shape that a value of these axes stands for."""
    if value == BASE:
        return base
    return QWEN3[value] if value in QWEN3 else replace(base, **_sizes(value))


def _spell(sizes: dict[str, int]) -> str:
    """Letters and numbers, in order; `base` for none."""
    return "".join(f"{letter}{int(sizes[field])}" for letter, field in LETTERS.items() if field in sizes) or BASE


def _sizes(value: str) -> dict[str, int]:
    match = _SPELLED.fullmatch(value)
    sizes = {field: int(size) for field, size in match.groupdict().items() if size} if match else {}
    return sizes | ({"tied_head": bool(sizes["tied_head"])} if "tied_head" in sizes else {})


ENCODER = ShapeAxis("encoder", ("layers", "width", *_ATTENTION))
DECODER = ShapeAxis("decoder", ("layers", "width", *_ATTENTION, "tied_head"))
