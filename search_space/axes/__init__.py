"""The axes of a design, in the order of its fields; one file each."""

from search_space.axes import (
    adapter,
    control,
    depth,
    embeddings,
    mask,
    overlap,
    pooling,
    positions,
    ratio,
    shape,
    window,
)
from search_space.axes.axis import Axis

__all__ = ["AXES"]

AXES: tuple[Axis, ...] = (
    pooling.AXIS,
    ratio.AXIS,
    window.AXIS,
    overlap.AXIS,
    mask.AXIS,
    adapter.AXIS,
    depth.AXIS,
    shape.ENCODER,
    shape.DECODER,
    embeddings.AXIS,
    positions.AXIS,
    control.AXIS,
)
