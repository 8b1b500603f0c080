"""Ratio N: raw tokens per latent (paper section 1)."""

from typing import Any

from search_space.axes.axis import Values, Whole, has_encoder

__all__ = ["AXIS", "PUBLISHED"]

PUBLISHED = 16  # names of the literature leave it out


class Ratio(Whole):
    name, default, least = "ratio", PUBLISHED, 2
    asked = "where anything is compressed"
    pattern = r"(?:-n(?P<ratio>\d+))?"

    def idle(self, beside: Values) -> bool:
        return not has_encoder(beside)

    def write(self, value: Any) -> str:
        return "" if value == PUBLISHED else f"-n{value}"


AXIS = Ratio()
