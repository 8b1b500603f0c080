"""A step compiles into one graph, for every design and whatever the lengths; and its bfloat16 is near float32.

Where only the graph is in question the backend is `eager`, which runs what Dynamo traced; `aot_eager` traces the
backward pass too; `inductor` writes kernels.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle, product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention
from torch.optim.lr_scheduler import LambdaLR

from search_space import transformer
from search_space.axes.adapter import ADAPTERS
from search_space.axes.pooling import POOLINGS
from search_space.compressor import Compressor
from search_space.design import CONTROLS, MASKS, Design
from search_space.layout import TASKS, Batch, Sample, lay_out
from tests.search_space.cases import DECODER, ENCODER, SHARED, SPECIALS, build, make, mixture
from trainer import optim
from trainer.recipe import Recipe

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")

ONE_LAYER = replace(SHARED, encoder=replace(ENCODER, layers=1), decoder=replace(DECODER, layers=1))
BASE = Design("mean", ratio=2, window=6, overlap=2, mask="causal", adapter="mlp")
COMPRESSORS = [
    BASE.but(pooling=pooling, mask=mask, adapter=adapter)
    for pooling, mask, adapter in product(POOLINGS, MASKS, ADAPTERS)
]
CONTROLLED = [Design("mean", ratio=2, control=control) for control in CONTROLS]
EVERY = pytest.mark.parametrize("design", COMPRESSORS + CONTROLLED, ids=lambda d: d.name)
COVER = pytest.mark.parametrize(  # each choice of each axis at least once
    "design",
    [
        BASE.but(pooling=pooling, mask=mask, adapter=adapter)
        for pooling, mask, adapter in zip(POOLINGS, cycle(MASKS), cycle(ADAPTERS), strict=False)
    ]
    + CONTROLLED,
    ids=lambda d: d.name,
)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a compiler")
DEVICES = pytest.mark.parametrize("device", [
    "cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
])  # fmt: skip


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing compiled before, and nothing left for other tests."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def batch_of(model: Compressor, samples: list[Sample] | None = None, device: str = "cpu") -> Batch:
    batch = lay_out(samples or mixture(), model.design, SPECIALS, model.size.positions)
    return move_data_to_device(batch, device)


def loss_of(model: Compressor, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch).float(), batch.target_P)


def many(count: int, fewest: int, most: int) -> list[list[Sample]]:
    """Steps of any tasks and lengths."""
    rng = np.random.default_rng(0)

    def sample(document: int) -> Sample:
        task, length = TASKS[rng.integers(len(TASKS))], int(rng.integers(8, 40))
        return make(task, length, (int(rng.integers(1, length)),) if task == "continue" else (), document)

    return [[sample(i) for i in range(rng.integers(fewest, most + 1))] for _ in range(count)]


def gradients(model: Compressor, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def assert_equals_eager(design: Design, compiled: Callable[[Compressor, Batch], Tensor]) -> None:
    model = build(design, ONE_LAYER)
    batch = batch_of(model)
    expected, actual = loss_of(model, batch), compiled(model, batch)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    names = [name for name, _ in model.named_parameters()]
    for name, a, b in zip(names, gradients(model, actual), gradients(model, expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=3e-6, msg=lambda m, n=name: f"gradient of {n}: {m}")


# --- one graph ------------------------------------------------------------------------------------------------------


@EVERY
def test_forward_and_loss_are_one_graph(design: Design) -> None:
    assert_equals_eager(design, torch.compile(loss_of, backend="eager", fullgraph=True, dynamic=False))


@pytest.mark.slow
@COVER
def test_the_backward_pass_is_traced_as_well(design: Design) -> None:
    assert_equals_eager(design, torch.compile(loss_of, backend="aot_eager", fullgraph=True, dynamic=False))


@pytest.mark.slow
def test_block_sparse_attention_is_part_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a GPU, with its tiles: not a graph of its own, and the same loss and gradients as a dense mask."""
    model = build(BASE.but(mask="bidirectional", adapter="attn_mlp"), ONE_LAYER)
    batch = batch_of(model)
    expected = gradients(model, loss_of(model, batch))
    monkeypatch.setattr(transformer, "takes_block_mask", lambda device, head_width: True)
    monkeypatch.setattr(flex_attention, "_validate_device", lambda query, key, value: None)  # no kernel is compiled
    compiled = torch.compile(loss_of, backend="aot_eager", fullgraph=True, dynamic=False)
    for a, b in zip(gradients(model, compiled(model, batch)), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("design", [
    BASE, BASE.but(pooling="eos", mask="bidirectional", adapter="attn_mlp"),
], ids=lambda d: d.name)  # fmt: skip
def test_lengths_do_not_compile_again(design: Design) -> None:
    """One graph for steps of any lengths, where each is packed into several rows."""
    model, counter = build(design, ONE_LAYER), CompileCounterWithBackend("eager")
    compiled = torch.compile(loss_of, backend=counter, fullgraph=True, dynamic=True)
    shapes = set()
    for samples in many(8, fewest=12, most=24):
        batch = batch_of(model, samples)
        torch.testing.assert_close(compiled(model, batch), loss_of(model, batch), rtol=1e-6, atol=1e-6)
        shapes.add(batch.token_RT.shape)
    assert len(shapes) == 8 and min(rows for rows, _ in shapes) > 1
    assert counter.frame_count == 1


@pytest.mark.slow
def test_few_samples_compile_a_bounded_number_of_times() -> None:
    """A single row, and rows without padding, are graphs of their own: fewer than torch's limit of 8."""
    model, counter = build(BASE, ONE_LAYER), CompileCounterWithBackend("eager")
    compiled = torch.compile(loss_of, backend=counter, fullgraph=True, dynamic=True)
    for samples in many(30, fewest=1, most=4):
        batch = batch_of(model, samples)
        torch.testing.assert_close(compiled(model, batch), loss_of(model, batch), rtol=1e-6, atol=1e-6)
    assert counter.frame_count <= 8


@pytest.mark.slow
def test_the_optimizer_compiles() -> None:
    """Not into one graph, since torch breaks it where AdamW begins; but once, whatever the rate."""
    losses = []
    for compiled in (False, True):
        model = build(BASE, ONE_LAYER)
        optimizer = optim.build(model, Recipe().optim)
        schedule, batch = LambdaLR(optimizer, lambda step: 1 / (1 + step)), batch_of(model)
        counter = CompileCounterWithBackend("eager")
        step = torch.compile(optimizer.step, backend=counter) if compiled else optimizer.step
        graphs = []
        for _ in range(6):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            step()
            schedule.step()
            losses.append(loss.item())
            graphs.append(counter.frame_count)
        assert graphs[1:] == graphs[1:2] * 5
        assert (graphs[0] > 0) == compiled
    assert losses[6:] == pytest.approx(losses[:6], rel=1e-4)
    assert losses[5] < losses[0]


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_kernels_equal_eager(precision: str) -> None:
    """The backend that training uses, with steps of two lengths; without encoder layers, whose kernels are alike."""
    model = build(BASE.but(control="encoderless"), ONE_LAYER)
    compiled = torch.compile(loss_of, fullgraph=True, dynamic=True)
    tolerance = 0.15 if precision == "bf16-mixed" else 1e-4
    for samples in many(2, fewest=12, most=24):
        batch = batch_of(model, samples)
        expected = loss_of(model, batch)
        wanted = torch.cat([g.flatten() for g in gradients(model, expected)])
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            actual = compiled(model, batch)
        found = torch.cat([g.flatten() for g in gradients(model, actual)])
        assert abs(actual - expected) <= 0.1 * tolerance * expected
        assert (found - wanted).norm() <= tolerance * wanted.norm()


# --- bfloat16 -------------------------------------------------------------------------------------------------------


@DEVICES
@EVERY
def test_bfloat16_is_near_float32(design: Design, device: str) -> None:
    """Over three seeds of these designs logits are off by 0.9% and at most 1.7%, gradients by 2.6% and at most 9.8%."""
    results = []
    for autocast in (False, True):
        model = build(design).to(device if autocast else "cpu")
        batch = batch_of(model, device=device if autocast else "cpu")
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            logits = model(batch)
        assert logits.dtype == (torch.bfloat16 if autocast else torch.float32)
        loss = F.cross_entropy(logits.float(), batch.target_P)
        results.append((logits.float().cpu(), torch.cat([g.flatten().cpu() for g in gradients(model, loss)])))
    (logits, grads), (rounded_logits, rounded_grads) = results
    assert rounded_logits.isfinite().all() and rounded_grads.isfinite().all()
    assert not torch.equal(logits, rounded_logits)
    assert (rounded_logits - logits).norm() <= 0.03 * logits.norm()
    assert (rounded_grads - grads).norm() <= 0.15 * grads.norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@COVER
def test_a_compiled_step_on_a_gpu(design: Design) -> None:
    """Kernels, tiles and bfloat16 at once, for heads that are wide enough for them."""
    wide = {"head_width": 32, "layers": 1}
    size = replace(SHARED, encoder=replace(ENCODER, **wide), decoder=replace(DECODER, **wide))
    model = build(design, size)
    batch = batch_of(model)
    expected = loss_of(model, batch)
    wanted = torch.cat([g.flatten() for g in gradients(model, expected)])
    model = model.cuda()
    with torch.autocast("cuda", torch.bfloat16):
        actual = torch.compile(loss_of, fullgraph=True, dynamic=True)(model, batch_of(model, device="cuda"))
    found = torch.cat([g.flatten() for g in gradients(model, actual)]).cpu()
    assert (found - wanted).norm() <= 0.15 * wanted.norm()
