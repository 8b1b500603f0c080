"""The published loop computes what the vectorised path computes, and the benchmark measures all that it promises."""

import json
import sys
from dataclasses import replace
from math import isfinite

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lclab.__main__ import app, main
from lclab.bench import published
from lclab.bench.timing import alternate, ratio
from search_space.axes import AXES
from search_space.axes.mask import MASKS
from search_space.axes.pooling import POOLINGS
from search_space.design import Design
from search_space.layout import Sample, lay_out
from tests.search_space.cases import APART, SPECIALS, build, mixture, samples

PUBLISHED = ["mean", "concat", "eos"]
SIZE = replace(APART, phase_std=0.0)
TINY = ["--documents", "1", "--layers", "1", "--width", "8", "--pool-width", "2", "--rounds", "1", "--json"]


def assert_equal_to_vectorised(design: Design, items: list[list[Sample]]) -> None:
    """Latents, loss and the gradient of every weight, in double precision."""
    fast, slow = build(design, SIZE).double(), build(design, SIZE).double()
    batch = lay_out([sample for item in items for sample in item], design, SPECIALS, "consecutive")
    assert batch.encoder is not None
    loaded = [published.load(item, design, SPECIALS) for item in items]
    latents = torch.cat([published.encode(slow, item, SPECIALS) for item in loaded])
    torch.testing.assert_close(fast.encode(batch.encoder), latents, rtol=1e-9, atol=1e-11)

    expected, actual = published.loss(slow, loaded, SPECIALS), F.cross_entropy(fast(batch), batch.target_P)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)
    expected.backward()
    actual.backward()
    for (name, a), (_, b) in zip(fast.named_parameters(), slow.named_parameters(), strict=True):
        assert a.grad is not None and b.grad is not None, name
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-11, msg=lambda m, n=name: f"gradient of {n}: {m}")


@pytest.mark.parametrize("pooling", PUBLISHED)
@pytest.mark.parametrize("window", [3, 6, 24])
def test_the_published_loop_computes_the_same(pooling: str, window: int) -> None:
    design = Design(pooling, ratio=3, window=window)
    assert_equal_to_vectorised(design, [[sample] for sample in mixture()])
    assert_equal_to_vectorised(design, [mixture()])


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(PUBLISHED),
    st.integers(2, 4),
    st.integers(1, 4),
    st.integers(0, 9),
    st.sampled_from(MASKS),
    st.data(),
)
def test_the_published_loop_computes_the_same_whatever_the_batch_items(
    pooling: str, ratio: int, blocks: int, overlap: int, mask: str, data: st.DataObject
) -> None:
    batch = data.draw(samples())
    cut = data.draw(st.integers(0, len(batch)))
    items = [item for item in (batch[:cut], batch[cut:]) if item]
    assert_equal_to_vectorised(Design(pooling, ratio, ratio * blocks, overlap, mask), items)


def test_contestants_take_turns_and_the_first_round_does_not_count() -> None:
    ran: list[str] = []
    seconds = alternate({name: lambda n=name: ran.append(n) for name in "abc"}, 4, lambda text: None)
    assert [sorted(ran[i : i + 3]) for i in range(0, 15, 3)] == [["a", "b", "c"]] * 5
    assert len({tuple(ran[i : i + 3]) for i in range(0, 15, 3)}) > 1
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4, "c": 4}


def test_a_ratio_is_that_of_the_minima() -> None:
    found = ratio([4.0, 9.0, 6.0], [2.0, 3.0, 1.0])
    assert (found.value, found.low, found.high) == (4.0, 2.0, 6.0)


def test_bench_model_measures_every_part_and_every_axis() -> None:
    done = CliRunner().invoke(app, ["bench", "model", *TINY])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)

    measured = [(row["window"], row["part"], row["item"]) for row in found["speedups"]]
    parts = [("pool", ""), *((part, item) for part in ("encode", "step") for item in ("sample", "row"))]
    assert sorted(measured) == sorted((window, *part) for window in (16, 256, 1024) for part in parts)
    ratios = [row["ratio"] for row in found["speedups"]] + [row["time"] for row in found["axes"]]
    assert all(0 < r["low"] <= r["high"] and isfinite(r["high"]) and isfinite(r["value"]) for r in ratios)

    changes = [row["change"] for row in found["axes"]]
    assert changes[:2] == ["baseline", "baseline again"] and len(set(changes)) == len(changes)
    for axis in {axis.name for axis in AXES} - {"control"}:
        assert any(axis in change.replace(",", "").split() for change in changes), f"{axis} is not measured"
    for word in {*POOLINGS, *MASKS, "uncompressed", "blind", "encoderless"} - {"mean", "causal"}:
        assert any(word in change for change in changes), f"{word} is not measured"
    assert found["axes"][0]["flops"] == found["axes"][0]["parameters"] == found["axes"][0]["time"]["value"] == 1
    assert all(row["seconds"] > 0 and row["flops"] > 0 and row["parameters"] > 0 for row in found["axes"])


@pytest.mark.parametrize("option", ["documents", "layers", "width", "pool-width", "rounds"])
def test_a_size_below_one_is_one_line_and_exit_code_2(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lclab", "bench", "model", f"--{option}", "0"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    said = capsys.readouterr()
    assert said.err == f"lclab: {option}: 0 is not at least 1\n" and not said.out
