"""Folders go both ways between `transformers` and our transformer with equal logits; what is not Qwen3 is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen3ForCausalLM, Qwen3Model

from search_space import qwen3
from search_space.compressor import Compressor
from search_space.design import Design
from search_space.errors import UsageError
from search_space.transformer import Rows, Shape, Transformer
from tests.search_space.cases import SHARED, VOCAB, randomise
from tests.search_space.hugging_face import config

TIED = Shape(layers=2, width=16, heads=4, kv_heads=2, head_width=8, feedforward=24, rope_base=5e5, norm_eps=1e-5)
UNTIED = replace(TIED, tied_head=False)
SHAPES = pytest.mark.parametrize("shape", [TIED, UNTIED], ids=["tied", "untied"])
TOKENS = torch.randint(0, VOCAB, (2, 23), generator=torch.Generator().manual_seed(0))


def theirs(shape: Shape, seed: int = 0) -> Qwen3ForCausalLM:
    model = Qwen3ForCausalLM(config(shape)).eval()
    randomise(model, seed)
    return model


def ours(shape: Shape, head: bool = True) -> Transformer:
    model = Transformer(shape, VOCAB, head)
    randomise(model)
    return model


def hidden(model: Transformer, tokens: Tensor = TOKENS) -> Tensor:
    position = torch.arange(tokens.shape[1]).expand_as(tokens)
    return model(model.embed_tokens(tokens), Rows(torch.zeros_like(tokens), position, alone=True))


def assert_equal_logits(model: Transformer, reference: Qwen3ForCausalLM) -> None:
    with torch.no_grad():
        assert (model.logits(hidden(model)) - reference(TOKENS).logits).abs().max() <= 1e-5


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change config.json in place."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def reweigh(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the weights in place."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def refused(folder: Path, message: str) -> None:
    """By both readers, in one line; and the one that fills a model has changed no weight of it."""
    model = ours(TIED)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    for read in (lambda: qwen3.load(folder), lambda: qwen3.load_into(model, folder)):
        with pytest.raises(UsageError, match=message) as raised:
            read()
        assert "\n" not in str(raised.value)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


# --- both ways ------------------------------------------------------------------------------------------------------


@SHAPES
@pytest.mark.parametrize("shard", ["50GB", "2KB"], ids=["one file", "sharded"])
def test_reads_what_transformers_writes(shape: Shape, shard: str, tmp_path: Path) -> None:
    reference = theirs(shape)
    reference.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 3) == (shard == "2KB")
    model = qwen3.load(tmp_path)
    assert model.shape == shape
    assert_equal_logits(model, reference)
    other = ours(shape)
    qwen3.load_into(other, tmp_path)
    assert_equal_logits(other, reference)


@SHAPES
def test_transformers_reads_what_we_write(shape: Shape, tmp_path: Path) -> None:
    model = ours(shape)
    qwen3.save(model, tmp_path / "model")
    loaded: Any = Qwen3ForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    reference, report = loaded
    assert not any(report.values()), report
    assert_equal_logits(model, reference.eval())
    assert reference.config.rope_parameters["rope_theta"] == shape.rope_base


@SHAPES
def test_an_encoder_is_a_model_without_head(shape: Shape, tmp_path: Path) -> None:
    """As Qwen3-Embedding is published: no prefix, no head. A language model's folder gives an encoder as well."""
    reference = Qwen3Model(config(shape)).eval()
    randomise(reference)
    reference.save_pretrained(tmp_path / "theirs")
    assert "embed_tokens.weight" in load_file(tmp_path / "theirs/model.safetensors")
    model = qwen3.load(tmp_path / "theirs", head=False)
    qwen3.save(model, tmp_path / "ours")
    loaded: Any = Qwen3Model.from_pretrained(tmp_path / "ours", output_loading_info=True)
    again, report = loaded
    assert not any(report.values()), report
    with torch.no_grad():
        expected = reference(TOKENS).last_hidden_state
        assert (hidden(model) - expected).abs().max() <= 1e-5
        assert (again.eval()(TOKENS).last_hidden_state - expected).abs().max() <= 1e-5

    language_model = Qwen3ForCausalLM(config(shape))
    language_model.model.load_state_dict(reference.state_dict())
    language_model.save_pretrained(tmp_path / "with head")
    encoder = qwen3.load(tmp_path / "with head", head=False)
    assert encoder.lm_head is None and torch.equal(hidden(encoder), hidden(model))


def test_fills_encoder_and_decoder_of_a_compressor(tmp_path: Path) -> None:
    """What a promotion does."""
    size = replace(SHARED, encoder=TIED, decoder=UNTIED, embeddings="separate")
    compressor = Compressor(Design("mean", 2, 4), size)
    encoder, decoder = theirs(TIED, seed=1), theirs(UNTIED, seed=2)
    encoder.model.save_pretrained(tmp_path / "encoder")
    decoder.save_pretrained(tmp_path / "decoder")
    assert compressor.encoder is not None
    qwen3.load_into(compressor.encoder, tmp_path / "encoder")
    qwen3.load_into(compressor.decoder, tmp_path / "decoder")
    assert_equal_logits(compressor.decoder, decoder)
    with torch.no_grad():
        difference = hidden(compressor.encoder) - encoder.model(TOKENS).last_hidden_state
    assert difference.abs().max() <= 1e-5


def test_a_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        model = ours(UNTIED).to(dtype)
        qwen3.save(model, tmp_path / str(dtype))
        again = qwen3.load(tmp_path / str(dtype))
        assert again.shape == model.shape
        for name, weight in again.state_dict().items():
            assert weight.dtype == dtype and torch.equal(weight, model.state_dict()[name])
        assert all(p.requires_grad and not p.is_meta for p in again.parameters())


def test_the_dtype_is_the_files_unless_asked_for(tmp_path: Path) -> None:
    """A model that is filled keeps its own."""
    theirs(TIED).to(torch.bfloat16).save_pretrained(tmp_path)
    as_stored, asked, filled = qwen3.load(tmp_path), qwen3.load(tmp_path, dtype=torch.float32), ours(TIED)
    qwen3.load_into(filled, tmp_path)
    assert {p.dtype for p in as_stored.parameters()} == {torch.bfloat16}
    for model in (asked, filled):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert all(torch.equal(w, as_stored.state_dict()[n].float()) for n, w in model.state_dict().items())


def test_the_weights_are_not_the_file(tmp_path: Path) -> None:
    """Training must not reach through to the file, nor a new file to the weights."""
    qwen3.save(ours(TIED), tmp_path / "model")
    path = tmp_path / "model/model.safetensors"
    before, model = path.read_bytes(), qwen3.load(tmp_path / "model")
    weights = [p.clone() for p in model.parameters()]
    path.write_bytes(bytes(len(before)))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), weights, strict=True))
    path.write_bytes(before)
    with torch.no_grad():
        model.embed_tokens.weight.zero_()
    assert path.read_bytes() == before


def test_the_rotary_base_in_both_spellings(tmp_path: Path) -> None:
    """Top-level, as the published folders have it, and as transformers 5 writes it; ours has both."""
    reference = theirs(TIED)
    reference.save_pretrained(tmp_path)

    def old(content: dict[str, Any]) -> None:
        content |= {"rope_theta": content.pop("rope_parameters")["rope_theta"], "rope_scaling": None}

    assert "rope_theta" not in json.loads((tmp_path / "config.json").read_text())
    assert qwen3.load(tmp_path).shape.rope_base == TIED.rope_base
    rewrite(tmp_path, old)
    assert_equal_logits(qwen3.load(tmp_path), reference)
    rewrite(tmp_path, lambda c: c.update(rope_theta=10_000))
    assert qwen3.load(tmp_path).shape.rope_base == 10_000.0
    qwen3.save(ours(TIED), tmp_path / "ours")
    written = json.loads((tmp_path / "ours/config.json").read_text())
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == TIED.rope_base


def test_a_tied_head_that_is_stored_all_the_same(tmp_path: Path) -> None:
    """As published with Qwen3-0.6B: taken if it is the embedding."""
    reference = theirs(TIED)
    reference.save_pretrained(tmp_path)
    reweigh(tmp_path, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    assert_equal_logits(qwen3.load(tmp_path), reference)
    reweigh(tmp_path, lambda w: w["lm_head.weight"].add_(1))
    refused(tmp_path, "tie_word_embeddings is true, but lm_head.weight is not the embedding")
    assert qwen3.load(tmp_path, head=False).lm_head is None


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    qwen3.save(ours(TIED), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(("change", "message"), [
    ({"model_type": "qwen2"}, "model_type is 'qwen2'; only 'qwen3' is read"),
    ({"model_type": None}, "model_type is None"),
    ({"attention_bias": True}, "attention_bias is True; only False is supported"),
    ({"use_sliding_window": True}, "use_sliding_window is True; only False"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is .*; only full_attention"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu' is supported"),
    ({"attention_dropout": 0.1}, "attention_dropout is 0.1; only 0"),
    ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config is"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling is"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "only rope_type 'default' is supported"),
    ({"rope_parameters": {"rope_theta": 1e6, "factor": 4.0}}, "only rope_type 'default' is supported"),
    ({"rope_parameters": [1e6]}, "only rope_type 'default' is supported"),
    ({"rope_parameters": None, "rope_theta": None}, "rope_theta is None; it must be of type float"),
    ({"head_dim": None}, "head_dim is None; it must be of type int"),
    ({"hidden_size": "16"}, "hidden_size is '16'; it must be of type int"),
    ({"num_hidden_layers": True}, "num_hidden_layers is True; it must be of type int"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; it must be of type bool"),
    ({"vocab_size": None}, "vocab_size is None"),
    ({"num_attention_heads": 0}, "below 1"),
], ids=str)  # fmt: skip
def test_refuses_another_architecture(folder: Path, change: dict[str, Any], message: str) -> None:
    rewrite(folder, lambda content: content.update(change))
    refused(folder, message)


@pytest.mark.parametrize(("change", "message"), [
    (lambda w: w.pop("model.norm.weight"), "lacks norm.weight"),
    (lambda w: w.update(extra=torch.zeros(1)), "has unknown extra"),
    (lambda w: w.update({"norm.weight": torch.zeros(16)}), "is stored twice"),
    (lambda w: w.update({f"layers.{i}.self_attn.q_proj.bias": torch.zeros(1) for i in range(5)}),
     "layers.2.self_attn.q_proj.bias and 2 more"),
    (lambda w: w.update({"model.layers.1.self_attn.k_proj.weight": torch.zeros(16, 8)}),
     r"model.layers.1.self_attn.k_proj.weight is \[16, 8\]; its config says \[16, 16\]"),
    (lambda w: w.update({"model.norm.weight": torch.zeros(())}), r"model.norm.weight is \[\]"),
])  # fmt: skip
def test_refuses_other_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    reweigh(folder, change)
    refused(folder, message)


def test_refuses_an_untied_head_that_is_missing(tmp_path: Path) -> None:
    theirs(TIED).save_pretrained(tmp_path)
    rewrite(tmp_path, lambda content: content.update(tie_word_embeddings=False))
    with pytest.raises(UsageError, match="lacks lm_head.weight"):
        qwen3.load(tmp_path)


@pytest.mark.parametrize("field", ["layers", "heads", "rope_base", "norm_eps", "tied_head"])
def test_refuses_to_fill_another_shape(folder: Path, field: str) -> None:
    """Also where all weights would fit: twice the heads of half the width, another rotary base."""
    changes: dict[str, Any] = {
        "layers": {"layers": 1},
        "heads": {"heads": 8, "kv_heads": 4, "head_width": 4},
        "rope_base": {"rope_base": 1e4},
        "norm_eps": {"norm_eps": 1e-6},
        "tied_head": {"tied_head": False},
    }
    model = ours(replace(TIED, **changes[field]))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(UsageError, match=f"{field}: .* but .* in the model"):
        qwen3.load_into(model, folder)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_refuses_another_vocabulary(folder: Path) -> None:
    with pytest.raises(UsageError, match=f"vocab: {VOCAB} in .* but {VOCAB + 1} in the model"):
        qwen3.load_into(Transformer(TIED, VOCAB + 1, head=True), folder)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1, exclude_max=True))
def test_refuses_a_truncated_file(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    """Wherever it was cut."""
    folder = tmp_path_factory.mktemp("cut") / "model"
    qwen3.save(ours(TIED), folder)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(folder, "model.safetensors: cannot be read")


def test_refuses_a_damaged_folder(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "config.json: cannot be read")
    weights, content = folder / "model.safetensors", (folder / "config.json").read_text()
    for text, message in ((content[:-9], "cannot be read"), ("[]", "holds no JSON object")):
        (folder / "config.json").write_text(text)
        refused(folder, message)
    (folder / "config.json").write_text(content)
    weights.rename(folder / "pytorch_model.bin")
    refused(folder, "has neither model.safetensors nor model.safetensors.index.json")


def test_refuses_a_damaged_index(tmp_path: Path) -> None:
    theirs(TIED).save_pretrained(tmp_path / "model", max_shard_size="2KB")
    index = tmp_path / "model/model.safetensors.index.json"
    content = json.loads(index.read_text())
    shard = content["weight_map"]["model.norm.weight"]
    kept = (tmp_path / "model" / shard).read_bytes()
    (tmp_path / "model" / shard).unlink()
    refused(tmp_path / "model", f"{shard}: cannot be read")
    shutil.copy(tmp_path / "model/config.json", tmp_path / "config.json")
    (tmp_path / shard).write_bytes(kept)
    for shards in ({"model.norm.weight": f"../{shard}"}, {"model.norm.weight": 1}, None):
        index.write_text(json.dumps({"weight_map": shards}))
        refused(tmp_path / "model", "weight_map does not name files of its folder")


# --- saving is all or nothing ---------------------------------------------------------------------------------------


def test_writes_nothing_over_what_is_there(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match="exists; choose a folder that does not"):
        qwen3.save(ours(UNTIED), folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    """A weight that cannot be stored fails after the config was written."""
    model = ours(TIED)
    model.norm.weight = torch.nn.Parameter(torch.ones(16, dtype=torch.complex32), requires_grad=False)
    with pytest.raises(Exception, match="complex32"):
        qwen3.save(model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_leaves_nothing_beside_the_folder(folder: Path) -> None:
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    usual = folder.parent / "usual"
    usual.mkdir()
    (usual / "file").touch()
    assert folder.stat().st_mode == usual.stat().st_mode
    assert {path.stat().st_mode for path in folder.iterdir()} == {(usual / "file").stat().st_mode}
