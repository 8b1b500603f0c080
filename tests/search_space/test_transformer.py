"""Our transformer is Qwen3: equal to `transformers` with the same weights, alone and packed, on every path."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, flex_attention, sdpa_kernel
from transformers import Qwen3ForCausalLM, Qwen3Model

from search_space import transformer
from search_space.axes.shape import QWEN3
from search_space.compressor import Compressor, Size
from search_space.design import Design
from search_space.layout import lay_out
from search_space.transformer import Block, Groups, Layers, Rows, Shape, Transformer
from tests.search_space.cases import SPECIALS, VOCAB, make, randomise
from tests.search_space.hugging_face import config

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

SHAPES = {
    "square": Shape(layers=2, width=32, heads=4, kv_heads=4, head_width=8, feedforward=48),
    "grouped": Shape(layers=2, width=32, heads=4, kv_heads=2, head_width=8, feedforward=48),
    "one key-value head": Shape(layers=1, width=24, heads=3, kv_heads=1, head_width=8, feedforward=40),
    "wide heads": Shape(layers=2, width=16, heads=4, kv_heads=2, head_width=16, feedforward=32),
    "narrow heads": Shape(layers=3, width=32, heads=2, kv_heads=1, head_width=4, feedforward=20),
    "other base and eps": Shape(2, 16, 2, 2, 8, 32, rope_base=1e4, norm_eps=1e-3),
}
QWEN3_VOCAB = 151_936


def pair(shape: Shape) -> tuple[Transformer, Qwen3Model]:
    """The same random weights in both, through the state dict."""
    theirs = Qwen3Model(config(shape)).eval()
    randomise(theirs)
    ours = Transformer(shape, VOCAB)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def theirs_of(model: Qwen3Model, tokens: Tensor, positions: Tensor, causal: bool) -> Tensor:
    """Hidden states, with the mask given in full: without one, gaps in the positions are taken for packing."""
    length = tokens.shape[1]
    seen = torch.ones(length, length).tril() if causal else torch.ones(length, length)
    mask = torch.where(seen > 0, 0.0, torch.finfo(torch.float32).min)[None, None]
    return model(input_ids=tokens, position_ids=positions, attention_mask={"full_attention": mask}).last_hidden_state


def alone(length: int, positions: Tensor | None = None) -> Rows:
    at = torch.arange(length)[None] if positions is None else positions
    return Rows(torch.zeros_like(at), at, alone=True)


def rows_of(lengths: list[list[int]], padding: int = 0) -> Rows:
    """Rows filled from the front with segments of these lengths."""
    length = max(map(sum, lengths)) + padding
    segment, position = torch.full((len(lengths), length), -1), torch.zeros(len(lengths), length, dtype=torch.long)
    number = 0
    for row, sizes in enumerate(lengths):
        at = 0
        for size in sizes:
            segment[row, at : at + size], position[row, at : at + size] = number, torch.arange(size)
            at, number = at + size, number + 1
    return Rows(segment, position, alone=False)


def tokens_of(length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, (1, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["groups", "dense", "block-sparse"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How packed rows attend: as on a CPU, as in a compiled graph there, or as on a GPU."""
    if request.param == "block-sparse":
        _force_block_mask(monkeypatch)
    return request.param


def grouped(rows: Rows) -> Rows:
    """With the groups that a layout would give them."""
    segment_T = rows.segment_RT.flatten()
    numbers = segment_T[segment_T >= 0].unique()
    first = np.array([int((segment_T == n).nonzero()[0]) for n in numbers])
    length = np.array([int((segment_T == n).sum()) for n in numbers])
    return replace(rows, groups=Groups.of(first, length, len(segment_T)))


def _force_block_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """`flex_attention` refuses gradients on the CPU since its compiled kernel has none there; uncompiled it has."""
    monkeypatch.setattr(transformer, "takes_block_mask", lambda device, head_width: True)
    monkeypatch.setattr(flex_attention, "_validate_device", lambda query, key, value: None)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("causal", [True, False])
def test_equals_transformers(name: str, causal: bool) -> None:
    ours, theirs = pair(SHAPES[name])
    for length in (1, 2, 37):
        tokens = tokens_of(length, seed=length)
        with torch.no_grad():
            expected = theirs_of(theirs, tokens, torch.arange(length)[None], causal)
            actual = ours(ours.embed_tokens(tokens), alone(length), causal)
        assert (actual - expected).abs().max() <= 1e-5


def test_equals_transformers_left_to_itself() -> None:
    """The plain call that everybody makes, without a mask of ours."""
    ours, theirs = pair(SHAPES["grouped"])
    tokens = tokens_of(23)
    with torch.no_grad():
        difference = ours(ours.embed_tokens(tokens), alone(23)) - theirs(tokens).last_hidden_state
    assert difference.abs().max() <= 1e-5


@pytest.mark.parametrize("causal", [True, False])
def test_equals_transformers_at_spread_positions(causal: bool) -> None:
    ours, theirs = pair(SHAPES["grouped"])
    tokens, positions = tokens_of(9), torch.tensor([[0, 0, 4, 8, 500, 501, 501, 0, 1]])
    with torch.no_grad():
        expected = theirs_of(theirs, tokens, positions, causal)
        actual = ours(ours.embed_tokens(tokens), alone(9, positions), causal)
    assert (actual - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("first", [1_000, 16_000, 40_000])
def test_equals_transformers_far_into_the_text(first: int) -> None:
    """Rotary angles grow with the position, and so does any difference in how their frequencies are rounded."""
    ours, theirs = pair(SHAPES["grouped"])
    tokens, positions = tokens_of(64), torch.arange(64)[None] + first
    with torch.no_grad():
        expected = theirs_of(theirs, tokens, positions, causal=True)
        actual = ours(ours.embed_tokens(tokens), alone(64, positions))
    assert (actual - expected).abs().max() <= 1e-5


def test_gradients_equal_transformers() -> None:
    ours, theirs = pair(SHAPES["grouped"])
    tokens = tokens_of(19)
    weighting = torch.randn(1, 19, 32, generator=torch.Generator().manual_seed(1))
    (theirs(tokens).last_hidden_state * weighting).mean().backward()
    (ours(ours.embed_tokens(tokens), alone(19)) * weighting).mean().backward()
    expected = dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name].grad, rtol=1e-4, atol=1e-6, msg=name)


def test_weights_go_both_ways() -> None:
    ours, theirs = pair(SHAPES["wide heads"])
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert set(ours.state_dict()) == set(theirs.state_dict())


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padding", [0, 5])
def test_packed_segments_equal_each_alone(path: str, causal: bool, padding: int) -> None:
    """Two rows of several segments, with padding before, between and behind, equal one call per segment."""
    model, _ = pair(SHAPES["grouped"])
    rows = [[(-1, padding), (0, 7), (1, 1), (-1, padding), (2, 9)], [(3, 12), (4, 5), (-1, 2 * padding)]]
    segment = torch.tensor([[number for number, count in row for _ in range(count)] for row in rows])
    position, tokens = torch.zeros_like(segment), tokens_of(segment.numel()).view(segment.shape)
    for number in range(5):
        position[segment == number] = torch.arange(int((segment == number).sum())) + 3 * number
    together = Rows(segment, position, alone=False)
    with torch.no_grad():
        packed = model(model.embed_tokens(tokens), grouped(together) if path == "groups" else together, causal)
        assert packed.isfinite().all()
        for number in range(5):
            here = segment == number
            x = model.embed_tokens(tokens[here][None])
            expected = model(x, alone(x.shape[1], position[here][None]), causal)
            torch.testing.assert_close(packed[here][None], expected, rtol=0, atol=1e-5)


def test_alone_is_the_mask_written_out() -> None:
    model, _ = pair(SHAPES["grouped"])
    x, rows = model.embed_tokens(tokens_of(11)), alone(11)
    for causal in (True, False):
        masked = model(x, Rows(rows.segment_RT, rows.position_RT, alone=False), causal)
        torch.testing.assert_close(model(x, rows, causal), masked, rtol=0, atol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_a_token_moves_what_may_see_it(path: str, packed: bool) -> None:
    """Causal: itself and what follows in its segment. Bidirectional: its whole segment. Never another one."""
    model, _ = pair(SHAPES["square"])
    segment = torch.tensor([[0] * 6 + [1] * 5 + [-1] * 3]) if packed else torch.zeros(1, 14, dtype=torch.long)
    rows = Rows(segment, torch.arange(14)[None], alone=not packed)
    rows = grouped(rows) if packed and path == "groups" else rows
    tokens = tokens_of(14)
    other = tokens.clone()
    other[0, 3] = (other[0, 3] + 1) % VOCAB
    with torch.no_grad():
        for causal in (True, False):
            before, after = (model(model.embed_tokens(t), rows, causal) for t in (tokens, other))
            moved = (before != after).any(-1)[0].tolist()
            assert moved == [s == segment[0, 3] and (i >= 3 or not causal) for i, s in enumerate(segment[0])]


def test_only_distances_between_positions_matter() -> None:
    model, _ = pair(SHAPES["square"])
    x, positions = model.embed_tokens(tokens_of(8)), torch.arange(8)[None]
    with torch.no_grad():
        here, there, stretched = (model(x, alone(8, p)) for p in (positions, positions + 100, positions * 3))
    torch.testing.assert_close(here, there, rtol=0, atol=2e-5)
    assert (here - stretched).abs().max() > 1e-2


def test_no_layers_leave_embedding_and_norm() -> None:
    model = Transformer(replace(SHAPES["square"], layers=0), VOCAB)
    assert set(model.state_dict()) == {"embed_tokens.weight", "norm.weight"}
    x = model.embed_tokens(tokens_of(5))
    assert torch.equal(model(x, alone(5)), model.norm(x))


def test_silenced_layers_are_the_identity() -> None:
    layers = Layers(SHAPES["grouped"], 2)
    for block in layers.modules():
        if isinstance(block, Block):
            block.silence()
    x = torch.randn(1, 6, 32)
    assert torch.equal(layers(x, alone(6), True), x)


@pytest.mark.parametrize("tied", [True, False])
def test_head_of_the_whole_model(tied: bool) -> None:
    """The uncompressed control is a plain Qwen3 language model: same logits, same loss."""
    shape = replace(SHAPES["grouped"], tied_head=tied)
    theirs = Qwen3ForCausalLM(config(shape)).eval()
    randomise(theirs)
    size = Size(vocab=VOCAB, encoder=shape, decoder=shape, positions="consecutive")
    ours = Compressor(Design(control="uncompressed"), size)
    weights = theirs.model.state_dict() | ({} if tied else {"lm_head.weight": theirs.lm_head.weight})
    ours.decoder.load_state_dict(weights, strict=True)
    sample = make("continue", 20, (8,))
    batch = lay_out([sample], ours.design, SPECIALS, size.positions)
    text = [SPECIALS.memory_start, *sample.tokens[:8], SPECIALS.memory_end, *sample.tokens[8:]]
    with torch.no_grad():
        expected = theirs(torch.tensor([text])).logits[0, 9:-1]  # the closing tag predicts the first raw token
        assert (ours(batch) - expected).abs().max() <= 1e-5
    assert batch.target_P.tolist() == text[10:]


def test_an_encoder_has_no_head() -> None:
    shape = replace(SHAPES["square"], tied_head=False)
    model = Transformer(shape, VOCAB)
    assert "lm_head.weight" not in model.state_dict()
    with pytest.raises(AssertionError, match="no head"):
        model.logits(torch.zeros(1, 32))


@pytest.mark.parametrize(("name", "count"), [("0.6b", 596_049_920), ("4b", 4_022_468_096), ("8b", 8_190_735_360)])
def test_parameter_counts_of_the_published_models(name: str, count: int) -> None:
    """Ours on the meta device, arithmetic from the published shape, and theirs agree."""
    shape = QWEN3[name]
    d, e = shape.width, shape.head_width
    attention = d * e * (2 * shape.heads + 2 * shape.kv_heads) + 2 * e
    embeddings = QWEN3_VOCAB * d * (1 if shape.tied_head else 2)
    arithmetic = embeddings + shape.layers * (attention + 3 * d * shape.feedforward + 2 * d) + d
    with torch.device("meta"):
        ours = Transformer(shape, QWEN3_VOCAB, head=True)
        theirs = Qwen3ForCausalLM(config(shape, QWEN3_VOCAB))
    counts = [sum(p.numel() for p in m.parameters()) for m in (ours, theirs)]
    assert [arithmetic, *counts] == [count] * 3
    names = {key.removeprefix("model."): weight.shape for key, weight in theirs.state_dict().items()}
    if shape.tied_head:
        del names["lm_head.weight"]
    assert {key: weight.shape for key, weight in ours.state_dict().items()} == names


@pytest.mark.parametrize("causal", [True, False])
def test_checkpointed_layers_keep_their_inputs_alone(causal: bool) -> None:
    """And have the same gradients, bit for bit."""
    layers, rows = Layers(SHAPES["grouped"], 3), grouped(rows_of([[7, 1, 9], [12, 5]]))
    randomise(layers)
    x = torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = {w.untyped_storage().data_ptr() for w in layers.parameters()}
    kept: dict[bool, list[tuple[int, ...]]] = {False: [], True: []}
    gradients = {}
    for layers.checkpointed in (False, True):

        def keep(saved: Tensor, kept: list[tuple[int, ...]] = kept[layers.checkpointed]) -> Tensor:
            if saved.untyped_storage().data_ptr() not in weights:
                kept.append(tuple(saved.shape))
            return saved

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            out = layers(x, rows, causal)
        gradients[layers.checkpointed] = torch.autograd.grad(out.square().sum(), [x, *layers.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients.values(), strict=True))
    assert len(kept[True]) < 0.2 * len(kept[False])
    assert not layers(x.detach(), rows, causal).isnan().any()


# --- the path of a GPU, without one ---------------------------------------------------------------------------------


@st.composite
def packed(draw: st.DrawFn, longest: int = 300) -> Rows:
    """Rows of one length, filled from the front with segments of any length; at least one place of padding."""
    length = draw(st.integers(1, longest))
    segment = torch.full((draw(st.integers(1, 3)), length), -1)
    position = torch.zeros_like(segment)
    number = 0
    for row in range(len(segment)):
        at = 0
        for size in draw(st.lists(st.integers(1, length), min_size=1, max_size=6)):
            stop = min(at + size, length - (row == len(segment) - 1))
            segment[row, at:stop], position[row, at:stop] = number, torch.arange(stop - at)
            at, number = stop, number + 1
    return Rows(segment, position, alone=False)


@settings(max_examples=20, deadline=None)
@given(packed(), st.booleans())
def test_tiles_are_those_that_torch_finds_by_looking(rows: Rows, causal: bool) -> None:
    """Padding by a number per row here: one row's may see another's or not, nobody reads it."""
    padding = -1 - torch.arange(len(rows.segment_RT))[:, None]
    segment_T = torch.where(rows.segment_RT < 0, padding, rows.segment_RT).flatten()
    ours = transformer._block_mask(segment_T, causal)
    theirs = flex_attention.create_block_mask(ours.mask_mod, 1, 1, len(segment_T), len(segment_T), device="cpu")
    assert ours.seq_lengths == theirs.seq_lengths and ours.BLOCK_SIZE == theirs.BLOCK_SIZE
    for name in ("kv_num_blocks", "kv_indices", "q_num_blocks", "q_indices"):
        for prefix in ("", "full_"):
            assert torch.equal(getattr(ours, prefix + name), getattr(theirs, prefix + name)), prefix + name


@settings(max_examples=12, deadline=None)
@given(packed(), st.booleans(), st.sampled_from(["square", "one key-value head"]))
def test_block_sparse_and_groups_equal_dense(rows: Rows, causal: bool, name: str) -> None:
    """Hidden states and gradients, wherever there is no padding; in double precision."""
    shape = SHAPES[name]
    layers = Layers(shape, 1).double()
    randomise(layers)
    x = torch.randn(*rows.segment_RT.shape, shape.width, generator=torch.Generator().manual_seed(0)).double()
    here = (rows.segment_RT >= 0)[:, :, None]

    def run(rows: Rows = rows) -> list[Tensor]:
        out = layers(x.requires_grad_(), rows, causal) * here
        return [out, *torch.autograd.grad((out**2).sum(), [x, *layers.parameters()])]

    dense = run()
    with pytest.MonkeyPatch.context() as monkeypatch:
        _force_block_mask(monkeypatch)
        sparse = run()
    for result in (sparse, run(grouped(rows)) if bool((rows.segment_RT >= 0).any()) else dense):
        for a, b in zip(result, dense, strict=True):
            assert a.isfinite().all()
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3)), min_size=1, max_size=12))
def test_every_element_has_a_slot(segments: list[tuple[int, int]]) -> None:
    """And finds its own element there; no segment is in a batch that is shorter than it."""
    length, gap = np.array(segments).T
    first = np.cumsum(length + gap) - length
    places = int(first[-1] + length[-1]) + 1
    groups = Groups.of(first, length, places)
    slot, source, filled = (t.numpy() for t in (groups.slot_T, groups.source_S, groups.filled_S))
    held = np.concatenate([np.arange(a, a + n) for a, n in zip(first, length, strict=True)])
    assert np.array_equal(source[slot[held]], held) and filled[slot[held]].all()
    assert filled.sum() == length.sum()
    assert (np.delete(slot, held) == len(source)).all()
    assert sum(n for n, _, _ in groups.shapes) == len(length)
    assert sum(n * longest for n, longest, _ in groups.shapes) == len(source)
    at = 0
    for n, longest, full in groups.shapes:
        batch = filled[at : at + n * longest].reshape(n, longest)
        assert batch[0].all() and full == batch.all()
        at += n * longest


def test_the_cpu_takes_no_tiles_and_a_gpu_does() -> None:
    assert not transformer.takes_block_mask(torch.device("cpu"), 128)
    assert transformer.takes_block_mask(torch.device("cuda"), 128)
    assert not transformer.takes_block_mask(torch.device("cuda"), 8)  # narrower than its kernels can multiply


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a compiler")
def test_compiled_kernel_equals_dense() -> None:
    """The kernel that inductor writes, here for the CPU: any number of rows and lengths in at most two graphs."""
    torch.compiler.reset()
    kernel = transformer._compiled_flex_attention()
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    for shape, stretch in (((2, 150), 40), ((3, 171), 57), ((5, 64), 13), ((1, 700), 300)):
        segment = torch.arange(shape[0] * shape[1]).view(shape) // stretch
        rows = Rows(segment, segment, alone=False).end_to_end()
        q, k, v = (torch.randn(1, heads, segment.numel(), 32) for heads in (4, 2, 2))
        mask = transformer._block_mask(rows.segment_RT[0], True)
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, rows.mask(True), enable_gqa=True)
        torch.testing.assert_close(kernel(q, k, v, block_mask=mask, enable_gqa=True), expected, rtol=0, atol=1e-5)
    assert graphs["unique_graphs"] - before <= 2


# --- on a GPU -------------------------------------------------------------------------------------------------------

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU_SHAPE = Shape(layers=2, width=64, heads=4, kv_heads=2, head_width=32, feedforward=96)


@needs_cuda
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_rows_on_a_gpu(causal: bool, dtype: torch.dtype) -> None:
    """Hidden states and gradients are those of the CPU in float32, up to the rounding of `dtype`."""
    layers = Layers(GPU_SHAPE, 2)
    randomise(layers)
    segment = torch.tensor([[0] * 100 + [1] * 130 + [-1] * 20, [2] * 249 + [-1]])
    x, here = torch.randn(2, 250, 64), (segment >= 0)[:, :, None]
    results = []
    for device in ("cpu", "cuda"):
        rows = Rows(segment.to(device), torch.arange(250, device=device).expand(2, 250), alone=False)
        model, y = layers.to(device), x.to(device).requires_grad_()
        with torch.autocast(device, dtype, enabled=device == "cuda" and dtype == torch.bfloat16):
            out = model(y, rows, causal).float() * here.to(device)
        grads = torch.autograd.grad((out**2).mean(), [y, *model.parameters()])
        results.append([t.cpu() for t in (out, *grads)])
    for expected, actual in zip(*results, strict=True):
        error = (actual - expected).norm() / expected.norm()
        assert error < (0.03 if dtype == torch.bfloat16 else 1e-3)


@needs_cuda
@pytest.mark.parametrize("causal", [True, False])
def test_rows_of_one_segment_reach_flash_attention(causal: bool) -> None:
    """Queries, keys and values are all in bfloat16, and no mask is given: nothing else would be allowed to run."""
    model = Transformer(GPU_SHAPE, VOCAB).cuda()
    tokens = tokens_of(200).cuda()
    at = torch.arange(200, device="cuda")[None]
    with torch.autocast("cuda", torch.bfloat16), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = model(model.embed_tokens(tokens), Rows(torch.zeros_like(at), at, alone=True), causal)
        out.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
