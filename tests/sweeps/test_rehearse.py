"""The dry run: published sizes, shards as FSDP2 makes them, a real corpus, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from search_space.axes.shape import QWEN3
from search_space.compressor import Compressor
from search_space.design import Design
from search_space.errors import UsageError
from search_space.transformer import Transformer
from sweeps.fleet import Cluster
from sweeps.rehearse import parameters_of, rehearse
from sweeps.sharding import shard_bytes
from tests.sweeps.test_fleet import full
from tests.trainer.staged import plan as staged
from trainer.corpus import Corpus
from trainer.parallel import Parallel
from trainer.plan import Plan
from trainer.strategies import shard

VOCAB = 151_936


@pytest.fixture
def plan(corpus: Corpus) -> Plan:
    return staged(corpus.folder)


def test_published_shapes_have_the_published_numbers_of_parameters() -> None:
    for name, total in (("0.6b", 596_049_920), ("4b", 4_022_468_096)):
        with torch.device("meta"):
            real = Transformer(QWEN3[name], VOCAB, head=True)
        assert parameters_of(QWEN3[name], VOCAB, head=True) == total == sum(w.numel() for w in real.parameters())


def test_a_plan_of_published_size_is_rehearsed(corpus: Corpus) -> None:
    """On the tests' small corpus: pieces are shorter than the plan's, so that a step has more of them."""
    plan = replace(full(), corpus=str(corpus.folder), length=128, parallel=Parallel("fsdp", devices=8))
    plan = replace(plan, stages=[replace(stage, pieces=40) for stage in plan.stages])
    seen = rehearse(plan, Cluster(1, 8, "h200"))
    assert seen.parameters == {"encoder": 596_049_920, "decoder": 4_022_468_096, "adapter": 9_181_184}
    assert sum(seen.shards) == 4 * seen.total and len(seen.shards) == 8 and max(seen.shards) == seen.shards[0]
    assert seen.room and all(memory.total <= seen.room for memory in seen.memory.values())
    assert seen.memory["adapter"].optimizer < seen.memory["encoder"].optimizer < seen.memory["all"].optimizer


def test_the_first_step_is_counted(plan: Plan, corpus: Corpus) -> None:
    seen = rehearse(plan)
    assert seen.sources == corpus.sources and seen.vocab == corpus.vocab and list(seen.steps) == list(seen.memory)
    for step in seen.steps.values():
        raw = step.encoder_tokens + step.decoder_tokens - step.encoder_tokens / 8
        assert 0.5 * 12 * 256 < raw < 1.5 * 12 * 256 + 12 * 64  # questions on top
        assert step.off == pytest.approx(step.decoder_tokens / 1200 - 1) and 0 <= step.padding < 1
        assert (step.planned_encoder_tokens, step.planned_decoder_tokens) == (2000, 1200)
    assert seen.steps["adapter"] != seen.steps["encoder"]  # which reads on from where the adapter's stage stopped


def _shards(rank: int, ranks: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    plan = staged(Path())
    model = Compressor(Design.parse(plan.design), replace(plan.size, vocab=301))
    whole = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    shard(model, init_device_mesh("cpu", (ranks,)))
    parts = {name: weight for name, weight in model.named_parameters() if isinstance(weight, DTensor)}
    local = {name: weight.to_local().nbytes for name, weight in parts.items()}
    torch.save((whole, local), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_shards_are_those_of_fsdp(tmp_path: Path) -> None:
    """Of an odd vocabulary, which two ranks do not share equally."""
    from tests.sweeps.test_submit import free_port

    mp.spawn(_shards, (2, free_port(), str(tmp_path)), nprocs=2)
    uneven = 0
    for rank in range(2):
        whole, local = torch.load(tmp_path / f"{rank}.pt")
        assert local == {name: shard_bytes(shape, 2, rank) for name, shape in whole.items()}
        uneven += sum(shape[0] % 2 for shape in whole.values())
    assert uneven


def test_what_would_stop_the_run_is_refused(plan: Plan, corpus: Corpus, tmp_path: Path) -> None:
    two = replace(plan, parallel=Parallel("fsdp", devices=2))
    for wrong, cluster, message in (
        (replace(plan, tokenizer="0" * 64), None, "corpus: the tokenizer of"),
        (replace(plan, size=replace(plan.size, vocab=40)), None, "size.vocab: 40 rows are fewer"),
        (replace(plan, corpus=str(tmp_path)), None, "corpus: .* has no readable manifest.json"),
        (replace(plan, encoder=str(tmp_path)), None, "encoder|config.json"),
        (two, Cluster(1, 4, "h100"), "parallel: the plan is for 2 ranks, and the cluster has 4 GPUs"),
        (two, Cluster(1, 2, "h100", reserve=0.9999), "cluster: stage .* needs .* GB on each h100"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            rehearse(wrong, cluster)
        assert "\n" not in str(caught.value)
