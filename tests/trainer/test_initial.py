"""Initial weights are those of the folders, nothing else changes, and what does not fit changes nothing."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import Qwen3ForCausalLM, Qwen3Model

from search_space.compressor import Compressor
from search_space.design import Design
from search_space.errors import UsageError
from search_space.transformer import Shape
from tests.search_space.cases import APART, randomise
from tests.search_space.hugging_face import config
from tests.trainer.exports import DECODER, ENCODER, SIZE, SMALL, VOCAB
from trainer.export import export
from trainer.initial import check_initial, load_initial

EOS, MEAN = Design.parse("eos-w16-causal-mlp-O0-n4"), Design.parse("mean-w16-causal-attn_mlp-O0-n4")
UNTIED = replace(SIZE, decoder=replace(DECODER, tied_head=False))
TIED = replace(SMALL, decoder=replace(ENCODER, norm_eps=1e-6), phase_std=0.0)


def build(size: Any = SIZE, design: Design = MEAN, seed: int = 0) -> Compressor:
    model = Compressor(design, size)
    randomise(model, seed)
    return model


def kept(model: Compressor) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def changed(model: Compressor, before: dict[str, Tensor]) -> set[str]:
    return {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}


def qwen(folder: Path, shape: Shape, vocab: int = VOCAB, head: bool = True, seed: int = 5) -> str:
    """A folder as Hugging Face writes it; without a head as Qwen3-Embedding is."""
    model = (Qwen3ForCausalLM if head else Qwen3Model)(config(shape, vocab))
    randomise(model, seed)
    model.save_pretrained(folder)
    return str(folder)


def refused(model: Compressor, encoder: str, decoder: str, message: str) -> None:
    """By both, in one line, before any weight was changed."""
    before = kept(model)
    for read in (check_initial, load_initial):
        with pytest.raises(UsageError, match=message) as raised:
            read(model, encoder, decoder)
        assert "\n" not in str(raised.value)
    assert not changed(model, before)


@pytest.mark.parametrize("size", [SIZE, UNTIED], ids=["tied head", "untied head"])
def test_takes_both_parts(size: Any, tmp_path: Path) -> None:
    model = build(size)
    before = kept(model)
    encoder = qwen(tmp_path / "encoder", ENCODER, head=False)
    decoder = qwen(tmp_path / "decoder", size.decoder)
    load_initial(model, encoder, decoder)
    assert changed(model, before) == {name for name in before if name.startswith(("encoder.", "decoder."))}
    theirs = Qwen3Model.from_pretrained(encoder).state_dict()
    assert model.encoder is not None
    assert all(torch.equal(weight, theirs[name]) for name, weight in model.encoder.state_dict().items())
    theirs = Qwen3ForCausalLM.from_pretrained(decoder).state_dict()
    for name, weight in model.decoder.state_dict().items():
        assert torch.equal(weight, theirs[name if name.startswith("lm_head") else f"model.{name}"])


@pytest.mark.parametrize("part", ["encoder", "decoder", ""])
def test_an_empty_name_leaves_a_part(part: str, tmp_path: Path) -> None:
    model = build()
    before = kept(model)
    folders = {"encoder": ("", ""), "decoder": ("", "")} | {
        part: (qwen(tmp_path, getattr(SIZE, part or "decoder")), "")
    }
    load_initial(model, folders["encoder"][0], folders["decoder"][0])
    assert changed(model, before) == {name for name in before if part and name.startswith(f"{part}.")}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, VOCAB), st.booleans())
def test_fewer_rows_fill_the_first(tmp_path_factory: pytest.TempPathFactory, rows: int, tied: bool) -> None:
    model = build(SIZE if tied else UNTIED)
    before = kept(model)
    folder = qwen(tmp_path_factory.mktemp("rows"), model.size.decoder, rows)
    load_initial(model, "", folder)
    theirs = Qwen3ForCausalLM.from_pretrained(folder).state_dict()
    for name in ("embed_tokens.weight", *(() if tied else ("lm_head.weight",))):
        ours, old = model.decoder.state_dict()[name], before[f"decoder.{name}"]
        stored = theirs[name if name.startswith("lm_head") else f"model.{name}"]
        assert torch.equal(ours[:rows], stored) and torch.equal(ours[rows:], old[rows:])


def test_the_model_keeps_its_dtype(tmp_path: Path) -> None:
    shape = SIZE.decoder
    reference = Qwen3ForCausalLM(config(shape, VOCAB)).to(torch.bfloat16)
    reference.save_pretrained(tmp_path)
    model = build()
    load_initial(model, "", str(tmp_path))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert torch.equal(model.decoder.norm.weight, reference.model.norm.weight.float())


def test_tied_embeddings_come_from_one_folder(tmp_path: Path) -> None:
    model = build(TIED)
    one, other = qwen(tmp_path / "one", TIED.decoder), qwen(tmp_path / "other", TIED.decoder, seed=6)
    refused(model, one, other, "cannot be tied; set size.embeddings=separate")
    load_initial(model, one, one)
    theirs = Qwen3ForCausalLM.from_pretrained(one)
    assert model.encoder is not None and model.encoder.embed_tokens is model.decoder.embed_tokens
    assert torch.equal(model.decoder.embed_tokens.weight, theirs.model.embed_tokens.weight)


def test_refuses_what_does_not_fit(tmp_path: Path) -> None:
    encoder, decoder = qwen(tmp_path / "encoder", ENCODER, head=False), qwen(tmp_path / "decoder", DECODER)
    large = qwen(tmp_path / "large", DECODER, VOCAB + 1)
    base = qwen(tmp_path / "base", replace(DECODER, rope_base=5e6))
    model = build()
    refused(model, encoder, large, f"vocab: {VOCAB + 1} in .* but {VOCAB} in the model; it must not be larger")
    refused(model, encoder, base, "rope_base: 5000000.0 in .* but 1000000.0 in the model")
    refused(model, decoder, decoder, "width: 24 in .* but 16 in the model")
    refused(build(design=Design.parse("blind")), encoder, "", "encoder: blind has none")
    for folders in (("", decoder), (encoder, ""), (encoder, encoder)):
        refused(build(replace(SIZE, phase_std=1.0)), *folders, "size.phase_std: 1.0 .* set size.phase_std=0")
    weights = tmp_path / "decoder/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(model, encoder, decoder, "model.safetensors: cannot be read")
    weights.unlink()
    refused(model, encoder, decoder, "has neither model.safetensors nor")
    refused(model, str(tmp_path / "nowhere"), decoder, "encoder: .* is neither a folder nor a name such as Qwen/Qwen3")


def test_checks_a_model_that_has_no_memory_yet(tmp_path: Path) -> None:
    """As a dry run does."""
    with torch.device("meta"):
        model = Compressor(MEAN, SIZE)
    decoder = qwen(tmp_path / "decoder", DECODER)
    check_initial(model, "", decoder)
    with pytest.raises(UsageError, match="width: 24"):
        check_initial(model, decoder, "")


# --- a whole compressor ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SIZE, TIED, SMALL], ids=["separate", "tied", "phases"])
def test_continues_from_a_whole_compressor(size: Any, words: Path, tmp_path: Path) -> None:
    one = build(replace(size, decoder=replace(size.decoder, width=16)) if size is SMALL else size)
    export(one, words, tmp_path / "out", ours=True)
    other = build(one.size, seed=1)
    load_initial(other, str(tmp_path / "out"), str(tmp_path / "out"))
    assert not changed(other, kept(one))


def test_a_whole_compressor_gives_one_part(words: Path, tmp_path: Path) -> None:
    """Its decoder alone, or its encoder with the adapter; on another window, which has no weights."""
    one = build()
    export(one, words, tmp_path / "out")
    for folders, parts in ((("", "out"), ("decoder.",)), (("out", ""), ("encoder.", "adapter."))):
        other = build(design=MEAN.but(window=64, overlap=3), seed=1)
        before = kept(other)
        load_initial(other, *(str(tmp_path / name) if name else "" for name in folders))
        assert changed(other, before) == {name for name in before if name.startswith(parts)}
        assert all(torch.equal(other.state_dict()[n], w) for n, w in kept(one).items() if n.startswith(parts))


def test_refuses_another_compressor(words: Path, tmp_path: Path) -> None:
    export(build(), words, tmp_path / "out")
    folder = str(tmp_path / "out")
    refused(build(design=EOS), folder, folder, "pooling: mean in .* but eos in the model")
    refused(build(design=MEAN.but(depth=2)), folder, folder, "depth: 1 in .* but 2 in the model")
    refused(build(replace(SIZE, phase_std=1.0)), folder, folder, "lclab.safetensors: cannot be read")
    size = replace(SIZE, decoder=replace(DECODER, width=16))
    export(build(size), words, tmp_path / "narrow")
    narrow = str(tmp_path / "narrow")
    refused(build(replace(size, embeddings="tied")), narrow, narrow, "embeddings: separate in .* but tied in the model")


# --- names ----------------------------------------------------------------------------------------------------------


@contextmanager
def hub(folder: Path, name: str) -> Generator[tuple[str, list[str]]]:
    """The part of the Hub's protocol that a download needs; its address, and what was asked for."""
    commit, asked = "0123456789abcdef0123456789abcdef01234567", []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            file = path.rsplit("/", 1)[-1]  # files are asked for at the same time
            asked.append(file)
            siblings = [{"rfilename": p.name} for p in folder.iterdir()]
            if path.startswith(f"/api/models/{name}/tree/"):
                body = json.dumps(
                    [
                        {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": p.name}
                        for p in folder.iterdir()
                    ]
                ).encode()
            elif path.startswith(f"/api/models/{name}"):
                body = json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode()
            elif path.startswith(f"/{name}/resolve/{commit}/"):
                body = (folder / file).read_bytes()
            else:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{file}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


FETCH = """
import sys
from dataclasses import replace
from search_space.compressor import Compressor
from search_space.design import Design
from search_space.errors import UsageError
from tests.search_space.cases import APART
from trainer.initial import load_initial

for name in sys.argv[1:]:
    model = Compressor(Design(ratio=4, window=16), replace(APART, phase_std=0.0))
    try:
        load_initial(model, "", name)
        print(model.decoder.norm.weight.sum().item())
    except UsageError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_name_is_fetched_without_pickles(tmp_path: Path) -> None:
    """In a process of its own, since the Hub's address is read when its library is imported."""
    folder = tmp_path / "theirs"
    qwen(folder, APART.decoder, APART.vocab)
    (folder / "pytorch_model.bin").write_bytes(b"never to be read")
    told = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
    with hub(folder, "Qwen/Qwen3-mini") as (endpoint, asked):
        command = [sys.executable, "-c", FETCH, "Qwen/Qwen3-mini", "Qwen/nothere"]
        done = subprocess.run(
            command, env=os.environ | told | {"HF_ENDPOINT": endpoint}, text=True, capture_output=True
        )
    assert done.returncode == 0, done.stderr
    found, refused = done.stdout.splitlines()
    expected = Qwen3ForCausalLM.from_pretrained(folder).model.norm.weight.sum().item()
    assert float(found) == pytest.approx(expected, abs=1e-5)
    assert "model.safetensors" in asked and "pytorch_model.bin" not in asked
    assert refused.startswith("decoder: Qwen/nothere is no folder and cannot be fetched (")
