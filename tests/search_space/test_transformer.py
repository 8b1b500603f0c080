"""Our transformer is Qwen3: equal to `transformers` with the same weights, alone and packed."""

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from search_space.compressor import Compressor, Size
from search_space.design import Design
from search_space.layout import lay_out
from search_space.transformer import Block, Layers, Rows, Shape, Transformer
from tests.search_space.cases import SPECIALS, VOCAB, make, randomise

SHAPES = {
    "square": Shape(layers=2, width=32, heads=4, kv_heads=4, head_width=8, feedforward=48),
    "grouped": Shape(layers=2, width=32, heads=4, kv_heads=2, head_width=8, feedforward=48),
    "one key-value head": Shape(layers=1, width=24, heads=3, kv_heads=1, head_width=8, feedforward=40),
    "wide heads": Shape(layers=2, width=16, heads=4, kv_heads=2, head_width=16, feedforward=32),
    "narrow heads": Shape(layers=3, width=32, heads=2, kv_heads=1, head_width=4, feedforward=20),
    "other base and eps": Shape(2, 16, 2, 2, 8, 32, rope_base=1e4, norm_eps=1e-3),
}
QWEN3_06B = Shape(layers=28, width=1024, heads=16, kv_heads=8, head_width=128, feedforward=3072)
QWEN3_4B = Shape(layers=36, width=2560, heads=32, kv_heads=8, head_width=128, feedforward=9728)
QWEN3_VOCAB = 151_936


def config(shape: Shape, vocab: int = VOCAB) -> Qwen3Config:
    out = Qwen3Config(
        vocab_size=vocab,
        hidden_size=shape.width,
        intermediate_size=shape.feedforward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        rms_norm_eps=shape.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_base},
        max_position_embeddings=65_536,
        tie_word_embeddings=True,
    )
    out._attn_implementation = "eager"
    return out


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


def tokens_of(length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, (1, length), generator=torch.Generator().manual_seed(seed))


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
def test_packed_segments_equal_each_alone(causal: bool, padding: int) -> None:
    """Two rows of several segments, with padding before, between and behind, equal one call per segment."""
    model, _ = pair(SHAPES["grouped"])
    rows = [[(-1, padding), (0, 7), (1, 1), (-1, padding), (2, 9)], [(3, 12), (4, 5), (-1, 2 * padding)]]
    segment = torch.tensor([[number for number, count in row for _ in range(count)] for row in rows])
    position, tokens = torch.zeros_like(segment), tokens_of(segment.numel()).view(segment.shape)
    for number in range(5):
        position[segment == number] = torch.arange(int((segment == number).sum())) + 3 * number
    with torch.no_grad():
        packed = model(model.embed_tokens(tokens), Rows(segment, position, alone=False), causal)
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
def test_a_token_moves_what_may_see_it(packed: bool) -> None:
    """Causal: itself and what follows in its segment. Bidirectional: its whole segment. Never another one."""
    model, _ = pair(SHAPES["square"])
    segment = torch.tensor([[0] * 6 + [1] * 5 + [-1] * 3]) if packed else torch.zeros(1, 14, dtype=torch.long)
    rows = Rows(segment, torch.arange(14)[None], alone=not packed)
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
    model = Transformer(SHAPES["square"], VOCAB, layers=0)
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


def test_tied_head_of_the_whole_model() -> None:
    """The uncompressed control is a plain Qwen3 language model with a tied head: same logits, same loss."""
    shape = SHAPES["grouped"]
    theirs = Qwen3ForCausalLM(config(shape)).eval()
    randomise(theirs)
    size = Size(vocab=VOCAB, encoder=shape, decoder=shape, positions="consecutive")
    ours = Compressor(Design(control="uncompressed"), size)
    ours.decoder.load_state_dict(theirs.model.state_dict(), strict=True)
    sample = make("continue", 20, (8,))
    batch = lay_out([sample], ours.design, SPECIALS, size.positions)
    text = [SPECIALS.memory_start, *sample.tokens[:8], SPECIALS.memory_end, *sample.tokens[8:]]
    with torch.no_grad():
        expected = theirs(torch.tensor([text])).logits[0, 9:-1]  # the closing tag predicts the first raw token
        assert (ours(batch) - expected).abs().max() <= 1e-5
    assert batch.target_P.tolist() == text[10:]


@pytest.mark.parametrize(("shape", "count"), [(QWEN3_06B, 596_049_920), (QWEN3_4B, 4_022_468_096)])
def test_parameter_counts_of_the_published_models(shape: Shape, count: int) -> None:
    """Ours on the meta device, arithmetic from the published shape, and theirs agree."""
    d, e = shape.width, shape.head_width
    attention = d * e * (2 * shape.heads + 2 * shape.kv_heads) + 2 * e
    arithmetic = QWEN3_VOCAB * d + shape.layers * (attention + 3 * d * shape.feedforward + 2 * d) + d
    with torch.device("meta"):
        ours = Transformer(shape, QWEN3_VOCAB)
        theirs = Qwen3Model(config(shape, QWEN3_VOCAB))
    counts = [sum(p.numel() for p in m.parameters()) for m in (ours, theirs)]
    assert [arithmetic, *counts] == [count] * 3
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (ours, theirs)]
    assert shapes[0] == shapes[1]
