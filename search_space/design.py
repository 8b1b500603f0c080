"""A design: one point of the space of context compressors.

Notable choices:
- frozen and validated: a `Design` that exists can be built;
- canonical: axes that mean nothing in a given design (depth without an attention adapter, the axes of an
  encoder that a control does not have) and overlap where the window is one block, which the field does not
  use, are set to their neutral value; two designs are equal exactly when they build the same computation;
- named as in the literature, `mean-w1024-causal-mlp-O0`, and readable back from the name.
"""

import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from search_space.axes.adapter import ADAPTERS
from search_space.axes.pooling import POOLINGS
from search_space.errors import UsageError

__all__ = ["AXES", "CONTROLS", "Control", "Design", "Mask"]

Mask = Literal["causal", "bidirectional"]
Control = Literal["none", "uncompressed", "blind", "encoderless"]

MASKS: tuple[str, ...] = get_args(Mask)
CONTROLS: tuple[str, ...] = get_args(Control)[1:]
PUBLISHED_RATIO = 16  # names of the literature leave it out
_NAME = re.compile(
    r"(?P<pooling>[a-z]+)-w(?P<window>\d+)-(?P<mask>[a-z]+)-(?P<adapter>[a-z_]+)-O(?P<overlap>\d+)"
    r"(?:-n(?P<ratio>\d+))?(?:-l(?P<depth>\d+))?(?P<encoderless>-encoderless)?"
)


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
    control: `none` is a compressor; the others give its loss a meaning: `uncompressed` (the decoder reads
        the raw tokens), `blind` (it reads nothing), `encoderless` (the encoder has zero layers).

    Raises `UsageError` naming the field, the rule and the nearest valid value.
    """

    pooling: str = "mean"
    ratio: int = 16
    window: int = 1024
    overlap: int = 0
    mask: str = "causal"
    adapter: str = "mlp"
    depth: int = 0
    control: str = "none"

    def __post_init__(self) -> None:
        _one_of("pooling", self.pooling, tuple(POOLINGS))
        _one_of("mask", self.mask, MASKS)
        _one_of("adapter", self.adapter, tuple(ADAPTERS))
        _one_of("control", self.control, ("none", *CONTROLS))
        _at_least("ratio", self.ratio, 2)
        _at_least("window", self.window, 1)
        _at_least("overlap", self.overlap, 0)
        _at_least("depth", self.depth, 0)
        if self.window % self.ratio:
            below = self.window // self.ratio * self.ratio
            nearest = f"{below} or {below + self.ratio}" if below else f"{self.ratio}"
            raise UsageError(f"window: {self.window} is not a multiple of ratio {self.ratio}; nearest: {nearest}")
        self._canonicalise()

    def _canonicalise(self) -> None:
        neutral: dict[str, Any] = {}
        if self.window == self.ratio:
            neutral["overlap"] = 0
        if not ADAPTERS[self.adapter].attention:
            neutral["depth"] = 0
        elif self.depth == 0:
            neutral["depth"] = 1
        if self.control == "encoderless":  # tokens do not meet before pooling: the windowing is idle
            neutral |= {"window": self.ratio, "overlap": 0, "mask": "causal"}
        if self.control in ("uncompressed", "blind"):
            neutral |= {f: getattr(_DEFAULTS, f) for f in AXES if f != "control"}
        for field, value in neutral.items():
            object.__setattr__(self, field, value)

    @property
    def name(self) -> str:
        """The field's name of this design; `Design.parse` reads it back."""
        if self.control in ("uncompressed", "blind"):
            return self.control
        return (
            f"{self.pooling}-w{self.window}-{self.mask}-{self.adapter}-O{self.overlap}"
            + (f"-n{self.ratio}" if self.ratio != PUBLISHED_RATIO else "")
            + (f"-l{self.depth}" if self.depth > 1 else "")
            + ("-encoderless" if self.control == "encoderless" else "")
        )

    @classmethod
    def parse(cls, name: str) -> "Design":
        """The design of a name. Raises `UsageError` when the name is not one."""
        if name in ("uncompressed", "blind"):
            return cls(control=name)
        match = _NAME.fullmatch(name)
        if match is None:
            raise UsageError(
                f"design: {name!r} is no design name; expected POOLING-wW-MASK-ADAPTER-OO[-nN][-lDEPTH], "
                "such as mean-w128-causal-mlp-O0-n8"
            )
        part = match.groupdict()
        return cls(
            pooling=part["pooling"],
            ratio=int(part["ratio"] or PUBLISHED_RATIO),
            window=int(part["window"]),
            overlap=int(part["overlap"]),
            mask=part["mask"],
            adapter=part["adapter"],
            depth=int(part["depth"] or 0),
            control="encoderless" if part["encoderless"] else "none",
        )

    def params(self) -> dict[str, Any]:
        """Axis to value, flat: what MLflow, Optuna and the tidy table show."""
        return asdict(self)

    def but(self, **axes: Any) -> "Design":
        """This design with some axes changed, canonical again."""
        return replace(self, **axes)


def _one_of(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{field}: {value!r} is not one of {', '.join(choices)}")


def _at_least(field: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{field}: {value!r} is not a whole number of at least {least}")


AXES: tuple[str, ...] = tuple(Design.__dataclass_fields__)
_DEFAULTS = Design()
