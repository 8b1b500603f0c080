"""A compressor as a folder in the layout of the published loaders: what such a folder says, and its weights.

    model_config.json              the design
    decoder/  encoder/             Hugging Face Qwen3 folders, each with its tokenizer
    adapter/adapter.safetensors    norm, fc1, fc2, attention_layers.K.decoder_layer
    lclab.json, lclab.safetensors  only where asked for: design, size and weights that the layout has no place for

`trainer.export` writes it. The facts about the published loaders are those of github LeonLixyz/LCLM: the field names
of `inference/hf.py` and `utils/checkpointing.py`, the adapter of `latent_context/adapter.py` (its norm's eps is a
constant, its layers have the encoder's width), the windows of `latent_context/encoder.py` (an eos marker is the
padding token of the encoder's tokenizer).
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from search_space import qwen3
from search_space.axes.adapter import ADAPTERS
from search_space.compressor import Compressor, Size
from search_space.design import Design
from search_space.errors import UsageError
from trainer import tokenizer

__all__ = [
    *("ADAPTER", "CONFIG", "DECODER", "ENCODER", "OURS", "OURS_WEIGHTS"),
    *("adapter_weights", "check_encoder", "describe", "import_", "is_exported", "lacking", "load_encoder"),
    *("model_config", "own_weights", "size_of"),
]

CONFIG, OURS, OURS_WEIGHTS = "model_config.json", "lclab.json", "lclab.safetensors"
DECODER, ENCODER, ADAPTER = "decoder", "encoder", "adapter/adapter.safetensors"
_POOLINGS = ("mean", "concat", "eos")
_NORM_EPS = 1e-6
_FIELDS = {  # of model_config.json: axis and type
    "compression_ratio": ("ratio", int),
    "encoder_window_size": ("window", int),
    "pooling": ("pooling", str),
    "encoder_mask_type": ("mask", str),
    "boundary_overlap": ("overlap", int),
    "adapter_type": ("adapter", str),
}
_DEPTH = "num_adapter_layers"
_UNREADABLE = "lclab-"  # before a pooling: published loaders refuse the name


def is_exported(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def lacking(design: Design, size: Size) -> list[str]:
    """What of the model the published layout has no place for, and would be computed otherwise by its loaders."""
    size = size.of(design)
    if design.control != "none":
        return [f"control {design.control} (they load compressors)"]
    found = {
        f"pooling {design.pooling} (they have {', '.join(_POOLINGS)})": design.pooling not in _POOLINGS,
        "positions spread (theirs are consecutive)": size.positions == "spread",
        f"size.phase_std {size.phase_std} (they have no phase embeddings)": size.phase_std > 0,
        f"size.encoder.norm_eps {size.encoder.norm_eps} (their adapter's is {_NORM_EPS})": (
            size.encoder.norm_eps != _NORM_EPS
        ),
        f"adapter {design.adapter} with pooling concat (their layers have the encoder's width)": (
            design.pooling == "concat" and ADAPTERS[design.adapter].in_pooled_width
        ),
    }
    return [what for what, is_so in found.items() if is_so]


def model_config(design: Design, size: Size) -> dict[str, Any]:
    """model_config.json. Where something is lacking it names a pooling that published loaders refuse."""
    config = {name: getattr(design, axis) for name, (axis, _) in _FIELDS.items()}
    if ADAPTERS[design.adapter].attention:
        config[_DEPTH] = design.depth
    if lacking(design, size):
        config["pooling"] = _UNREADABLE + design.pooling
    return config


def adapter_weights(model: Compressor) -> dict[str, Tensor]:
    """By the names of adapter.safetensors."""
    return {
        re.sub(r"^(attention_layers\.\d+)\.", r"\1.decoder_layer.", name): weight
        for name, weight in model.adapter.state_dict().items()
    }


def own_weights(model: Compressor) -> dict[str, Tensor]:
    """Those that the published layout has no place for: of learnt poolings, and phase embeddings."""
    own = ("pooling.", "phase.")
    return {name: weight for name, weight in model.state_dict().items() if name.startswith(own)}


def describe(folder: Path) -> tuple[Design, Size]:
    """Design and size of the compressor in `folder`, published or ours. Raises `UsageError`.

    Embeddings of a folder without lclab.json are separate.
    """
    config = qwen3.read_json(folder / CONFIG)
    if (folder / OURS).exists():
        return _describe_ours(folder, config)
    values = {axis: _field(folder, config, name, kind) for name, (axis, kind) in _FIELDS.items()}
    if str(values["pooling"]).startswith(_UNREADABLE):
        raise UsageError(f"{folder}: pooling is {values['pooling']!r}, whose {OURS} is missing")
    if values["adapter"] != "mlp":
        values["depth"] = _field(folder, {_DEPTH: 1} | config, _DEPTH, int)
    try:
        design = Design(**values)
    except UsageError as error:
        raise UsageError(f"{folder / CONFIG}: {error}") from error
    (encoder, _), (decoder, vocab) = (qwen3.read_config(folder / part) for part in (ENCODER, DECODER))
    size = Size(vocab, encoder, decoder, embeddings="separate", positions="consecutive", phase_std=0.0)
    changed = [name for name, (axis, _) in _FIELDS.items() if getattr(design, axis) != values[axis]]
    odd = [f"{name} {config[name]} (it means nothing here)" for name in changed] + lacking(design, size)
    if odd:
        raise UsageError(f"{folder}: {odd[0]} cannot be imported")
    return design, size


def size_of(settings: Mapping[str, Any]) -> Size:
    """The size that `asdict` made `settings` of. Raises `UsageError`."""
    try:
        size = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Size), settings))
    except OmegaConfBaseException as error:
        raise UsageError(f"size: {str(error).splitlines()[0]}") from error
    assert isinstance(size, Size)
    return size


def import_(folder: Path, vocab: int = 0) -> Compressor:
    """The compressor in `folder`, published or ours, on the CPU in float32; it knows its design and size.

    vocab: rows that its embeddings have at least; those that the folder lacks are zero.
    Raises `UsageError` where a file is missing, damaged, or not what model_config.json says.
    """
    design, size = describe(folder)
    if size.vocab < vocab:
        size = replace(size, vocab=vocab)
    with torch.device("meta"):
        model = Compressor(design, size)
    qwen3.check_fit(model.decoder, folder / DECODER, fewer_rows=True)
    if model.encoder is not None:
        check_encoder(model, folder)
    model = model.to_empty(device="cpu")
    for name, weight in model.state_dict().items():
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            weight.zero_()
    qwen3.load_into(model.decoder, folder / DECODER, fewer_rows=True)
    if model.encoder is not None:
        load_encoder(model, folder)
    return model


def check_encoder(model: Compressor, folder: Path) -> None:
    """Raise what `load_encoder` raises before it changes a weight. Reads headers only; `model` may be on `meta`."""
    assert model.encoder is not None, f"{model.design.name} has no encoder"
    design, size = describe(folder)
    for axis in ("pooling", "ratio", "adapter", "depth", "control"):
        theirs, ours = getattr(design, axis), getattr(model.design, axis)
        if theirs != ours:
            raise UsageError(f"{axis}: {theirs} in {folder} but {ours} in the model; they must be equal")
    if model.size.embeddings == "tied" != size.embeddings:
        raise UsageError(f"embeddings: separate in {folder} but tied in the model; set size.embeddings=separate")
    qwen3.check_fit(model.encoder, folder / ENCODER, fewer_rows=True)
    for path, weights in _besides(model, folder):
        with qwen3.opened([path]) as stored:
            stored.check(path, weights)
    _marker(model, folder)


@torch.no_grad()
def load_encoder(model: Compressor, folder: Path) -> None:
    """Overwrite the weights of encoder, pooling, adapter and phase embeddings with those of a compressor's folder.

    Raises `UsageError`, with no weight changed, where they are not those of the model.
    """
    assert model.encoder is not None, f"{model.design.name} has no encoder"
    check_encoder(model, folder)
    qwen3.load_into(model.encoder, folder / ENCODER, fewer_rows=True)
    for path, weights in _besides(model, folder):
        with qwen3.opened([path]) as stored:
            for name, weight in weights.items():
                weight.copy_(stored[name])
    theirs, ours = _marker(model, folder)
    if theirs != ours:
        rows = model.encoder.embed_tokens.weight
        rows[ours] = rows[theirs]


def _besides(model: Compressor, folder: Path) -> list[tuple[Path, dict[str, Tensor]]]:
    """Files with weights beside those of encoder and decoder, and the weights that they fill."""
    found = [(folder / ADAPTER, adapter_weights(model)), (folder / OURS_WEIGHTS, own_weights(model))]
    return [(path, weights) for path, weights in found if weights]


def _marker(model: Compressor, folder: Path) -> tuple[int, int]:
    """Ids of the token that marks an eos latent, in the folder and in ours.

    Also refuses an encoder's tokenizer that is not the decoder's, since we have one for both.
    """
    read, written = (tokenizer.load(str(folder / part))[0].get_vocab() for part in (ENCODER, DECODER))
    if odd := next((token for token, number in read.items() if written.get(token) != number), None):
        raise UsageError(f"{folder}: {odd!r} is token {read[odd]} of the encoder and {written.get(odd)} of the decoder")
    memory = written.get(tokenizer.SPECIALS["memory"])
    if model.design.pooling != "eos":
        return 0, 0
    padding = qwen3.read_json(folder / ENCODER / "tokenizer_config.json").get("pad_token")
    token = padding.get("content") if isinstance(padding, dict) else padding
    if token not in read or memory is None or memory >= model.size.vocab:
        raise UsageError(f"{folder}: pooling eos needs the encoder's pad_token, here {token!r}, and <|memory|>")
    return read[token], memory


def _describe_ours(folder: Path, config: dict[str, Any]) -> tuple[Design, Size]:
    kept = qwen3.read_json(folder / OURS)
    if not isinstance(kept.get("design"), str) or not isinstance(kept.get("size"), dict):
        raise UsageError(f"{folder / OURS}: has no design and size")
    design, size = Design.parse(kept["design"]), size_of(kept["size"])
    if config != model_config(design, size):
        raise UsageError(f"{folder / OURS}: says {design.name}, and {CONFIG} beside it something else")
    return design, size


def _field(folder: Path, config: Mapping[str, Any], name: str, kind: type) -> Any:
    value = config.get(name)
    if type(value) is not kind:
        raise UsageError(f"{folder / CONFIG}: {name} is {value!r}; it must be of type {kind.__name__}")
    return value
