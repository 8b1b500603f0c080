"""A design: one point of the space of context compressors.

Notable choices:
- frozen and validated: a `Design` that exists can be built;
- canonical: axes that mean nothing beside the others are at their neutral value; two designs are equal exactly when
  they build the same computation;
- named as in the literature, `mean-w1024-causal-mlp-O0`, and readable back from the name;
- each axis, with its choices, its condition and its part of the name, is a file of `axes/`.
"""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from search_space import axes
from search_space.axes.axis import Axis, Impossible, Values, has_encoder
from search_space.axes.control import CONTROLS
from search_space.axes.mask import MASKS
from search_space.errors import UsageError

__all__ = ["AXES", "CONTROLS", "MASKS", "Design", "ImpossibleDesign"]

AXES: tuple[str, ...] = tuple(axis.name for axis in axes.AXES)
_BY_NAME = {axis.name: axis for axis in axes.AXES}
_IN_NAME = [
    _BY_NAME[name]
    for name in (
        *("pooling", "window", "mask", "adapter", "overlap", "ratio", "depth"),
        *("encoder", "decoder", "embeddings", "positions", "control"),
    )
]
_NAME = re.compile("".join(axis.pattern for axis in _IN_NAME))
_WITHOUT_ENCODER = re.compile(
    "(?P<control>uncompressed|blind)" + axes.shape.DECODER.pattern + axes.positions.AXIS.pattern
)


class ImpossibleDesign(UsageError):
    """The rule that a design breaks; `nearest` are the designs nearest to it that can be."""

    def __init__(self, axis: str, broken: Impossible, values: Values) -> None:
        self.nearest: list[Design] = []
        for value in broken.nearest:
            try:
                self.nearest.append(Design(**{**values, axis: value}))
            except ImpossibleDesign as more:
                self.nearest += more.nearest
        names = " or ".join(dict.fromkeys(design.name for design in self.nearest))
        super().__init__(f"{axis}: {broken.rule}; nearest possible: {names}")


@dataclass(frozen=True)
class Design:
    """The axes of one compressor (paper section 1).

    pooling: how a block of `ratio` hidden states becomes one latent.
    ratio: N, raw tokens per latent.
    window: W, tokens encoded together; a multiple of N.
    overlap: O, neighbouring tokens encoded with the window and then discarded; left and right for a
        bidirectional mask, left only for a causal one.
    mask: attention inside a window.
    adapter: from encoder width to decoder width, with `depth` transformer layers where it has attention.
    encoder, decoder: shapes of the transformers. embeddings: one token embedding for both, or one each.
        positions: where a latent stands for the decoder. These four are `base`, what the sweep's `Size` says, unless
        the design says otherwise.
    control: `none` is a compressor; the others give its loss a meaning: `uncompressed` (the decoder reads
        the raw tokens), `blind` (it reads nothing), `encoderless` (the encoder has zero layers).

    Raises `ImpossibleDesign` naming the field, the rule it breaks and the nearest possible design.
    """

    pooling: str = "mean"
    ratio: int = 16
    window: int = 1024
    overlap: int = 0
    mask: str = "causal"
    adapter: str = "mlp"
    depth: int = 0
    encoder: str = "base"
    decoder: str = "base"
    embeddings: str = "base"
    positions: str = "base"
    control: str = "none"

    def __post_init__(self) -> None:
        self._keep_the_rules(lambda axis, value: axis.check(value))
        for axis in axes.AXES:
            value = axis.canonical(getattr(self, axis.name), vars(self))
            object.__setattr__(self, axis.name, value)
        self._keep_the_rules(lambda axis, value: axis.fit(value, vars(self)))

    def _keep_the_rules(self, rule: Callable[[Axis, Any], None]) -> None:
        for axis in axes.AXES:
            try:
                rule(axis, getattr(self, axis.name))
            except Impossible as broken:
                raise ImpossibleDesign(axis.name, broken, vars(self)) from None

    @property
    def name(self) -> str:
        """The field's name of this design; `Design.parse` reads it back."""
        if has_encoder(vars(self)):
            return "".join(axis.write(getattr(self, axis.name)) for axis in _IN_NAME)
        return self.control + "".join(
            axis.write(getattr(self, axis.name)) for axis in (_BY_NAME["decoder"], _BY_NAME["positions"])
        )

    @classmethod
    def parse(cls, name: str) -> "Design":
        """The design of a name. Raises `UsageError` when the name is not one."""
        match = _WITHOUT_ENCODER.fullmatch(name) or _NAME.fullmatch(name)
        if match is None:
            raise UsageError(
                f"design: {name!r} is no design name; expected POOLING-wW-MASK-ADAPTER-OO, then what is not as usual: "
                "-nRATIO, -lDEPTH, -enc_SHAPE, -dec_SHAPE, -tied, -spread; such as mean-w128-causal-mlp-O0-n8"
            )
        return cls(**{axis: _BY_NAME[axis].read(text) for axis, text in match.groupdict().items()})

    def params(self) -> dict[str, Any]:
        """Axis to value, flat: what MLflow, Optuna and the tidy table show."""
        return asdict(self)

    def but(self, **axes: Any) -> "Design":
        """This design with some axes changed, canonical again."""
        return replace(self, **axes)
