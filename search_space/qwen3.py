"""Qwen3 as Hugging Face keeps it: a folder with config.json and safetensors, to and from our `Transformer`.

Notable choices:
- strict: what our transformer cannot be, a weight too many, too few or of another shape, or a damaged file is refused
  before any weight is touched;
- safetensors only, pickles are never opened;
- both spellings of the rotary base, `rope_theta` (transformers 4) and `rope_parameters` (transformers 5), and keys with
  the prefix `model.` (`Qwen3ForCausalLM`) or without it (`Qwen3Model`, such as Qwen3-Embedding);
- a folder is written beside its place and renamed: it is whole or not there.
"""

import json
import os
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from search_space.errors import UsageError
from search_space.transformer import Shape, Transformer

__all__ = ["load", "load_into", "save"]

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_PREFIX, _HEAD, _EMBEDDING = "model.", "lm_head.weight", "embed_tokens.weight"
_NAMES = {  # field of `Shape`: its name in config.json; the rotary base stands elsewhere
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_width": "head_dim",
    "feedforward": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "tied_head": "tie_word_embeddings",
}
_ONLY = {  # what our transformer is, where a config may say otherwise
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0,
    "use_sliding_window": False,
    "quantization_config": None,
    "rope_scaling": None,
}


def load(folder: Path, *, head: bool = True, dtype: torch.dtype | None = None) -> Transformer:
    """The transformer in `folder`, on the CPU, in the file's dtypes or all in `dtype`.

    `head` is False for an encoder: the head of a file that has one is left out. Raises `UsageError`.
    """
    shape, vocab = _read_config(folder)
    with torch.device("meta"):
        transformer = Transformer(shape, vocab, head)
    transformer.load_state_dict(_read_weights(folder, transformer, dtype), assign=True)
    return transformer


def load_into(transformer: Transformer, folder: Path) -> None:
    """Overwrite the weights of `transformer`, such as a compressor's encoder; its dtypes and device stay.

    Raises `UsageError`, with no weight changed, where the folder's config is not the transformer's.
    """
    shape, vocab = _read_config(folder)
    if not transformer.head:
        shape = replace(shape, tied_head=transformer.shape.tied_head)
    theirs = {"vocab": vocab, **asdict(shape)}
    ours = {"vocab": transformer.embed_tokens.num_embeddings, **asdict(transformer.shape)}
    for field, value in theirs.items():
        if value != ours[field]:
            raise UsageError(f"{field}: {value} in {folder} but {ours[field]} in the model; they must be equal")
    transformer.load_state_dict(_read_weights(folder, transformer, None))


def save(transformer: Transformer, folder: Path) -> None:
    """Write `transformer` as the new folder `folder`: a `Qwen3ForCausalLM` with a head, else a `Qwen3Model`.

    Raises `UsageError` if there is something at that path, and whatever the file system says.
    """
    if folder.exists():
        raise UsageError(f"{folder}: exists; choose a folder that does not")
    prefix = _PREFIX if transformer.head else ""
    weights = {
        name if name == _HEAD else prefix + name: weight.contiguous()
        for name, weight in transformer.state_dict().items()
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        part = Path(scratch) / folder.name
        part.mkdir()
        (part / _CONFIG).write_text(json.dumps(_config(transformer), indent=2) + "\n")
        save_file(weights, part / _WEIGHTS, metadata={"format": "pt"})
        (part / _WEIGHTS).chmod((part / _CONFIG).stat().st_mode)  # safetensors lets none but the owner read
        for path in (part / _CONFIG, part / _WEIGHTS, part):
            _flush(path)
        part.rename(folder)
    _flush(folder.parent)  # the rename itself must survive a power cut


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _config(transformer: Transformer) -> dict[str, Any]:
    shape, embedding = transformer.shape, transformer.embed_tokens.weight
    return {
        "architectures": ["Qwen3ForCausalLM" if transformer.head else "Qwen3Model"],
        "model_type": "qwen3",
        "dtype": str(embedding.dtype).removeprefix("torch."),
        "vocab_size": len(embedding),
        **{name: getattr(shape, field) for field, name in _NAMES.items()},
        "rope_theta": shape.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_base},
        **{name: value for name, value in _ONLY.items() if value is not None},
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: holds no JSON object")
    return content


def _read_config(folder: Path) -> tuple[Shape, int]:
    """Shape and vocabulary. Raises `UsageError` for what our transformer cannot be."""
    path = folder / _CONFIG
    config = _read_json(path)
    if config.get("model_type") != "qwen3":
        raise UsageError(f"{path}: model_type is {config.get('model_type')!r}; only 'qwen3' is read")
    for name, value in _ONLY.items():
        if config.get(name, value) != value:
            raise UsageError(f"{path}: {name} is {config[name]!r}; only {value!r} is supported")
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta")}
    if (
        not isinstance(rope, dict)
        or rope.keys() - {"rope_type", "rope_theta"}
        or rope.get("rope_type", "default") != "default"
    ):
        raise UsageError(f"{path}: rotary positions are {rope}; only rope_type 'default' is supported")
    defaults = asdict(Shape())
    sizes = {field: _typed(path, config, name, type(defaults[field])) for field, name in _NAMES.items()}
    if config.get("layer_types") not in (None, ["full_attention"] * sizes["layers"]):
        raise UsageError(f"{path}: layer_types is {config['layer_types']}; only full_attention is supported")
    return Shape(**sizes, rope_base=_typed(path, rope, "rope_theta", float)), _typed(path, config, "vocab_size", int)


def _typed(path: Path, config: dict[str, Any], name: str, kind: type) -> Any:
    value = config.get(name)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UsageError(f"{path}: {name} is {value!r}; it must be of type {kind.__name__}")
    return value


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _WEIGHTS).exists():
        return [folder / _WEIGHTS]
    if not (folder / _INDEX).exists():
        raise UsageError(f"{folder}: has neither {_WEIGHTS} nor {_INDEX}; other formats are not read")
    shards = _read_json(folder / _INDEX).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(s, str) and s == Path(s).name for s in shards.values()):
        raise UsageError(f"{folder / _INDEX}: weight_map does not name files of its folder")
    return [folder / shard for shard in sorted(set(shards.values()))]


def _read_weights(folder: Path, transformer: Transformer, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """All weights that `transformer` has, by its names. Names and shapes are compared before any is read."""
    wanted = {name: list(weight.shape) for name, weight in transformer.state_dict().items()}
    with ExitStack() as stack:
        stored: dict[str, tuple[Any, str]] = {}
        for path in _weight_files(folder):
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise UsageError(f"{path}: cannot be read ({error})") from error
            for key in file.keys():  # noqa: SIM118, a file is not a dictionary
                name = key.removeprefix(_PREFIX)
                if name in stored:
                    raise UsageError(f"{path}: {key} is stored twice")
                stored[name] = file, key
        spare_head = None if _HEAD in wanted else stored.pop(_HEAD, None)
        for what, names in (("lacks", wanted.keys() - stored.keys()), ("has unknown", stored.keys() - wanted.keys())):
            if names:
                raise UsageError(f"{folder}: {what} {_some(names)}")
        for name, (file, key) in stored.items():
            shape = file.get_slice(key).get_shape()
            if shape != wanted[name]:
                raise UsageError(f"{folder}: {key} is {shape}; its config says {wanted[name]}")
        weights = {name: file.get_tensor(key).to(dtype, copy=True) for name, (file, key) in stored.items()}
        if spare_head and transformer.head:  # published with some tied models
            file, key = spare_head
            if not torch.equal(file.get_tensor(key).to(dtype), weights[_EMBEDDING]):
                raise UsageError(f"{folder}: tie_word_embeddings is true, but {key} is not the embedding")
    return weights


def _some(names: set[str]) -> str:
    """The first three names, and how many there are."""
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - len(first)} more" if len(names) > len(first) else "")
