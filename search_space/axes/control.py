"""Control: what gives a compressor's loss a meaning.

`none` is a compressor. `uncompressed` lets the decoder read the raw tokens, `blind` lets it read nothing, `encoderless`
pools embeddings that have gone through zero encoder layers.
"""

from typing import Any

from search_space.axes.axis import Choice

__all__ = ["AXIS", "CONTROLS"]

CONTROLS = ("uncompressed", "blind", "encoderless")


class Control(Choice):
    name, default = "control", "none"
    asked = "never; a sweep trains each once"
    pattern = r"(?:-(?P<control>encoderless))?"

    def choices(self) -> tuple[str, ...]:
        return ("none", *CONTROLS)

    def write(self, value: Any) -> str:
        return "" if value == "none" else f"-{value}"


AXIS = Control()
