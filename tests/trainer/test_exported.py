"""A folder that is damaged, incomplete or contradicts itself is refused in a line that says where."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from search_space.errors import UsageError
from tests.trainer.exports import SIZE, SMALL, build, reweigh, rewrite
from trainer.export import export
from trainer.exported import describe, import_


def refused(folder: Path, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        import_(folder)
    assert "\n" not in str(raised.value)


@pytest.fixture
def folder(words: Path, tmp_path: Path) -> Path:
    export(build("mean-w16-causal-attn_mlp-O4-n4"), words, tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooling": "max"}, "pooling: 'max' is not one of"),
        ({"pooling": "conv"}, "pooling conv .* cannot be imported"),
        ({"pooling": "lclab-mean"}, "lclab.json is missing"),
        ({"pooling": None}, "pooling is None; it must be of type str"),
        ({"compression_ratio": "4"}, "compression_ratio is '4'; it must be of type int"),
        ({"compression_ratio": 5}, "window"),
        ({"encoder_window_size": 4}, "boundary_overlap 4 .*means nothing here"),
        ({"encoder_mask_type": "full"}, "mask: 'full' is not one of"),
        ({"num_adapter_layers": 2}, "lacks attention_layers.1.decoder_layer"),
        ({"adapter_type": "mlp_attn"}, r"attention_layers.0.*is \[.*\]; its config says"),
        ({"adapter_type": "mlp"}, "has unknown attention_layers.0.decoder_layer"),
    ],
)
def test_refuses_another_config(folder: Path, change: dict[str, Any], message: str) -> None:
    rewrite(folder / "model_config.json", lambda content: content.update(change))
    refused(folder, message)


def test_refuses_what_is_missing_or_does_not_fit(folder: Path) -> None:
    adapter = folder / "adapter/adapter.safetensors"
    kept = adapter.read_bytes()
    changes: list[tuple[Callable[[dict[str, Tensor]], Any], str]] = [
        (lambda w: w.pop("fc2.bias"), "lacks fc2.bias"),
        (lambda w: w.update({"fc3.bias": torch.zeros(2)}), "has unknown fc3.bias"),
        (lambda w: w.update({"fc1.weight": torch.zeros(3, 4)}), r"fc1.weight is \[3, 4\]"),
    ]
    for change, message in changes:
        reweigh(adapter, change)
        refused(folder, message)
        adapter.write_bytes(kept)
    rewrite(folder / "encoder/tokenizer.json", lambda c: c["added_tokens"].append(c["added_tokens"][0] | EXTRA))
    refused(folder, "'zzz' is token 300 of the encoder and None of the decoder")
    for name in ("encoder/tokenizer.json", "decoder/config.json", "model_config.json", "adapter/adapter.safetensors"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        refused(folder, f"{name}.*cannot be read")
        (folder / name).write_bytes(content)


EXTRA = {"id": 300, "content": "zzz"}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True), st.sampled_from(["adapter/adapter", "encoder/model", "decoder/model"]))
def test_refuses_a_truncated_file(folder: Path, share: float, name: str) -> None:
    path = folder / f"{name}.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(folder, f"{name}.safetensors: cannot be read")
    path.write_bytes(content)


def test_refuses_our_file_where_the_config_says_otherwise(words: Path, tmp_path: Path) -> None:
    model = build("mean-w16-causal-mlp-O0-n4", SMALL)
    export(model, words, tmp_path / "out", ours=True)
    kept = (tmp_path / "out/lclab.json").read_text()
    for change, message in (
        ({"design": "mean-w8-causal-mlp-O0-n4"}, "says mean-w8.* model_config.json beside it something else"),
        ({"design": 3}, "has no design and size"),
        ({"size": {"vocab": "many"}}, "size: "),
    ):
        rewrite(tmp_path / "out/lclab.json", lambda c, change=change: c.update(change))
        refused(tmp_path / "out", message)
        (tmp_path / "out/lclab.json").write_text(kept)
    (tmp_path / "out/lclab.safetensors").unlink()
    refused(tmp_path / "out", "lclab.safetensors: cannot be read")


def test_describes_a_folder_without_reading_its_weights(folder: Path) -> None:
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    design, size = describe(folder)
    assert design.name == "mean-w16-causal-attn_mlp-O4-n4" and size == SIZE
