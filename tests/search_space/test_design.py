"""Designs: names read back, no twins, errors that say what to do."""

from dataclasses import FrozenInstanceError, asdict, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search_space.axes.adapter import ADAPTERS
from search_space.axes.pooling import POOLINGS
from search_space.design import AXES, CONTROLS, MASKS, Design, ImpossibleDesign
from search_space.errors import UsageError
from search_space.layout import lay_out
from tests.search_space.cases import APART, PUBLISHED, SHARED, SPECIALS, build, combinations, designs, mixture

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
    ("conv-w16-causal-mlp-O0-enc_l4f512-dec_l4-tied-consecutive",
     {"pooling": "conv", "window": 16, "encoder": "l4f512", "decoder": "l4", "embeddings": "tied",
      "positions": "consecutive"}),
    ("mean-w1024-causal-mlp-O0-n4-enc_0.6b-dec_8b", {"ratio": 4, "encoder": "0.6b", "decoder": "8b"}),
    ("uncompressed", {"control": "uncompressed"}),
    ("blind-dec_l4-spread", {"control": "blind", "decoder": "l4", "positions": "spread"}),
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


def test_an_encoderless_control_keeps_of_its_encoder_what_it_uses() -> None:
    bare = Design(ratio=4, control="encoderless")
    assert bare.but(encoder="l3h8k8") == bare != bare.but(encoder="d64") == bare.but(encoder="l1d64f9")
    deep = bare.but(adapter="attn_mlp", encoder="l3h8k8")
    assert deep.encoder == "h8k8" and deep.but(adapter="mlp_attn").encoder == "base"


@pytest.mark.parametrize(("spelled", "name"), [
    ("l28d1024h16k8e128f3072", "0.6b"), ("l36d2560h32k8e128f9728", "4b"), ("l036d4096h32k8e128f12288", "8b"),
])  # fmt: skip
def test_a_published_shape_has_one_name(spelled: str, name: str) -> None:
    assert Design(encoder=spelled) == Design(encoder=name)
    tied = 0 if name == "8b" else 1
    assert Design(decoder=f"{spelled}t{tied}") == Design(decoder=name)
    assert Design(decoder=f"{spelled}t{1 - tied}") != Design(decoder=name) != Design(decoder=spelled)


def computation(design: Design) -> tuple[tuple[Any, ...], tuple[float, ...]]:
    """Shapes of the weights, and what the model says of a fixed batch with weights that go by name."""
    model = build(design)
    with torch.no_grad():
        logits = model(lay_out(mixture(), design, SPECIALS, model.size.positions))
    shapes = tuple((name, tuple(weight.shape)) for name, weight in model.named_parameters())
    return shapes, tuple(round(float(x), 4) for x in logits[:, :3].flatten())


def test_no_two_designs_build_the_same_computation() -> None:
    """1,920 dictionaries of axes: as many computations as designs, neither twins nor silent axes."""
    raw = combinations(
        pooling=[*POOLINGS], ratio=[2, 4], window=[4, 8], overlap=[0, 3], mask=[*MASKS], adapter=[*ADAPTERS],
        depth=[1, 2], control=["none", *CONTROLS],
    )  # fmt: skip
    everything = [Design(**axes) for axes in raw]
    found = {computation(design): design for design in set(everything)}
    assert len(everything) == 1920
    assert len(found) == len(set(everything)) == 402


def test_no_two_designs_build_the_same_computation_at_one_size() -> None:
    """The axes that a size decides too: resolved at the size, equal designs and equal computations are the same."""
    raw = combinations(
        pooling=["mean", "attention"], adapter=[*ADAPTERS], control=["none", *CONTROLS],
        encoder=["base", "l2", "l1h2k2"], decoder=["base", "l1", "l2t0"],
        embeddings=["base", "tied", "separate"], positions=["base", "spread", "consecutive"],
    )  # fmt: skip
    everything = [Design(ratio=2, window=4, **axes) for axes in raw]
    resolved = {SHARED.resolve(design): design for design in everything}
    found = {computation(design) for design in resolved.values()}
    assert len(everything) == 1944
    assert len(found) == len(resolved) < len(set(everything))


@settings(max_examples=20, deadline=None)
@given(designs(st.sampled_from((2, 4)), st.sampled_from((1, 2, 4))))
def test_resolving_leaves_the_computation_and_nothing_to_the_size(design: Design) -> None:
    resolved = SHARED.resolve(design)
    assert SHARED.resolve(resolved) == APART.resolve(resolved) == resolved == Design.parse(resolved.name)
    assert computation(resolved) == computation(design)


@settings(max_examples=10, deadline=None)
@given(designs(st.sampled_from((2, 4)), st.sampled_from((1, 2, 4))))
def test_equal_designs_build_the_same_computation(design: Design) -> None:
    assert computation(design) == computation(Design.parse(design.name))


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("axes", "says"), [
    ({"pooling": "max"}, ("pooling", "'max'", "mean, concat, eos, attention, conv")),
    ({"mask": "full"}, ("mask", "'full'", "causal, bidirectional")),
    ({"adapter": "linear"}, ("adapter", "'linear'", "mlp, attn_mlp, mlp_attn")),
    ({"control": "random"}, ("control", "'random'", "none, uncompressed, blind, encoderless")),
    ({"ratio": 1}, ("ratio", "1", "at least 2")),
    ({"ratio": 2.0}, ("ratio", "2.0", "whole number")),
    ({"ratio": "16"}, ("ratio", "'16'", "whole number")),
    ({"window": 0}, ("window", "0", "at least 1")),
    ({"window": 1000}, ("window", "1000", "ratio 16", "mean-w992-causal-mlp-O0 or mean-w1008-causal-mlp-O0")),
    ({"window": 8}, ("window", "8", "ratio 16", "nearest possible: mean-w16-causal-mlp-O0")),
    ({"encoder": "l0"}, ("encoder", "'l0'", "encoderless", "nearest possible: mean-w1024-causal-mlp-O0-enc_l1")),
    ({"encoder": "7b"}, ("encoder", "'7b'", "0.6b, 4b, 8b", "l layers, d width")),
    ({"encoder": "t0"}, ("encoder", "'t0'", "f feedforward)")),
    ({"encoder": "d4l2"}, ("encoder", "'d4l2'", "l4d256")),
    ({"encoder": ""}, ("encoder", "''", "base")),
    ({"decoder": "l0"}, ("decoder", "'l0'", "layers", "mean-w1024-causal-mlp-O0-dec_l1")),
    ({"decoder": "d8t2"}, ("decoder", "'d8t2'", "t tied_head)")),
    ({"embeddings": "shared"}, ("embeddings", "'shared'", "base, tied, separate")),
    ({"positions": "packed"}, ("positions", "'packed'", "base, spread, consecutive")),
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


@given(st.data())
def test_an_impossible_design_leads_to_possible_ones(data: st.DataObject) -> None:
    """Whatever is put in, each suggestion can be built and keeps every axis that was not at fault."""
    word = st.one_of(st.text(max_size=6), st.sampled_from(("mean", "causl", "l0", "d0h3", "4b", "t3", "base")))
    number = st.one_of(st.integers(-3, 40), st.floats(allow_nan=True), st.booleans())
    axes = {axis: data.draw(number if isinstance(getattr(Design(), axis), int) else word) for axis in AXES}
    axes = {axis: axes[axis] for axis in data.draw(st.sets(st.sampled_from(AXES)))}
    try:
        Design(**axes)
    except ImpossibleDesign as error:
        at_fault = str(error).split(":")[0]
        assert error.nearest and "\n" not in str(error)
        for design in error.nearest:
            assert design.name in str(error) and Design.parse(design.name) == design
            assert repr(getattr(design, at_fault)) != repr(axes.get(at_fault, getattr(Design(), at_fault)))


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
