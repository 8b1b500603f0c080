"""Plans on clusters: the memory model against FSDP2 on a CPU, FLOPs against arithmetic by hand, and what must hold."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate as running
from math import ceil

import pytest
import torch
import torch.distributed as dist
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore

from search_space.axes.shape import QWEN3
from search_space.compressor import Compressor, Size
from search_space.cost import forward_flops, products
from search_space.design import Design
from search_space.errors import UsageError
from search_space.layout import lay_out
from search_space.memory import PARTS, Part, part_of, skeleton
from search_space.transformer import Shape
from sweeps.fleet import KINDS, Cluster, choose, laid_out, memory_per_gpu, typical
from sweeps.price import estimate, tokens_of, training_flops
from sweeps.sharding import sharded_memory
from tests.search_space.cases import SPECIALS, make
from trainer.parallel import Parallel
from trainer.plan import Plan, Rates, Stage
from trainer.strategies import shard

BATCH = 4_194_304
DESIGN = Design.parse("mean-w1024-causal-mlp-O0")
PUBLISHED = (  # paper section 3: rates of adapter, encoder, decoder, billions of encoder and decoder tokens
    ("adapter", Rates(1e-3), 17.54, 21.29),
    ("encoder", Rates(6e-5, 6e-5), 35.07, 42.58),
    ("all", Rates(6e-5, 6e-5, 1e-5), 82.43, 100.08),
    ("sft", Rates(3e-5, 3e-5, 3e-5), 29.73, 21.32),
)


def full(encoder: str = "0.6b", decoder: str = "4b", pieces: int = 450) -> Plan:
    size = Size(151_936, QWEN3[encoder], QWEN3[decoder], "separate", "consecutive", 0.0)
    stages = [
        Stage(name, rates, round(d * 1e9 / BATCH), 100, round(e * 1e9), round(d * 1e9), pieces, 0.17)
        for name, rates, e, d in PUBLISHED
    ]
    return Plan("full", DESIGN.name, stages, "corpus", size=size)


SHAPE = Shape(layers=2, width=64, heads=2, kv_heads=1, head_width=32, feedforward=96)
SMALL = Size(500, SHAPE, replace(SHAPE, layers=3, width=96), "separate", "consecutive", 0.0)


def small(pieces: int = 64, size: Size = SMALL) -> Plan:
    stages = [replace(stage, pieces=pieces, steps=10) for stage in full().stages]
    return replace(full(), design="mean-w32-causal-mlp-O0-n8", stages=stages, size=size, length=512)


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    """Of four ranks of which this process is the first, and the others answer with whatever is in memory."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield init_device_mesh("cpu", (4,))
    dist.destroy_process_group()


SHARDED = Size(
    2000,
    Shape(layers=3, width=128, heads=4, kv_heads=2, head_width=32, feedforward=384),
    Shape(layers=4, width=192, heads=4, kv_heads=2, head_width=48, feedforward=512),
    "separate",
    "consecutive",
    0.0,
)


@pytest.mark.parametrize(
    ("trained", "recompute", "vocab"),
    [
        (PARTS, False, 500),
        (PARTS, True, 20_000),
        (frozenset({"adapter"}), False, 20_000),
        (frozenset({"adapter"}), True, 500),
        (frozenset({"adapter", "encoder"}), True, 500),
        (frozenset({"adapter", "encoder"}), False, 20_000),
    ],
)
def test_memory_of_a_sharded_step(mesh: DeviceMesh, trained: frozenset[Part], recompute: bool, vocab: int) -> None:
    """It is not less than what FSDP2 allocates, and less than a third more."""
    design, size = Design.parse("mean-w32-causal-mlp-O0-n8"), replace(SHARDED, vocab=vocab)
    samples = [make("reconstruct", 64, document=i) for i in range(4)]
    batch = lay_out(samples, design, SPECIALS, size.of(design).positions)
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model = Compressor(design, size)
        for name, weight in model.named_parameters():
            weight.requires_grad_(part_of(name) in trained)
        model.checkpoint_activations(recompute)
        shard(model, mesh)
        optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad])
        for _ in range(2):
            for _ in range(2):  # accumulated
                with torch.autocast("cpu", torch.bfloat16):
                    loss = model.loss(batch)
                loss.backward()
                del loss
            optimizer.step()
            optimizer.zero_grad()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    real = max(running(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))
    saved = skeleton(design, size).saved(batch, "bf16-mixed", recompute, trained=trained)
    expected = sharded_memory(design, size, saved, 4, trained).total
    assert 0.98 * real <= expected <= 1.3 * real


def test_the_published_run_by_hand() -> None:
    """Products with weights: 2 FLOPs per parameter and token forward, as many for each gradient that is asked for."""
    plan = full()
    sample = typical(plan.length, plan.format, reconstruct=False)
    parts = products(DESIGN, plan.size, laid_out(DESIGN, plan.size, [sample]))
    wrapped, read = tokens_of([sample], DESIGN)
    encoder, decoder = 596_049_920 - 151_936 * 1024, 4_022_468_096 - 151_936 * 2560
    assert (wrapped, read) == (8192, 8192 + sum(ceil((b - a) / 16) for a, b, w in sample.segments() if w))
    assert parts["encoder"].layers / wrapped == pytest.approx(2 * encoder, rel=0.03)  # padding, and norms left out
    assert parts["decoder"].layers / read == pytest.approx(2 * decoder, rel=0.01)  # tags
    assert parts["decoder"].weights - parts["decoder"].layers == 2 * 8192 * 151_936 * 2560
    assert parts["adapter"].weights == pytest.approx(2 * 9_181_184 * wrapped / 16, rel=0.01)
    forward = sum(part.flops for part in parts.values())
    assert forward == forward_flops(DESIGN, plan.size, laid_out(DESIGN, plan.size, [sample]))

    e, a, d = (parts[name] for name in ("encoder", "adapter", "decoder"))
    learning: tuple[tuple[set[Part], float], ...] = (
        # the decoder hands back gradients of activations; the frozen encoder runs forward alone
        ({"adapter"}, 2 * a.weights + d.weights + 2 * d.pairs),
        ({"adapter", "encoder"}, 2 * (e.flops + a.weights) + d.weights + 2 * d.pairs),
        ({"adapter", "encoder", "decoder"}, 2 * forward),
        ({"decoder"}, 2 * d.flops),
    )
    for trained, backward in learning:
        assert training_flops(parts, frozenset(trained))[0] == pytest.approx(forward + backward)
    _, again = training_flops(parts, frozenset({"adapter"}))
    assert again == d.layers + d.pairs  # what is frozen and behind the adapter is not computed again


def test_the_published_budget() -> None:
    """Between products with weights alone, 6 N D where all is trained, and twice that, attention's share."""
    plan = full()
    total = estimate(plan, Cluster(32, 4, "mi300a")).total
    e, d = 440e6, 3.63e9
    by_hand = 2 * e * 17.54e9 + 6 * e * (35.07 + 82.43 + 29.73) * 1e9
    by_hand += 4 * d * (21.29 + 42.58) * 1e9 + 6 * d * (100.08 + 21.32) * 1e9
    assert by_hand < total.flops < 2 * by_hand
    assert total.encoder_tokens + total.decoder_tokens == pytest.approx(350.04e9)
    assert total.gpu_hours == pytest.approx(total.flops / (980.6e12 * 0.35) / 3600)
    assert total.hours == pytest.approx(total.gpu_hours / 128)
    assert total.price == pytest.approx(2.5 * total.gpu_hours)
    assert total.kwh == pytest.approx(total.gpu_hours * 0.76 * 1.3)


@pytest.mark.parametrize(("encoder", "decoder"), [("0.6b", "0.6b"), ("0.6b", "4b"), ("4b", "4b"), ("0.6b", "8b")])
def test_published_sizes_fit_where_they_were_trained(encoder: str, decoder: str) -> None:
    plan, cluster = full(encoder, decoder), Cluster(32, 4, "mi300a")
    parallel = choose(plan, cluster)
    assert (parallel.strategy, parallel.ranks) == ("fsdp", 128)
    assert max(memory_per_gpu(plan, stage, parallel).total for stage in plan.stages) <= cluster.room


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 8), st.sampled_from(list(KINDS)), st.floats(0.0, 0.99997), st.integers(8, 64))
def test_what_is_chosen_fits(nodes: int, gpus: int, kind: str, reserve: float, pieces: int) -> None:
    plan, cluster = small(pieces), Cluster(nodes, gpus, kind, reserve=reserve)
    try:
        parallel = choose(plan, cluster)
    except UsageError as error:
        assert str(error).startswith("cluster: ")
        return
    assert parallel.ranks == cluster.ranks and parallel.accumulate * parallel.ranks <= pieces
    parallel.check()
    needs = [memory_per_gpu(plan, stage, parallel).total for stage in plan.stages]
    assert max(needs) <= cluster.room
    if parallel.accumulate > 1:
        fewer = replace(parallel, accumulate=parallel.accumulate - 1)
        assert max(memory_per_gpu(plan, stage, fewer).total for stage in plan.stages) > cluster.room
    if parallel.recompute:
        most = replace(parallel, accumulate=pieces // parallel.ranks, recompute=False)
        assert max(memory_per_gpu(plan, stage, most).total for stage in plan.stages) > cluster.room


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.floats(0.05, 0.9), st.booleans())
def test_more_gpus_take_no_longer(few: int, more: int, mfu: float, recompute: bool) -> None:
    plan = replace(small(), parallel=Parallel(recompute=recompute))
    slow, fast = (estimate(plan, Cluster(n, 2, "h100"), mfu) for n in (few, few + more))
    assert fast.total.hours < slow.total.hours and fast.total.gpu_hours == pytest.approx(slow.total.gpu_hours)
    assert fast.cluster.mfu_is == "measured"
    assert estimate(plan, Cluster(few, 2, "h100"), mfu / 2).total.hours == pytest.approx(2 * slow.total.hours)
    assert slow.total.computed >= slow.total.flops and (slow.total.computed > slow.total.flops) == recompute
    assert sum(spent.hours for spent in slow.stages.values()) == pytest.approx(slow.total.hours)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.integers(1, 4), st.booleans())
def test_memory_of_more_ranks_and_batches_is_no_more(ranks: int, accumulate: int, recompute: bool) -> None:
    plan = small()
    assume(ranks > 1)
    here = Parallel("fsdp", ranks, 1, accumulate, recompute)
    for stage in plan.stages:
        needs = memory_per_gpu(plan, stage, here).total
        assert memory_per_gpu(plan, stage, replace(here, devices=2 * ranks)).total <= needs
        assert memory_per_gpu(plan, stage, replace(here, accumulate=2 * accumulate)).total <= needs
        assert memory_per_gpu(plan, stage, replace(here, recompute=True)).total <= needs


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="^cluster: a step of full needs .* on each of 1 a100, .*; 2 of them would do"):
        choose(full(pieces=450), Cluster(1, 1, "a100"))
    with pytest.raises(UsageError, match="128 GPUs are more than the 100 pieces"):
        choose(full(pieces=100), Cluster(16, 8, "h100"))
    mixed = replace(full().stages[0], pieces=100, mixture={"web": 1.0, "code": 1.0, "chat": 1.0})
    with pytest.raises(UsageError, match="more than the 99 pieces"):
        choose(replace(full(), stages=[mixed]), Cluster(10, 10, "h100"))
    with pytest.raises(UsageError, match="take a kind of GPU with more memory"):
        choose(full(pieces=450), Cluster(1, 1, "a100", reserve=0.99))
    for field, value in {
        "kind": "h1000",
        "nodes": 0,
        "mfu": 0.0,
        "pue": 0.5,
        "reserve": 1.0,
        "mfu_is": "guessed",
    }.items():
        with pytest.raises(UsageError, match=f"cluster.*{field}"):
            replace(Cluster(1, 8, "h100"), **{field: value}).check()
