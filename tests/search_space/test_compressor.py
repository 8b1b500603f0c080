"""The compressor equals its slow reference, a token moves exactly what the definitions say, and no axis is idle."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from search_space.axes.pooling import POOLINGS
from search_space.axes.positions import Positions
from search_space.compressor import Compressor, Size
from search_space.design import CONTROLS, MASKS, Design
from search_space.errors import UsageError
from search_space.layout import TASKS, Batch, Sample, Task, lay_out
from tests.search_space import reference
from tests.search_space.cases import (
    APART,
    SHARED,
    SPECIALS,
    WORDS,
    build,
    make,
    mixture,
    positions,
    randomise,
    samples,
    tiny_designs,
)

BASE = Design(pooling="mean", ratio=2, window=6, overlap=2, mask="causal", adapter="mlp")


def batch_of(batch: list[Sample], model: Compressor) -> Batch:
    return lay_out(batch, model.design, SPECIALS, model.size.positions)


def logits_of(model: Compressor, batch: list[Sample]) -> Tensor:
    with torch.no_grad():
        return model(batch_of(batch, model))


def latents_of(model: Compressor, batch: list[Sample]) -> Tensor:
    inputs = batch_of(batch, model).encoder
    assert inputs is not None
    with torch.no_grad():
        return model.encode(inputs)


def with_token(sample: Sample, at: int) -> Sample:
    """The sample with one token replaced by another word."""
    tokens = sample.tokens.copy()
    tokens[at] = (tokens[at] + 1) % WORDS
    return replace(sample, tokens=tokens)


# --- equal to the reference -----------------------------------------------------------------------------------------


def assert_equals_reference(design: Design, size: Size, batch: list[Sample], seed: int = 0) -> None:
    """Logits at scored positions, what they are scored against, and the gradient of every weight.

    In double precision, where the order of sums makes no difference worth a tolerance.
    """
    fast, slow = build(design, size, seed).double(), build(design, size, seed).double()
    inputs = batch_of(batch, fast)
    expected = reference.forward(slow, batch, SPECIALS)
    assert inputs.target_P.tolist() == expected.targets
    assert [TASKS[i] for i in inputs.task_P] == expected.tasks
    assert inputs.document_P.tolist() == expected.documents

    logits = fast(inputs)
    torch.testing.assert_close(logits, expected.logits, rtol=1e-9, atol=1e-11)
    F.cross_entropy(logits, inputs.target_P).backward()
    reference.loss(expected).backward()
    for (name, a), (_, b) in zip(fast.named_parameters(), slow.named_parameters(), strict=True):
        # The reference never touches what a step does not need; the index tensors multiply it by zero.
        actual, wanted = (torch.zeros_like(p) if p.grad is None else p.grad for p in (a, b))
        torch.testing.assert_close(actual, wanted, rtol=1e-8, atol=1e-11, msg=lambda m, n=name: f"gradient of {n}: {m}")


@settings(max_examples=50, deadline=None)
@given(
    tiny_designs, st.sampled_from((SHARED, APART)), positions, st.sampled_from((0.0, 2.0)), samples(), st.integers(0, 9)
)
def test_equals_the_reference(
    design: Design, size: Size, where: Positions, phase: float, batch: list[Sample], seed: int
) -> None:
    assert_equals_reference(design, replace(size, positions=where, phase_std=phase), batch, seed)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("adapter", ["mlp", "attn_mlp", "mlp_attn"])
def test_equals_the_reference_on_a_grid(pooling: str, mask: str, adapter: str) -> None:
    """The corners that a random search may miss: wide overlap, overlap of part of a block, deep adapters."""
    design = Design(pooling, ratio=3, window=6, overlap=4, mask=mask, adapter=adapter, depth=2)
    assert_equals_reference(design, SHARED, mixture())
    assert_equals_reference(design.but(overlap=6), APART, mixture())


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("size", [SHARED, APART], ids=["shared", "apart"])
def test_controls_equal_the_reference(control: str, size: Size) -> None:
    for pooling in POOLINGS if control == "encoderless" else ("mean",):
        assert_equals_reference(Design(pooling, ratio=4, window=8, control=control), size, mixture())


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_does_not_depend_on_its_company(task: Task) -> None:
    """Packed with others or alone, in any order: the same logits."""
    sample = make(task, 17, (5,) if task == "continue" else (), document=9)
    for design in (BASE, BASE.but(pooling="eos", mask="bidirectional", adapter="attn_mlp")):
        model = build(design)
        expected = logits_of(model, [sample])
        for batch in ([sample, *mixture()], [*mixture(), sample], [*mixture()[3:], sample, *mixture()[:3]]):
            inputs = batch_of(batch, model)
            own = model(inputs)[inputs.document_P == 9]
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=2e-5)


# --- what a token reaches -------------------------------------------------------------------------------------------


def reached(design: Design, length: int, token: int) -> list[bool]:
    """Which latents of a span of `length` a raw token moves, by the definitions."""
    moved = []
    for start in range(0, length, design.window):
        stop = min(start + design.window, length)
        first, last = max(0, start - design.overlap), stop
        if design.mask == "bidirectional":
            last = min(length, stop + design.overlap)
        for block in range(start, stop, design.ratio):
            end = min(block + design.ratio, stop)
            if design.control == "encoderless":
                moved.append(design.pooling != "eos" and block <= token < end)
            elif design.mask == "bidirectional" or design.pooling == "eos":  # markers stand behind all of it
                moved.append(first <= token < last)
            else:
                moved.append(first <= token < end)
    if design.adapter != "mlp" and any(moved):
        return [True] * len(moved)
    return moved


def assert_reach(design: Design, lengths: list[int], size: Size = SHARED) -> None:
    """Every token in turn: the latents of its span that it moves, and none of another span's."""
    batch = [make("reconstruct", length, document=i) for i, length in enumerate(lengths)]
    model = build(design, size)
    before = latents_of(model, batch)
    for i, length in enumerate(lengths):
        for token in range(length):
            changed = [with_token(s, token) if s is batch[i] else s for s in batch]
            moved = (latents_of(model, changed) != before).any(-1).tolist()
            expected = [m for j, n in enumerate(lengths) for m in reached(design, n, token if j == i else -(10**6))]
            assert moved == expected, f"{design.name}: token {token} of {length}"


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("adapter", ["mlp", "attn_mlp", "mlp_attn"])
def test_a_token_moves_the_latents_that_may_see_it(pooling: str, mask: str, adapter: str) -> None:
    """Windows, blocks and overlap of a few hundred tokens at once, every token of every span perturbed."""
    for window, overlap in ((2, 0), (6, 0), (6, 1), (6, 6)):
        assert_reach(Design(pooling, 2, window, overlap, mask, adapter, depth=1), [15, 5, 2])


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("adapter", ["mlp", "mlp_attn"])
def test_without_an_encoder_a_token_moves_its_own_latent(pooling: str, adapter: str) -> None:
    assert_reach(Design(pooling, 3, adapter=adapter, window=3, control="encoderless"), [10, 4])


@settings(max_examples=20, deadline=None)
@given(tiny_designs.filter(lambda d: d.control in ("none", "encoderless")), st.integers(1, 20), st.integers(1, 9))
def test_reach_of_any_design(design: Design, first: int, second: int) -> None:
    assert_reach(design, [first, second])


def test_layers_do_not_widen_the_reach() -> None:
    """Two encoder layers see no further than one: windows are encoded apart from each other."""
    size = replace(SHARED, encoder=replace(SHARED.encoder, layers=3))
    for mask in MASKS:
        assert_reach(Design("mean", 2, 4, 2, mask), [13, 3], size)


@pytest.mark.parametrize("mask", MASKS)
def test_overlap_stops_at_the_end_of_the_span(mask: str) -> None:
    """Raw text behind a wrapped span is what is to be predicted: no latent of the span may know it."""
    sample = make("continue", 24, (8, 16, 20))
    model = build(Design("mean", 2, 4, 4, mask, "attn_mlp"))
    before = latents_of(model, [sample])
    for token in [*range(8, 16), *range(20, 24)]:
        assert torch.equal(latents_of(model, [with_token(sample, token)]), before)


@pytest.mark.parametrize("name", [
    "mean-w4-causal-mlp-O0-n2", "mean-w4-bidirectional-mlp-O4-n2", "concat-w8-causal-attn_mlp-O3-n4",
    "eos-w4-bidirectional-mlp_attn-O2-n2", "mean-w4-causal-mlp-O0-n4-encoderless", "uncompressed", "blind",
])  # fmt: skip
def test_no_prediction_knows_its_target(name: str) -> None:
    """A raw token moves the logits behind it, never those at or before its own prediction; and no other sample's."""
    sample, other = make("continue", 24, (7, 15, 19), document=0), make("continue", 9, (4,), document=1)
    raw = [*range(7, 15), *range(19, 24)]
    model = build(Design.parse(name))
    before = logits_of(model, [sample, other])
    for token in range(24):
        moved = (logits_of(model, [with_token(sample, token), other]) != before).any(-1).tolist()
        sees = [token < target and not (name == "blind" and token not in raw) for target in raw]
        if "encoderless" in name or "w4-causal-mlp" in name:  # nothing hides a wrapped token
            assert moved == sees + [False] * 5
        else:
            assert all(s or not m for m, s in zip(moved, sees + [False] * 5, strict=True))
            assert any(moved) == any(sees)


def test_parallel_reconstruction_hears_of_the_text_through_latents_alone() -> None:
    sample = make("parallel", 12)
    changed = with_token(sample, 5)
    for name, heard in (("mean-w4-causal-mlp-O0-n4", True), ("uncompressed", True), ("blind", False)):
        model = build(Design.parse(name))
        assert torch.equal(logits_of(model, [sample]), logits_of(model, [changed])) != heard
    model = build(BASE)  # behind the latents only masks: what is asked for later cannot hear what was asked before
    tokens = batch_of([sample], model).token_RT[0]
    assert set(tokens[-12:].tolist()) == {SPECIALS.mask}


# --- no axis is idle ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [
    *({"pooling": pooling} for pooling in POOLINGS if pooling != "mean"),
    {"ratio": 3}, {"window": 2, "overlap": 0}, {"window": 12},
    {"overlap": 0}, {"overlap": 1}, {"overlap": 6}, {"mask": "bidirectional"},
    {"adapter": "attn_mlp"}, {"adapter": "mlp_attn"},
    {"encoder": "l1"}, {"encoder": "h2k1"}, {"encoder": "e4"}, {"encoder": "k4"}, {"encoder": "f8"},
    {"embeddings": "separate"}, {"embeddings": "separate", "encoder": "d24"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("base", [BASE, BASE.but(pooling="eos"), BASE.but(adapter="mlp_attn")], ids=lambda d: d.name)
def test_every_axis_changes_latents_and_logits(base: Design, changes: dict[str, Any]) -> None:
    """Same weights wherever names and shapes agree; decoder and embedding always do."""
    axis, value = next(iter(changes.items()))
    if getattr(base, axis) == value:
        changes = {axis: getattr(BASE, axis)}
    other = base.but(**changes)
    assert other != base
    a, b = build(base), build(other)
    for name, weight in a.decoder.state_dict().items():
        assert torch.equal(weight, b.decoder.state_dict()[name])
    one, two = latents_of(a, mixture()), latents_of(b, mixture())
    assert one.shape != two.shape or (one - two).abs().max() > 1e-3
    assert (logits_of(a, mixture()) - logits_of(b, mixture())).abs().max() > 1e-3


def test_every_control_changes_the_logits() -> None:
    logits = [logits_of(build(Design("mean", 2, 4, control=c)), mixture()) for c in ("none", *CONTROLS)]
    for i, one in enumerate(logits):
        assert all((one - two).abs().max() > 1e-2 for two in logits[:i])


@pytest.mark.parametrize("adapter", ["attn_mlp", "mlp_attn"])
def test_depth_changes_the_latents(adapter: str) -> None:
    latents = [latents_of(build(BASE.but(adapter=adapter, depth=d)), mixture()) for d in (1, 2, 3)]
    for i, one in enumerate(latents):
        assert all((one - two).abs().max() > 1e-3 for two in latents[:i])


@pytest.mark.parametrize("change", [
    {"positions": "consecutive"}, {"decoder": "l1"}, {"decoder": "h4k2"}, {"decoder": "e4"}, {"decoder": "f8"},
    {"decoder": "t0"},
], ids=str)  # fmt: skip
def test_what_only_the_decoder_knows_changes_logits_alone(change: dict[str, str]) -> None:
    """Not the latents of poolings that read the text; a marker is told its position."""
    a, b = build(BASE), build(BASE.but(**change))
    assert torch.equal(latents_of(a, mixture()), latents_of(b, mixture()))
    assert (logits_of(a, mixture()) - logits_of(b, mixture())).abs().max() > 1e-3
    marked = [latents_of(build(BASE.but(pooling="eos", **c)), mixture()) for c in ({}, change)]
    assert torch.equal(*marked) == ("positions" not in change)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_span_of_one_window_knows_no_window(pooling: str) -> None:
    """Window and overlap change nothing else: where a span fits in the window they are idle, to the last bit."""
    batch = [make("continue", 12, (8,), document=0), make("reconstruct", 5, document=1)]
    logits = [
        logits_of(build(Design(pooling, 2, window, overlap, mask)), batch)
        for mask in MASKS
        for window, overlap in ((8, 0), (8, 8), (64, 16))
    ]
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])
    assert torch.equal(logits[3], logits[4]) and torch.equal(logits[3], logits[5])
    assert not torch.equal(logits[0], logits[3])


def test_positions_and_phases_change_the_computation() -> None:
    for change in ({"positions": "consecutive"}, {"phase_std": 0.0}):
        logits = [logits_of(build(BASE, size), mixture()) for size in (SHARED, replace(SHARED, **change))]
        assert (logits[0] - logits[1]).abs().max() > 1e-2


@pytest.mark.parametrize("design", [
    BASE, BASE.but(pooling="concat", adapter="attn_mlp", depth=2), BASE.but(pooling="eos", mask="bidirectional"),
    BASE.but(adapter="mlp_attn"), Design("mean", 2, control="encoderless"), Design(control="uncompressed"),
    Design(control="blind"),
], ids=lambda d: d.name)  # fmt: skip
@pytest.mark.parametrize("size", [SHARED, APART], ids=["shared", "apart"])
def test_every_weight_learns(design: Design, size: Size) -> None:
    """A weight without a gradient would be dead freight, or a part that is built and not used."""
    model = build(design, size)
    inputs = batch_of(mixture(), model)
    F.cross_entropy(model(inputs), inputs.target_P).backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


# --- construction ---------------------------------------------------------------------------------------------------


def test_controls_without_latents_build_no_encoder() -> None:
    for control in ("uncompressed", "blind"):
        model = Compressor(Design(control=control), SHARED)
        assert {n.split(".")[0] for n, _ in model.named_parameters()} == {"decoder"}
    bare = Compressor(Design(control="encoderless"), APART)
    assert not [n for n, _ in bare.named_parameters() if n.startswith("encoder.layers")]


def test_a_seed_gives_the_same_weights() -> None:
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(Compressor(BASE, SHARED))
    one, same, other = (torch.cat([p.flatten() for p in m.parameters()]) for m in models)
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_silent_encoder_starts_as_the_identity() -> None:
    """At the start latents are those of no encoder at all; the layers then have to earn their change."""
    for adapter in ("mlp", "attn_mlp", "mlp_attn"):
        torch.manual_seed(0)
        model = Compressor(BASE.but(adapter=adapter), SHARED)
        bare = Compressor(Design("mean", 2, control="encoderless"), SHARED)
        bare.load_state_dict(model.state_dict(), strict=False)
        torch.testing.assert_close(latents_of(model, mixture()), latents_of(bare, mixture()))
        loud = Compressor(BASE.but(adapter=adapter), replace(SHARED, silent_encoder=False))
        loud.load_state_dict(bare.state_dict(), strict=False)
        assert (latents_of(loud, mixture()) - latents_of(bare, mixture())).abs().max() > 1e-2


def test_logits_start_at_unit_scale() -> None:
    torch.manual_seed(0)
    model = Compressor(Design("mean", 8, 64), Size())
    batch = batch_of([make("parallel", 64, document=i) for i in range(4)], model)
    with torch.no_grad():
        assert 0.8 < float(model(batch).std()) < 1.25


def test_widths_that_cannot_share_an_embedding() -> None:
    with pytest.raises(UsageError, match="embeddings: encoder width 16 and decoder width 24") as raised:
        Compressor(BASE, replace(APART, embeddings="tied"))
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_latents_in_bfloat16() -> None:
    """Under autocast the result is that of float32 up to rounding."""
    model = build(BASE)
    expected = logits_of(model, mixture())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = logits_of(model, mixture()).float()
    assert (actual - expected).abs().mean() < 0.05 * expected.std()


def test_randomise_leaves_nothing_at_its_start() -> None:
    """The equalities above would say little about silenced layers."""
    before = Compressor(BASE.but(adapter="attn_mlp"), SHARED)
    weights = {n: p.clone() for n, p in before.named_parameters()}
    randomise(before)
    assert all((p != weights[n]).any() for n, p in before.named_parameters())
    assert all(p.any() for p in before.parameters())
