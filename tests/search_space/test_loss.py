"""The chunked loss is the plain one: value, gradients and scores, whatever the chunk; and no (P, V) tensor exists."""

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from search_space.compressor import Compressor
from search_space.design import Design
from search_space.layout import Batch, lay_out
from search_space.loss import linear_cross_entropy, linear_scores
from tests.search_space.cases import SHARED, SPECIALS, build, mixture

DESIGN = Design("mean", ratio=2, window=6, overlap=2)
SIZES = {"tied": SHARED, "untied": replace(SHARED, decoder=replace(SHARED.decoder, tied_head=False))}
ONE = 4 * SHARED.vocab  # bytes of the scores of one position


def head(count: int, width: int, vocab: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight and targets, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, width, generator=generator, dtype=torch.double).requires_grad_()
    weight = torch.randn(vocab, width, generator=generator, dtype=torch.double).requires_grad_()
    return hidden, weight, torch.randint(0, vocab, (count,), generator=generator)


def model_and_batch(name: str = "tied") -> tuple[Compressor, Batch]:
    model = build(DESIGN, SIZES[name])
    return model, lay_out(mixture(), DESIGN, SPECIALS, model.size.positions)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 50), st.integers(1, 10_000))
def test_any_chunk_gives_the_plain_loss(count: int, width: int, vocab: int, chunk_bytes: int) -> None:
    hidden, weight, target = head(count, width, vocab, seed=count)
    results = []
    for loss in (
        F.cross_entropy(hidden @ weight.T, target, reduction="sum"),
        linear_cross_entropy(hidden, weight, target, chunk_bytes),
    ):
        results.append((loss, *torch.autograd.grad(loss / max(1, count), [hidden, weight])))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("positions", [1, 7, 1000])
def test_gradients_of_the_model(name: str, positions: int) -> None:
    """Of every weight, in float32, with a ragged last chunk and without chunks; a tied head has two parts."""
    model, batch = model_and_batch(name)
    assert len(batch.target_P) % 7 and len(batch.target_P) < 1000
    weights = dict(model.named_parameters())
    expected = F.cross_entropy(model(batch), batch.target_P)
    actual = model.loss(batch, positions * ONE) / len(batch.target_P)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
    grads = (torch.autograd.grad(loss, list(weights.values())) for loss in (actual, expected))
    for key, a, b in zip(weights, *grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda m, n=key: f"{n}: {m}")


@pytest.mark.parametrize("positions", [1, 7, 1000])
def test_scores_are_those_of_the_logits(positions: int) -> None:
    model, batch = model_and_batch()
    logits = model(batch)
    loss, right = model.scores(batch, positions * ONE)
    torch.testing.assert_close(loss, F.cross_entropy(logits, batch.target_P, reduction="none"), rtol=0, atol=1e-5)
    assert torch.equal(right, logits.argmax(-1) == batch.target_P)
    assert not loss.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(model.loss(batch, positions * ONE), loss.sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("chunked", "frozen"), product([False, True], ["neither", "hidden", "weight"]))
def test_only_what_is_asked_for_gets_a_gradient(chunked: bool, frozen: str) -> None:
    hidden, weight, target = head(20, 4, 30)
    for name, tensor in (("hidden", hidden), ("weight", weight)):
        tensor.requires_grad_(name != frozen)
    linear_cross_entropy(hidden, weight, target, 7 * 4 * 30 if chunked else 2**20).backward()
    assert (hidden.grad is None, weight.grad is None) == (frozen == "hidden", frozen == "weight")


def test_chunks_under_autocast_sum_in_float32() -> None:
    """The scores are bfloat16 as without chunks; loss and gradients are as near to float32's as the plain ones are."""
    *inputs, target = head(60, 16, 90)
    hidden, weight = (t.detach().float().requires_grad_() for t in inputs)
    exact = linear_cross_entropy(hidden, weight, target)
    wanted = torch.autograd.grad(exact, [hidden, weight])
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, target, 7 * 4 * 90)
    found = torch.autograd.grad(loss, [hidden, weight])
    assert loss.dtype == torch.float32 and 0 < abs(loss - exact) < 0.01 * exact
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.float32 and 0 < (a - b).norm() < 0.02 * b.norm()


class _Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_the_scores_never_exist_at_once() -> None:
    count, width, vocab, positions = 500, 4, 1000, 13
    hidden, weight, target = head(count, width, vocab)
    largest = {}
    for chunk in (positions, count):
        with _Largest() as seen:
            linear_cross_entropy(hidden, weight, target, chunk * 4 * vocab).backward()
            linear_scores(hidden, weight, target, chunk * 4 * vocab)
        largest[chunk] = seen.elements
    assert largest == {positions: positions * vocab, count: count * vocab}


def test_a_second_backward_pass_is_refused() -> None:
    hidden, weight, target = head(20, 4, 30)
    loss = linear_cross_entropy(hidden, weight, target, 7 * 4 * 30)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("chunk", [7, 1000])
def test_one_graph(chunk: int) -> None:
    torch.compiler.reset()
    hidden, weight, target = head(20, 4, 30)
    compiled = torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True, dynamic=False)
    expected = torch.autograd.grad(linear_cross_entropy(hidden, weight, target), [hidden, weight])
    actual = torch.autograd.grad(compiled(hidden, weight, target, chunk * 4 * 30), [hidden, weight])
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
