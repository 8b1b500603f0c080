"""What we export is read by `transformers` and by a plain reading of the layout to the same latents and logits, and
comes back bit for bit; what the layout has no place for is refused, or written for ourselves alone."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RotaryEmbedding

from search_space.compressor import Compressor, Size
from search_space.design import Design
from search_space.errors import UsageError
from search_space.layout import Sample, lay_out
from tests.search_space.cases import designs, randomise
from tests.trainer.exports import DECODER, ENCODER, SIZE, SMALL, VOCAB, build, reweigh, rewrite
from trainer import checkpoint, state, tokenizer
from trainer.export import compressor_of, export
from trainer.exported import import_, lacking
from trainer.records import Document

PUBLISHED = [
    "mean-w16-causal-mlp-O0-n4",
    "mean-w16-causal-mlp-O5-n4",
    "mean-w16-bidirectional-mlp-O6-n4",
    "concat-w8-causal-mlp-O0-n4",
    "concat-w4-bidirectional-mlp_attn-O0-n4",
    "eos-w16-causal-mlp-O3-n4",
    "eos-w16-bidirectional-mlp-O3-n4",
    "mean-w16-bidirectional-attn_mlp-O4-n4-l2",
    "eos-w8-causal-attn_mlp-O0-n4",
    "mean-w16-causal-mlp_attn-O0-n4-l2",
]


def samples() -> list[Sample]:
    """Long spans and short ones, a last block that is cut, one that ends wrapped, one that begins raw."""
    rng = np.random.default_rng(0)
    cuts = [(43,), (7, 9), (0, 4, 41, 44), (17, 20, 61)]
    return [Sample(rng.integers(10, 290, 70), cut, "continue", i) for i, cut in enumerate(cuts)]


def batch(model: Compressor, words: Path) -> Any:
    specials = tokenizer.specials_of(tokenizer.load(str(words))[0])
    return lay_out(samples(), model.design, specials, model.size.positions)


# --- the layout, read by others -------------------------------------------------------------------------------------


def words_in(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


class Reader:
    """The folder by its files alone: `transformers`, and the definitions of the paper in a loop."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "model_config.json").read_text())
        self.words = words_in(folder / "decoder")
        self.pad = words_in(folder / "encoder").pad_token_id
        options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager", "output_loading_info": True}
        loaded: list[Any] = [
            AutoModel.from_pretrained(folder / "encoder", **options),
            AutoModelForCausalLM.from_pretrained(folder / "decoder", **options),
        ]
        (self.encoder, _), (self.decoder, _) = loaded
        assert not any(report for _, reports in loaded for report in reports.values())
        self.adapter = load_file(folder / "adapter/adapter.safetensors")

    def latents(self, span: list[int]) -> Tensor:
        window, overlap = self.config["encoder_window_size"], self.config["boundary_overlap"]
        causal = self.config["encoder_mask_type"] == "causal"
        found = []
        for start in range(0, len(span), window):
            core = span[start : start + window]
            left = span[max(0, start - overlap) : start]
            right = [] if causal else span[start + len(core) : start + len(core) + overlap]
            n = self.config["compression_ratio"]
            count = -(-len(core) // n)
            markers = [self.pad] * count if self.config["pooling"] == "eos" else []
            tokens = torch.tensor([left + core + right + markers])
            t = tokens.shape[1]
            mask = None if causal else torch.zeros(1, 1, t, t)
            hidden = self.encoder(tokens, attention_mask=mask).last_hidden_state[0]
            blocks = hidden[len(left) : len(left) + len(core)].split(n)
            if self.config["pooling"] == "eos":
                found += list(hidden[-count:])
            elif self.config["pooling"] == "mean":
                found += [block.mean(0) for block in blocks]
            else:
                found += [F.pad(block.flatten(), (0, n * hidden.shape[1] - block.numel())) for block in blocks]
        return self.adapt(torch.stack(found))

    def adapt(self, x: Tensor) -> Tensor:
        a, kind = self.adapter, self.config["adapter_type"]
        if kind == "attn_mlp":
            x = self.attend(x, self.encoder.config)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * a["norm.weight"]
        x = F.gelu(x @ a["fc1.weight"].T + a["fc1.bias"]) @ a["fc2.weight"].T + a["fc2.bias"]
        return self.attend(x, self.decoder.config) if kind == "mlp_attn" else x

    def attend(self, x: Tensor, config: Any) -> Tensor:
        angles = Qwen3RotaryEmbedding(config)(x, torch.arange(len(x))[None])
        for k in range(self.config["num_adapter_layers"]):
            layer, own = Qwen3DecoderLayer(config, k), f"attention_layers.{k}.decoder_layer."
            weights = {key.removeprefix(own): w for key, w in self.adapter.items() if key.startswith(own)}
            layer.load_state_dict(weights, strict=True)
            hidden = layer(x[None], attention_mask=torch.zeros(1, 1, len(x), len(x)), position_embeddings=angles)
            x = hidden[0] if hidden.ndim == 3 else hidden
        return x

    def logits(self, sample: Sample) -> tuple[list[Tensor], Tensor]:
        """Latents of each span, and the logits of each raw token that follows anything."""
        embed = self.decoder.get_input_embeddings().weight
        opening, closing = self.words.convert_tokens_to_ids(["<|memory_start|>", "<|memory_end|>"])
        inputs, raw, latents = [], [], []
        for number, (start, stop) in enumerate(pairwise([0, *sample.cuts, len(sample.tokens)])):
            tokens = sample.tokens[start:stop].tolist()
            if number % 2:
                inputs.append(embed[tokens])
                raw += [True] * len(tokens)
            elif tokens:
                latents.append(self.latents(tokens))
                inputs += [embed[[opening]], latents[-1], embed[[closing]]]
                raw += [False] * (len(latents[-1]) + 2)
        out = self.decoder(inputs_embeds=torch.cat(inputs)[None]).logits[0]
        return latents, out[:-1][torch.tensor(raw)[1:]]


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_others_compute_our_latents_and_logits(name: str, words: Path, tmp_path: Path) -> None:
    model = build(name, replace(SIZE, decoder=replace(DECODER, tied_head="eos" in name)))
    export(model, words, tmp_path / "out")
    reader, ours = Reader(tmp_path / "out"), batch(model, words)
    found = [reader.logits(sample) for sample in samples()]
    latents = torch.cat([x for spans, _ in found for x in spans])
    assert (latents - model.encode(ours.encoder)).abs().max() <= 1e-5
    assert (torch.cat([x for _, x in found]) - model(ours)).abs().max() <= 1e-5


def test_their_tokenizer_is_ours(words: Path, tmp_path: Path) -> None:
    export(build("eos-w8-causal-mlp-O0-n4"), words, tmp_path / "out")
    ours = tokenizer.load(str(words))[0]
    padding = {"decoder": "<|mask|>", "encoder": "<|memory|>"}  # an eos marker is the encoder's padding
    for part, pad in padding.items():
        theirs = words_in(tmp_path / "out" / part)
        for text in ("def f(x):\n\treturn 'e\u0301' + 0123", "a<|memory_start|><|memory|><|memory|><|memory_end|> b"):
            assert theirs(text)["input_ids"] == ours.encode(text, add_special_tokens=False).ids
            assert theirs.decode(theirs(text)["input_ids"], clean_up_tokenization_spaces=False) == text
        specials = ["<|memory_start|>", "<|memory_end|>", "<|memory|>"]
        assert theirs.convert_tokens_to_ids(specials) == [ours.token_to_id(token) for token in specials]
        assert set(specials) <= set(theirs.all_special_tokens)
        assert theirs.pad_token == pad and theirs.eos_token == "<|im_end|>"
        config = json.loads((tmp_path / "out" / part / "config.json").read_text())
        assert (config["pad_token_id"], config["eos_token_id"]) == (theirs.pad_token_id, theirs.eos_token_id)


def test_their_chat_is_ours(words: Path, tmp_path: Path) -> None:
    export(build("mean-w8-causal-mlp-O0-n4"), words, tmp_path / "out")
    theirs = words_in(tmp_path / "out/decoder")
    talk = [("user", "the quick\nfox"), ("assistant", "jumps")]
    (encoded,) = tokenizer.Encoder(words)([Document("", messages=tuple(talk))])
    messages = [{"role": role, "content": content} for role, content in talk]
    assert theirs.apply_chat_template(messages, tokenize=False) == theirs.decode(encoded.tokens)


def test_a_decoder_generates(words: Path, tmp_path: Path) -> None:
    model = build("mean-w8-causal-mlp-O0-n4")
    export(model, words, tmp_path / "out")
    reader = Reader(tmp_path / "out")
    inputs = torch.cat([reader.latents(list(range(20, 33)))] * 2)[None]
    out = reader.decoder.generate(inputs_embeds=inputs.repeat(2, 1, 1), max_new_tokens=3, do_sample=False)
    assert out.shape == (2, 3)


# --- there and back -------------------------------------------------------------------------------------------------


def assert_same(model: Compressor, again: Compressor) -> None:
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert not any(p.is_meta for p in again.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_import_gives_every_bit_back(name: str, words: Path, tmp_path: Path) -> None:
    model = build(name)
    export(model, words, tmp_path / "out")
    again = import_(tmp_path / "out")
    assert (again.design, again.size) == (model.design, model.size)
    assert_same(model, again)
    step = batch(model, words)
    assert all(map(torch.equal, model.scores(step), again.scores(step)))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(designs(st.integers(2, 4), st.integers(1, 4)), st.booleans())
def test_whatever_a_design_is_ours_comes_back(
    words: Path, tmp_path_factory: pytest.TempPathFactory, design: Design, small: bool
) -> None:
    """And is refused where only the published layout is asked for, exactly if it says that something is lacking."""
    model = Compressor(design, SMALL if small else replace(SIZE, decoder=replace(DECODER, width=16)))
    randomise(model)
    folder = tmp_path_factory.mktemp("export")
    export(model, words, folder / "out", ours=True)
    again = import_(folder / "out")
    assert again.size == model.size and again.design == model.design
    assert (again.encoder is None) or (
        (again.encoder.embed_tokens is again.decoder.embed_tokens) == (model.size.embeddings == "tied")
    )
    assert_same(model, again)
    if odd := lacking(design, model.size):
        assert json.loads((folder / "out/model_config.json").read_text())["pooling"] == f"lclab-{design.pooling}"
        with pytest.raises(UsageError) as refused:
            export(model, words, folder / "published")
        assert all(what in str(refused.value) for what in odd) and not (folder / "published").exists()
    else:
        export(model, words, folder / "published")
        assert_same(model.to(torch.float32), import_(folder / "published"))


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("attention-w16-causal-mlp-O0-n4", {}, "pooling attention"),
        ("conv-w16-causal-mlp-O0-n4", {}, "pooling conv"),
        ("mean-w16-causal-mlp-O0-n4", {"positions": "spread"}, "positions spread"),
        ("mean-w16-causal-mlp-O0-n4", {"phase_std": 0.5}, "phase_std 0.5"),
        ("concat-w16-causal-attn_mlp-O0-n4", {}, "adapter attn_mlp with pooling concat"),
        ("mean-w16-causal-mlp-O0-n4", {"encoder": replace(ENCODER, norm_eps=1e-5)}, "norm_eps 1e-05"),
        ("mean-w16-causal-mlp-O0-n4-encoderless", {}, "control encoderless"),
        ("uncompressed", {}, "control uncompressed"),
        ("blind", {}, "control blind"),
    ],
)
def test_refuses_what_published_loaders_would_get_wrong(
    name: str, change: dict[str, Any], word: str, words: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=word) as refused:
        export(build(name, replace(SIZE, **change)), words, tmp_path / "out")
    assert "\n" not in str(refused.value) and "--ours" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_theirs_has_a_padding_token_for_a_marker(words: Path, tmp_path: Path) -> None:
    """As Qwen3-Embedding is: fewer rows than the decoder, and eos latents marked by its own padding token."""
    model = build("eos-w16-causal-mlp-O3-n4")
    ids = tokenizer.load(str(words))[0].get_vocab()
    assert model.encoder is not None
    with torch.no_grad():
        rows = model.encoder.embed_tokens.weight
        rows[ids["x"]] = rows[ids["<|memory|>"]]
    export(model, words, tmp_path / "out")
    encoder = tmp_path / "out/encoder"
    rewrite(encoder / "tokenizer_config.json", lambda c: c.update(pad_token={"content": "x"}))
    rewrite(encoder / "config.json", lambda c: c.update(vocab_size=VOCAB - 20))

    def cut(weights: dict[str, Tensor]) -> None:
        weights["embed_tokens.weight"] = weights["embed_tokens.weight"][: VOCAB - 20].clone()
        weights["embed_tokens.weight"][ids["<|memory|>"]] = 7.0

    reweigh(encoder / "model.safetensors", cut)
    again = import_(tmp_path / "out")
    step = batch(model, words)
    assert all(map(torch.equal, model.scores(step), again.scores(step)))
    assert again.encoder is not None and not again.encoder.embed_tokens.weight[VOCAB - 20 :].any()


def test_more_rows_where_a_corpus_needs_them(words: Path, tmp_path: Path) -> None:
    model = build("mean-w16-causal-mlp-O0-n4")
    export(model, words, tmp_path / "out")
    again = import_(tmp_path / "out", vocab=VOCAB + 5)
    assert again.size == replace(model.size, vocab=VOCAB + 5)
    assert torch.equal(again.decoder.embed_tokens.weight[:VOCAB], model.decoder.embed_tokens.weight)
    assert not again.decoder.embed_tokens.weight[VOCAB:].any()


def test_goes_through_bfloat16(words: Path, tmp_path: Path) -> None:
    model = build("mean-w16-causal-mlp-O0-n4").to(torch.bfloat16)
    export(model, words, tmp_path / "out")
    weights = load_file(tmp_path / "out/adapter/adapter.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out/decoder/config.json").read_text())["dtype"] == "bfloat16"
    assert_same(model.to(torch.float32), import_(tmp_path / "out"))


# --- from a checkpoint ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("once", [True, False], ids=["whole", "as Lightning has it"])
@pytest.mark.parametrize("size", [SMALL, SIZE], ids=["tied", "separate"])
def test_a_checkpoint_becomes_a_compressor(size: Size, once: bool, tmp_path: Path) -> None:
    """A tied embedding is kept once or twice, as the strategy has it."""
    model = build("attention-w16-causal-attn_mlp-O0-n4", size)
    kept = state.of_module(model) if once else {name: weight.clone() for name, weight in model.state_dict().items()}
    checkpoint.write({"state_dict": {f"model.{n}": w for n, w in kept.items()}}, tmp_path / "step-000000001")
    found = checkpoint.read(tmp_path / "step-000000001")["state_dict"]
    again = compressor_of(found, model.design, size)
    assert_same(model, again)
    assert len(list(again.parameters())) == len(list(model.parameters()))
    found.pop("model.adapter.fc1.bias")
    with pytest.raises(UsageError, match=r"adapter.fc1.bias is not that of attention-w16"):
        compressor_of(found, model.design, size)
    with pytest.raises(UsageError, match="is not that of"):
        compressor_of({f"model.{n}": w for n, w in kept.items()}, model.design.but(pooling="conv"), size)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_nothing_is_written_where_it_fails(words: Path, tmp_path: Path) -> None:
    model = build("mean-w16-causal-mlp-O0-n4")
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="exists"):
        export(model, words, tmp_path / "there")
    with pytest.raises(UsageError, match="cannot be read"):
        export(model, tmp_path / "nowhere.json", tmp_path / "out")
    with pytest.raises(UsageError, match="token 300, and the model 300 rows"):
        export(
            build("mean-w16-causal-mlp-O0-n4", replace(SIZE, vocab=300)),
            with_one_more(words, tmp_path),
            tmp_path / "out",
        )
    model.adapter.fc2.bias = torch.nn.Parameter(torch.ones(24, dtype=torch.complex32), requires_grad=False)
    with pytest.raises(Exception, match="complex32"):  # after the decoder and the encoder were written
        export(model, words, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["more.json", "there"]
    assert list((tmp_path / "there").iterdir()) == []


def with_one_more(words: Path, folder: Path) -> Path:
    more = tokenizer.load(str(words))[0]
    more.add_tokens([f"<{i}>" for i in range(301 - more.get_vocab_size())])
    more.save(str(folder / "more.json"))
    return folder / "more.json"


def test_refuses_a_tokenizer_without_our_tokens(tmp_path: Path) -> None:
    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UsageError, match=r"has no <\|memory_start\|>"):
        export(build("mean-w16-causal-mlp-O0-n4"), tmp_path / "tokenizer.json", tmp_path / "out")
