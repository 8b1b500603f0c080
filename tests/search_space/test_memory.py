"""The memory model against what a training step allocates.

Measured is the trainer's own step, `CompressorModule` in Lightning's loop with gradient clipping and its optimizer, in
the second of two steps, when the optimizer has its state. `torch.profiler` reports every allocation and release of
torch's CPU allocator from before the model is built; the highest running total is the peak. Workspaces that oneDNN and
MKL take for themselves and the index tensors, whose memory is NumPy's, are not in it.
"""

import gc
import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partialmethod
from itertools import accumulate, cycle, repeat

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Trainer
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from search_space.axes.adapter import ADAPTERS
from search_space.axes.pooling import POOLINGS, Blocks, Pooling
from search_space.compressor import Compressor, Size
from search_space.design import MASKS, Design
from search_space.errors import UsageError
from search_space.layout import Batch, Sample, lay_out
from search_space.loss import CHUNK_BYTES
from search_space.memory import PARTS, Optimizer, Part, Precision, skeleton, training_memory
from search_space.transformer import Shape
from tests.search_space.cases import SHARED, SPECIALS, designs, make
from trainer.module import CompressorModule
from trainer.optim import OptimConfig, PartConfig
from trainer.parallel import Parallel
from trainer.recipe import Recipe

SHAPE = Shape(layers=1, width=32, heads=2, kv_heads=1, head_width=16, feedforward=48)
TINY = Size(vocab=300, encoder=SHAPE, decoder=SHAPE)
SMALL = Size()
WIDE_SHAPE = Shape(layers=4, width=384, heads=6, kv_heads=3, head_width=64, feedforward=1024)
WIDE = Size(vocab=4096, encoder=WIDE_SHAPE, decoder=WIDE_SHAPE)
WORDY = Size(vocab=16384, encoder=SHAPE, decoder=SHAPE)
APART = Size(
    vocab=2000,
    encoder=SHAPE,
    decoder=Shape(layers=3, width=96, heads=4, kv_heads=2, head_width=24, feedforward=256, tied_head=False),
    embeddings="separate",
    positions="consecutive",
    phase_std=0.0,
)
PRECISIONS: tuple[Precision, ...] = ("32-true", "bf16-mixed")
CONTROLS = ("uncompressed", "blind", "mean-w8-causal-mlp-O0-n8-encoderless")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)


def spans(length: int, number: int) -> list[Sample]:
    return [make("reconstruct", length, document=i) for i in range(number)]


RAGGED = [*spans(100, 1), *spans(37, 2), make("continue", 120, (40, 90, 110))]


def steps(design: Design, size: Size, samples: list[Sample]) -> Batch:
    return lay_out(samples, design, SPECIALS, size.of(design).positions)


def measured(
    design: Design, size: Size, batch: Batch, precision: Precision, config: OptimConfig, checkpointed: bool
) -> int:
    """Peak bytes (see the head of this file)."""
    gc.collect()  # a release of what an earlier step left would count against this one
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=2,
            precision=precision,
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = CompressorModule(design, size, Recipe(optim=config), seed=0, parallel=Parallel(recompute=checkpointed))
        trainer.fit(module, repeat(batch))
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def check(
    design: Design,
    size: Size,
    samples: list[Sample],
    precision: Precision,
    optimizer: Optimizer = "muon",
    checkpointed: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
    trained: frozenset[Part] = PARTS,
) -> None:
    batch = steps(design, size, samples)
    expected = training_memory(design, size, batch, precision, optimizer, checkpointed, chunk_bytes, trained)
    frozen = {part: PartConfig(0.0, 0.0) for part in PARTS - trained}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Compressor, "loss", partialmethod(Compressor.loss, chunk_bytes=chunk_bytes))
        real = measured(design, size, batch, precision, OptimConfig(optimizer, **frozen), checkpointed)
    assert expected == pytest.approx(real, rel=0.02)


def test_poolings_and_adapters() -> None:
    for i, (pooling, adapter) in enumerate(zip(POOLINGS, cycle(ADAPTERS), strict=False)):
        design = Design(pooling=pooling, adapter=adapter, ratio=8, window=32, overlap=8, mask=MASKS[i % 2])
        check(design, TINY, spans(64, 3), PRECISIONS[i % 2])


def test_adamw_alone() -> None:
    """Where its state outweighs everything else: a step of few tokens."""
    design = Design(ratio=8, window=32)
    assert training_memory(design, TINY, steps(design, TINY, spans(16, 1))) < 0.9 * training_memory(
        design, TINY, steps(design, TINY, spans(16, 1)), optimizer="adamw"
    )
    check(design, TINY, spans(16, 1), "32-true", "adamw")


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_combination(pooling: str, mask: str) -> None:
    for adapter, precision in zip(ADAPTERS, cycle(PRECISIONS), strict=False):
        design = Design(pooling=pooling, adapter=adapter, ratio=4, window=16, overlap=4, mask=mask, depth=2)
        check(design, TINY, RAGGED, precision)


@pytest.mark.parametrize("name", CONTROLS)
def test_controls(name: str) -> None:
    for precision in PRECISIONS:
        check(Design.parse(name), TINY, spans(64, 3), precision)


@pytest.mark.parametrize(
    ("name", "size", "samples", "precision"),
    [
        ("mean-w32-causal-mlp-O0-n8", SMALL, spans(64, 12), "bf16-mixed"),
        ("eos-w64-bidirectional-mlp_attn-O16-n8", SMALL, RAGGED, "32-true"),
        ("attention-w256-causal-attn_mlp-O0", SMALL, spans(512, 1), "bf16-mixed"),
        ("concat-w32-bidirectional-mlp-O8-n8", WIDE, spans(64, 2), "32-true"),
        ("mean-w16-causal-mlp-O0", WIDE, spans(16, 1), "bf16-mixed"),
        ("mean-w32-causal-mlp-O0-n8", WORDY, spans(64, 12), "32-true"),  # the start of the backward pass is the peak
        ("mean-w4-causal-mlp-O0-n4", WORDY, spans(4, 1), "32-true"),  # AdamW's step is
        ("concat-w64-causal-mlp-O0-n64", SMALL, spans(4, 1), "32-true"),  # Muon's step is
        ("conv-w32-causal-mlp_attn-O8-n8-l2", APART, RAGGED, "32-true"),
        ("uncompressed", APART, spans(16, 1), "bf16-mixed"),
    ],
)
def test_other_sizes_and_steps(name: str, size: Size, samples: list[Sample], precision: Precision) -> None:
    check(Design.parse(name), size, samples, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("name", "size", "samples"),
    [
        ("mean-w32-causal-mlp-O0-n8", WORDY, spans(64, 12)),
        ("mean-w32-causal-mlp-O0-n8", replace(WORDY, decoder=replace(SHAPE, tied_head=False)), spans(64, 12)),
        ("eos-w64-bidirectional-mlp_attn-O16-n8", SMALL, RAGGED),
    ],
    ids=["tied", "untied", "small"],
)
def test_chunked_loss(name: str, size: Size, samples: list[Sample], precision: Precision) -> None:
    chunk_bytes = 40 * 4 * size.vocab
    design, batch = Design.parse(name), steps(Design.parse(name), size, samples)
    assert len(batch.target_P) > 5 * 40
    less = training_memory(design, size, batch, precision, chunk_bytes=chunk_bytes)
    assert less < training_memory(design, size, batch, precision)
    check(design, size, samples, precision, chunk_bytes=chunk_bytes)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_checkpointed_layers(precision: Precision) -> None:
    size = replace(SMALL, encoder=replace(SMALL.encoder, layers=5), decoder=replace(SMALL.decoder, layers=6))
    for name in ("mean-w32-bidirectional-attn_mlp-O8-n8-l2", "uncompressed"):
        design, batch = Design.parse(name), steps(Design.parse(name), size, RAGGED)
        usual = training_memory(design, size, batch, precision)
        assert training_memory(design, size, batch, precision, checkpointed=True) < 0.8 * usual
        check(design, size, RAGGED, precision, checkpointed=True)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(
    ("trained", "precision"),
    [
        ({"adapter"}, "bf16-mixed"),
        ({"adapter"}, "32-true"),
        ({"adapter", "encoder"}, "bf16-mixed"),
        ({"decoder"}, "32-true"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(sorted(value)),
)
def test_frozen_parts(trained: set[Part], precision: Precision, checkpointed: bool) -> None:
    """They have neither gradients nor optimizer state, and keep less for the backward pass, or nothing."""
    design, batch = Design.parse("mean-w32-causal-mlp-O0-n8"), steps(Design(ratio=8, window=32), APART, RAGGED)
    of = [training_memory(design, APART, batch, precision, trained=t) for t in (frozenset(trained), PARTS)]
    assert of[0] < 0.95 * of[1]
    check(design, APART, RAGGED, precision, "adamw", checkpointed, trained=frozenset(trained))


def test_attention_of_a_gpu_keeps_bfloat16() -> None:
    """Queries, keys, values and what comes of them in half as many bytes, and no more of anything."""
    design = Design.parse("uncompressed")
    samples = [make("continue", 64, (32,), document=i) for i in range(2)]
    batch, bones = lay_out(samples, design, SPECIALS, "consecutive", groups=False), skeleton(design, SMALL)
    alone = replace(batch, rows=replace(batch.rows, alone=True))
    there, here = (bones.saved(alone, "bf16-mixed", gpu=gpu).total for gpu in (True, False))
    shape = SMALL.decoder
    kept = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_width * batch.token_RT.numel() * shape.layers
    assert there == pytest.approx(here - 2 * kept, rel=0.1) and there < here
    assert bones.saved(alone, "32-true", gpu=True).total == bones.saved(alone, "32-true").total


class _Gated(Pooling):
    """A pooling that nobody has told the memory model of."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__(width, ratio)
        self.gate = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, hidden_TD: Tensor, blocks: Blocks) -> Tensor:
        hidden_LND = hidden_TD[blocks.tokens_LN] * blocks.mask_LN[:, :, None]
        return self.down(self.gate(hidden_LND).sigmoid()).amax(1)


def test_a_new_pooling_is_priced_by_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POOLINGS, "gated", _Gated)
    design = Design(pooling="gated", ratio=4, window=16)
    check(design, TINY, spans(64, 3), "32-true")
    plain, batch = design.but(pooling="mean"), steps(design, TINY, spans(64, 3))
    assert training_memory(design, TINY, batch) > 1.08 * training_memory(plain, TINY, batch)


@settings(max_examples=5, deadline=None)
@given(designs(st.integers(2, 4), st.integers(1, 4)), st.sampled_from(PRECISIONS), st.integers(1, 3))
def test_more_spans_take_no_less(design: Design, precision: Precision, number: int) -> None:
    of = [training_memory(design, SHARED, steps(design, SHARED, spans(12, n)), precision) for n in (number, 4 * number)]
    assert of[0] <= of[1]


@settings(max_examples=20, deadline=None)
@given(designs(st.integers(2, 4), st.integers(1, 4)))
def test_the_layout_has_no_weights(design: Design) -> None:
    """So that designs which differ in their layout alone may share one skeleton."""
    other = design.but(window=design.ratio, overlap=0, mask="causal")
    with torch.device("meta"):
        weights, others = Compressor(design, SHARED).state_dict(), Compressor(other, SHARED).state_dict()
    assert {k: w.shape for k, w in weights.items()} == {k: w.shape for k, w in others.items()}


def test_an_unknown_precision_is_refused() -> None:
    design = Design(ratio=8, window=32)
    with pytest.raises(UsageError, match="precision: '16-mixed' is not one of 32-true, bf16-mixed"):
        training_memory(design, TINY, steps(design, TINY, spans(64, 1)), "16-mixed")  # ty: ignore[invalid-argument-type]
