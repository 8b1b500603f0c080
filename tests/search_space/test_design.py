"""Designs: names read back, no twins, errors that say what to do."""

from dataclasses import FrozenInstanceError, asdict, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search_space.axes.adapter import ADAPTERS
from search_space.axes.pooling import POOLINGS
from search_space.design import AXES, CONTROLS, MASKS, Design
from search_space.errors import UsageError
from search_space.layout import lay_out
from tests.search_space.cases import SPECIALS, build, combinations, designs, mixture

PUBLISHED = [
    "mean-w1024-causal-mlp-O0",
    "mean-w1024-bidirectional-mlp-O0",
    "mean-w1024-bidirectional-mlp-O32",
    "mean-w1024-bidirectional-mlp-O256",
    "mean-w1024-bidirectional-attn_mlp-O0",
    "mean-w1024-bidirectional-attn_mlp-O32",
    "mean-w1024-bidirectional-attn_mlp-O256",
    "mean-w1024-bidirectional-mlp_attn-O0",
    "mean-w256-bidirectional-mlp-O0",
    "mean-w16-bidirectional-mlp-O0",
    "concat-w1024-causal-mlp-O0",
    "concat-w1024-bidirectional-mlp-O0",
    "concat-w16-bidirectional-mlp-O0",
    "eos-w1024-causal-mlp-O0",
    "eos-w1024-bidirectional-mlp-O0",
    "eos-w16-bidirectional-mlp-O0",
    "mean-w16-causal-mlp-O0",
    "mean-w256-causal-mlp-O0",
    "eos-w16-causal-mlp-O0",
    "mean-w1024-causal-mlp-O256",
]

any_design = designs(st.integers(2, 64), st.integers(1, 128))


# --- names ----------------------------------------------------------------------------------------------------------


@given(any_design)
def test_names_read_back(design: Design) -> None:
    assert Design.parse(design.name) == design


@given(any_design, any_design)
def test_names_tell_designs_apart(one: Design, two: Design) -> None:
    assert (one.name == two.name) == (one == two) == (hash(one) == hash(two))


def test_published_names() -> None:
    """The 16 configurations and the four that only figures show: their names, unchanged, at ratio 16."""
    assert len(set(PUBLISHED)) == 20
    for name in PUBLISHED:
        design = Design.parse(name)
        assert design.name == name
        assert (design.ratio, design.control, design.depth) == (16, "none", 0 if "-mlp-" in name else 1)


@pytest.mark.parametrize(("name", "axes"), [
    ("mean-w128-causal-mlp-O0-n8", {"pooling": "mean", "window": 128, "ratio": 8}),
    ("eos-w64-bidirectional-attn_mlp-O32-l3", {"pooling": "eos", "window": 64, "mask": "bidirectional",
                                              "adapter": "attn_mlp", "overlap": 32, "depth": 3}),
    ("concat-w4-causal-mlp-O0-n4-encoderless", {"pooling": "concat", "ratio": 4, "control": "encoderless"}),
    ("uncompressed", {"control": "uncompressed"}),
    ("blind", {"control": "blind"}),
])  # fmt: skip
def test_names_with_suffixes(name: str, axes: dict[str, Any]) -> None:
    assert Design(**axes).name == name
    assert Design.parse(name) == Design(**axes)


def test_params_are_flat_and_complete() -> None:
    design = Design("eos", 4, 8, 2, "bidirectional", "mlp_attn", 2)
    assert tuple(design.params()) == AXES
    assert Design(**design.params()) == design


# --- canonical form -------------------------------------------------------------------------------------------------


@given(any_design)
def test_canonical_designs_stay_as_they_are(design: Design) -> None:
    assert Design(**asdict(design)) == design.but() == replace(design) == design


def test_idle_axes_are_neutral() -> None:
    assert Design(ratio=16, window=16, overlap=16) == Design(ratio=16, window=16)
    assert Design(adapter="mlp", depth=3) == Design(adapter="mlp")
    for adapter in ("attn_mlp", "mlp_attn"):
        assert Design(adapter=adapter) == Design(adapter=adapter, depth=1) != Design(adapter=adapter, depth=2)


def test_controls_without_latents_are_one_design_each() -> None:
    for control in ("uncompressed", "blind"):
        for axes in combinations(pooling=[*POOLINGS], ratio=[4, 16], mask=[*MASKS], adapter=[*ADAPTERS], depth=[0, 2]):
            assert Design(control=control, **axes) == Design(control=control)


def test_an_encoderless_control_has_no_windows() -> None:
    bare = Design(ratio=4, window=4, control="encoderless")
    for axes in combinations(window=[4, 64], overlap=[0, 2], mask=[*MASKS]):
        assert Design(ratio=4, control="encoderless", **axes) == bare
    assert bare != bare.but(pooling="concat") != bare.but(adapter="attn_mlp")


def computation(design: Design) -> tuple[tuple[Any, ...], tuple[float, ...]]:
    """Shapes of the weights, and what the model says of a fixed batch with weights that go by name."""
    model = build(design)
    with torch.no_grad():
        logits = model(lay_out(mixture(), design, SPECIALS))
    shapes = tuple((name, tuple(weight.shape)) for name, weight in model.named_parameters())
    return shapes, tuple(round(float(x), 4) for x in logits[:, :3].flatten())


def test_no_two_designs_build_the_same_computation() -> None:
    """1,152 dictionaries of axes: as many computations as designs, neither twins nor silent axes."""
    raw = combinations(
        pooling=[*POOLINGS], ratio=[2, 4], window=[4, 8], overlap=[0, 3], mask=[*MASKS], adapter=[*ADAPTERS],
        depth=[1, 2], control=["none", *CONTROLS],
    )  # fmt: skip
    everything = [Design(**axes) for axes in raw]
    found = {computation(design): design for design in set(everything)}
    assert len(everything) == 1152
    assert len(found) == len(set(everything)) == 242


@settings(max_examples=10, deadline=None)
@given(designs(st.sampled_from((2, 4)), st.sampled_from((1, 2, 4))))
def test_equal_designs_build_the_same_computation(design: Design) -> None:
    assert computation(design) == computation(Design.parse(design.name))


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("axes", "says"), [
    ({"pooling": "max"}, ("pooling", "'max'", "mean, concat, eos")),
    ({"mask": "full"}, ("mask", "'full'", "causal, bidirectional")),
    ({"adapter": "linear"}, ("adapter", "'linear'", "mlp, attn_mlp, mlp_attn")),
    ({"control": "random"}, ("control", "'random'", "none, uncompressed, blind, encoderless")),
    ({"ratio": 1}, ("ratio", "1", "at least 2")),
    ({"ratio": 2.0}, ("ratio", "2.0", "whole number")),
    ({"ratio": "16"}, ("ratio", "'16'", "whole number")),
    ({"window": 0}, ("window", "0", "at least 1")),
    ({"window": 1000}, ("window", "1000", "ratio 16", "992 or 1008")),
    ({"window": 8}, ("window", "8", "ratio 16", "nearest: 16")),
    ({"overlap": -1}, ("overlap", "-1", "at least 0")),
    ({"depth": -1}, ("depth", "-1", "at least 0")),
    ({"depth": True}, ("depth", "True", "whole number")),
])  # fmt: skip
def test_errors_name_the_field_and_the_way_out(axes: dict[str, Any], says: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as raised:
        Design(**axes)
    message = str(raised.value)
    assert message.startswith(f"{says[0]}: ") and "\n" not in message
    assert all(part in message for part in says)


@pytest.mark.parametrize("name", [
    "", "mean", "mean-w16", "mean-w16-causal-mlp", "mean-w16-causal-mlp-O0-", "mean-w16-causal-mlp-O0-n8-x",
    " mean-w16-causal-mlp-O0", "mean-w16-causal-mlp-O0\n", "MEAN-w16-causal-mlp-O0", "mean-w-1-causal-mlp-O0",
    "mean-w16-causal-mlp-O0-blind", "encoderless", "none",
])  # fmt: skip
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(UsageError, match="is no design name; expected POOLING-wW-MASK-ADAPTER-OO") as raised:
        Design.parse(name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "field"), [
    ("max-w16-causal-mlp-O0", "pooling"), ("mean-w16-full-mlp-O0", "mask"), ("mean-w16-causal-linear-O0", "adapter"),
    ("mean-w100-causal-mlp-O0", "window"), ("mean-w16-causal-mlp-O0-n0", "ratio"),
])  # fmt: skip
def test_names_of_invalid_designs_name_the_field(name: str, field: str) -> None:
    with pytest.raises(UsageError, match=f"^{field}: "):
        Design.parse(name)


@given(
    st.one_of(
        st.text(max_size=30), st.from_regex(r"[a-z]{1,5}-w\d{1,3}-[a-z]{1,7}-[a-z_]{1,5}-O\d{1,3}", fullmatch=True)
    )
)
def test_any_text_is_a_design_or_a_usage_error(text: str) -> None:
    try:
        design = Design.parse(text)
    except UsageError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert Design.parse(design.name) == design


def test_a_design_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Design().window = 8  # ty: ignore[invalid-assignment]
