"""The contract of every axis: a file of its own, a default, a part of the name that reads back, a README line."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given

from search_space.axes import AXES
from search_space.axes.axis import Axis, Choice, Impossible, Whole
from search_space.axes.shape import QWEN3
from search_space.compressor import Size
from search_space.design import Design
from search_space.space import Space
from tests.search_space.cases import tiny_designs

README = (Path(__file__).parents[3] / "README.md").read_text()
each_axis = pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.name)


def test_designs_and_spaces_have_these_axes() -> None:
    assert [axis.name for axis in AXES] == [field.name for field in fields(Design)]
    assert [axis.name for axis in AXES if axis.name != "control"] == list(Space().axes())
    assert {axis.name: axis.default for axis in AXES} == Design().params()


@each_axis
def test_an_axis_has_a_file_of_its_own(axis: Axis) -> None:
    file = Path(inspect.getfile(type(axis))).stem
    assert file == ("shape" if axis.name in ("encoder", "decoder") else axis.name)


@given(tiny_designs)
def test_values_are_canonical_fit_and_read_back(design: Design) -> None:
    for axis in AXES:
        value = getattr(design, axis.name)
        axis.check(value)
        axis.fit(value, vars(design))
        assert axis.canonical(value, vars(design)) == value
        match = re.fullmatch(axis.pattern, axis.write(value))
        written = None if match is None else match[axis.name]
        assert axis.read(written) == value or (axis.name == "depth" and value == 1) or (
            axis.name == "control" and value in ("uncompressed", "blind")
        )  # fmt: skip


@each_axis
def test_what_cannot_be_a_value_names_one_that_can(axis: Axis) -> None:
    for value in ("", "nothing", -1, 1.5, None, True):
        with pytest.raises(Impossible) as raised:
            axis.check(value)
        assert raised.value.nearest
        for near in raised.value.nearest:
            axis.check(near)


@each_axis
def test_the_readme_has_every_axis_and_every_word(axis: Axis) -> None:
    (row,) = (line for line in README.splitlines() if line.startswith("| `") and f"`{axis.name}`" in line.split("|")[1])
    words = axis.choices() if isinstance(axis, Choice) else () if isinstance(axis, Whole) else ("base", *QWEN3)
    assert all(f"`{word}`" in row for word in words if word != "none")


def test_the_base_is_what_the_size_says() -> None:
    resolved = Size().resolve(Design())
    assert (resolved.encoder, resolved.decoder) == ("l2d128h4k4e32f256", "l2d128h4k4e32f256t1")
    assert (resolved.embeddings, resolved.positions) == ("tied", "spread")
    assert Size().of(resolved) == Size()
