"""Qwen3 as Hugging Face keeps it: a folder with config.json and safetensors, to and from our `Transformer`.

Notable choices:
- strict: what our transformer cannot be, a weight too many, too few or of another shape, or a damaged file is refused
  before any weight is touched;
- safetensors only, pickles are never opened;
- both spellings of the rotary base, `rope_theta` (transformers 4) and `rope_parameters` (transformers 5), and keys with
  the prefix `model.` (`Qwen3ForCausalLM`) or without it (`Qwen3Model`, such as Qwen3-Embedding);
- a model is filled weight by weight from the mapped file, so that it is never in memory twice;
- a folder is written beside its place and renamed: it is whole or not there.
"""

import json
import tempfile
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from search_space.errors import UsageError
from search_space.files import flush, write_json
from search_space.transformer import Shape, Transformer

__all__ = [
    *("check_fit", "load", "load_into", "read_config", "read_json", "save", "write"),
    *("new_folder", "opened", "write_weights"),
]

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


class Stored:
    """The weights of open safetensors files by name, each read when it is asked for."""

    def __init__(self, files: Mapping[Path, Any], prefix: str = "") -> None:
        self._at: dict[str, tuple[Any, str]] = {}
        for path, file in files.items():
            for key in file.keys():  # noqa: SIM118, a file is not a dictionary
                name = key.removeprefix(prefix)
                if name in self._at:
                    raise UsageError(f"{path}: {key} is stored twice")
                self._at[name] = file, key

    def __getitem__(self, name: str) -> Tensor:
        file, key = self._at[name]
        return file.get_tensor(key)

    def __contains__(self, name: str) -> bool:
        return name in self._at

    def check(self, where: Path, wanted: Mapping[str, Tensor], spare: frozenset[str] = frozenset()) -> None:
        """Raise `UsageError` where names, those of `spare` apart, or shapes are not those of `wanted`."""
        names = self._at.keys() - (spare - wanted.keys())
        for what, odd in (("lacks", wanted.keys() - names), ("has unknown", names - wanted.keys())):
            if odd:
                raise UsageError(f"{where}: {what} {_some(odd)}")
        for name in sorted(names):
            file, key = self._at[name]
            shape, expected = file.get_slice(key).get_shape(), list(wanted[name].shape)
            if shape != expected:
                raise UsageError(f"{where}: {key} is {shape}; its config says {expected}")


@contextmanager
def opened(paths: list[Path], prefix: str = "") -> Generator[Stored]:
    """The safetensors files at `paths`; names lose `prefix`. Raises `UsageError` where one is missing or damaged."""
    with ExitStack() as stack:
        files: dict[Path, Any] = {}
        for path in paths:
            try:
                files[path] = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise UsageError(f"{path}: cannot be read ({error})") from error
        yield Stored(files, prefix)


def load(folder: Path, *, head: bool = True, dtype: torch.dtype | None = None) -> Transformer:
    """The transformer in `folder`, on the CPU, in the file's dtypes or all in `dtype`.

    `head` is False for an encoder: the head of a file that has one is left out. Raises `UsageError`.
    """
    shape, vocab = read_config(folder)
    with torch.device("meta"):
        transformer = Transformer(shape, vocab, head)
    with _checked(folder, transformer) as stored:
        weights = {name: stored[name].to(dtype, copy=True) for name in transformer.state_dict()}
    transformer.load_state_dict(weights, assign=True)
    return transformer


def check_fit(transformer: Transformer, folder: Path, *, fewer_rows: bool = False) -> None:
    """Raise what `load_into` raises before it changes a weight. Reads headers only; `transformer` may be on `meta`."""
    with _fitting(transformer, folder, fewer_rows):
        pass


@torch.no_grad()
def load_into(transformer: Transformer, folder: Path, *, fewer_rows: bool = False) -> None:
    """Overwrite the weights of `transformer`, such as a compressor's encoder; its dtypes and device stay.

    fewer_rows: a folder of a smaller vocabulary fills the first rows of embedding and head, and the rest stay.
    Raises `UsageError`, with no weight changed, where the folder's config is not the transformer's.
    """
    with _fitting(transformer, folder, fewer_rows) as stored:
        for name, weight in transformer.state_dict().items():
            value = stored[name]
            weight[: len(value)].copy_(value)


def save(transformer: Transformer, folder: Path) -> None:
    """Write `transformer` as the new folder `folder`: a `Qwen3ForCausalLM` with a head, else a `Qwen3Model`.

    Raises `UsageError` if there is something at that path, and whatever the file system says.
    """
    with new_folder(folder) as part:
        write(transformer, part)


def write(transformer: Transformer, folder: Path, **config: Any) -> None:
    """Write `transformer` into an existing folder, with `config` added to its config.json."""
    prefix = _PREFIX if transformer.head else ""
    weights = {name if name == _HEAD else prefix + name: weight for name, weight in transformer.state_dict().items()}
    write_json(folder / _CONFIG, _config(transformer) | config, indent=2)
    write_weights(folder / _WEIGHTS, weights)


@contextmanager
def new_folder(folder: Path) -> Generator[Path]:
    """A folder to write into, which takes the place of `folder` when all is written and flushed to disk.

    Raises `UsageError` if there is something at that path; nothing is left where writing fails.
    """
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder}: exists; choose a folder that does not")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        part = Path(scratch) / folder.name
        part.mkdir()
        yield part
        for path in (*part.rglob("*"), part):
            flush(path)
        part.rename(folder)
    flush(folder.parent)  # the rename itself must survive a power cut


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    path.touch()
    mode = path.stat().st_mode
    save_file({name: weight.contiguous() for name, weight in weights.items()}, path, metadata={"format": "pt"})
    path.chmod(mode)  # safetensors lets none but the owner read


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


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `UsageError`."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: holds no JSON object")
    return content


def read_config(folder: Path) -> tuple[Shape, int]:
    """Shape and vocabulary of the folder. Raises `UsageError` for what our transformer cannot be."""
    path = folder / _CONFIG
    config = read_json(path)
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
    shards = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(s, str) and s == Path(s).name for s in shards.values()):
        raise UsageError(f"{folder / _INDEX}: weight_map does not name files of its folder")
    return [folder / shard for shard in sorted(set(shards.values()))]


@contextmanager
def _fitting(transformer: Transformer, folder: Path, fewer_rows: bool) -> Generator[Stored]:
    """The weights in `folder`, which are those of `transformer`, or of one with fewer rows."""
    shape, vocab = read_config(folder)
    if not transformer.head:
        shape = replace(shape, tied_head=transformer.shape.tied_head)
    rows = transformer.embed_tokens.num_embeddings
    if vocab > rows or (vocab < rows and not fewer_rows):
        rule = "it must not be larger" if fewer_rows else "they must be equal"
        raise UsageError(f"vocab: {vocab} in {folder} but {rows} in the model; {rule}")
    ours = asdict(transformer.shape)
    for field, value in asdict(shape).items():
        if value != ours[field]:
            raise UsageError(f"{field}: {value} in {folder} but {ours[field]} in the model; they must be equal")
    with torch.device("meta"):
        stored_as = Transformer(shape, vocab, transformer.head)
    with _checked(folder, stored_as) as stored:
        yield stored


@contextmanager
def _checked(folder: Path, transformer: Transformer) -> Generator[Stored]:
    """The weights in `folder`, with the names and shapes of `transformer`'s."""
    with opened(_weight_files(folder), _PREFIX) as stored:
        stored.check(folder, transformer.state_dict(), spare=frozenset({_HEAD}))
        if transformer.head and transformer.lm_head is None and _HEAD in stored:  # published with some tied models
            head, embedding = stored[_HEAD], stored[_EMBEDDING]
            if not torch.equal(head.to(embedding.dtype), embedding):
                raise UsageError(f"{folder}: tie_word_embeddings is true, but {_HEAD} is not the embedding")
        yield stored


def _some(names: set[str]) -> str:
    """The first three names, and how many there are."""
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - len(first)} more" if len(names) > len(first) else "")
