"""Embeddings: whether encoder and decoder share one token embedding (`tied`, which asks for equal widths) or have one
each (`separate`, as in the published models)."""

from typing import Literal

from search_space.axes.axis import Choice, Values, has_encoder
from search_space.axes.base import BASE, OfSize

__all__ = ["AXIS", "Embeddings"]

Embeddings = Literal["tied", "separate"]


class EmbeddingsAxis(OfSize, Choice):
    name = "embeddings"
    asked = "where anything is compressed"
    pattern = r"(?:-(?P<embeddings>tied|separate))?"

    def choices(self) -> tuple[str, ...]:
        return (BASE, "tied", "separate")

    def idle(self, beside: Values) -> bool:
        return not has_encoder(beside)


AXIS = EmbeddingsAxis()
