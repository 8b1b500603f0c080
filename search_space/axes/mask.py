"""Mask: which tokens of its window an encoder position attends to (paper section 1)."""

from search_space.axes.axis import Choice, Values, has_windows

__all__ = ["AXIS", "MASKS"]

MASKS = ("causal", "bidirectional")


class Mask(Choice):
    name, default = "mask", "causal"
    asked = "where tokens meet before they are pooled"
    pattern = r"-(?P<mask>[a-z]+)"

    def choices(self) -> tuple[str, ...]:
        return MASKS

    def idle(self, beside: Values) -> bool:
        return not has_windows(beside)


AXIS = Mask()
