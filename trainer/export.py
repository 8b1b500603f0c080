"""Write a compressor as the folder that the published loaders read; `trainer.exported` has the layout and reads it.

Notable choices:
- safetensors and JSON only, in the model's dtypes; the folder is written beside its place, flushed and renamed;
- what published loaders would compute otherwise is refused, or written for ourselves under a name that they refuse;
- the tokenizer.json of the corpus is copied as it is, for encoder and decoder.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from search_space import qwen3
from search_space.compressor import Compressor, Size
from search_space.design import Design
from search_space.errors import UsageError
from search_space.files import write_json
from trainer import tokenizer
from trainer.exported import (
    ADAPTER,
    CONFIG,
    DECODER,
    ENCODER,
    OURS,
    OURS_WEIGHTS,
    adapter_weights,
    lacking,
    model_config,
    own_weights,
)

__all__ = ["POSITIONS", "check_layout", "compressor_of", "export"]

POSITIONS = 262_144
"""What servers take as the longest input: that of Qwen3-4B-Instruct-2507. Rotary positions have no table to end."""

_CHAT = (  # as `trainer.tokenizer.Encoder` writes messages
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def export(model: Compressor, tokenizer_file: Path, folder: Path, *, ours: bool = False) -> None:
    """Write `model` as the new folder `folder`.

    ours: also write what the published layout has no place for; published loaders refuse such a folder, and
    `trainer.exported.import_` reads it.
    Raises `UsageError`, with nothing written, where something lacks a place, the tokenizer does not fit, or there is
    something at that path.
    """
    design, size = model.design, model.size
    check_layout(design, size, ours=ours)
    words = tokenizer.load(str(tokenizer_file))[0]
    _check_tokens(words, tokenizer_file, size.vocab)
    file = tokenizer_file / "tokenizer.json" if tokenizer_file.is_dir() else tokenizer_file
    padding = next(t for t in ("<|endoftext|>", tokenizer.SPECIALS["mask"]) if words.token_to_id(t) is not None)
    parts = [(DECODER, model.decoder, padding)]
    if model.encoder is not None:
        marker = tokenizer.SPECIALS["memory"] if design.pooling == "eos" else padding
        parts.append((ENCODER, model.encoder, marker))
    with qwen3.new_folder(folder) as part:
        for name, transformer, pad in parts:
            place = part / name
            place.mkdir()
            about = _tokenizer_config(words, pad)
            qwen3.write(transformer, place, **_ids(words, about), max_position_embeddings=POSITIONS)
            (place / "tokenizer.json").write_bytes(file.read_bytes())
            write_json(place / "tokenizer_config.json", about, indent=2)
            marks = ("eos_token", "pad_token", "additional_special_tokens")
            write_json(place / "special_tokens_map.json", {m: about[m] for m in marks if m in about}, indent=2)
        if model.encoder is not None:
            (part / ADAPTER).parent.mkdir()
            qwen3.write_weights(part / ADAPTER, adapter_weights(model))
        if ours:
            write_json(part / OURS, {"design": design.name, "size": asdict(size)}, indent=2)
            if own := own_weights(model):
                qwen3.write_weights(part / OURS_WEIGHTS, own)
        write_json(part / CONFIG, model_config(design, size), indent=2)


def check_layout(design: Design, size: Size, *, ours: bool = False) -> None:
    """Raise `UsageError` where published loaders are asked for and would compute something else."""
    odd = lacking(design, size)
    if odd and not ours:
        raise UsageError(f"export: published loaders have no place for {'; '.join(odd)}; use --ours for lclab alone")


def compressor_of(state: dict[str, Tensor], design: Design, size: Size) -> Compressor:
    """The compressor whose weights are `state_dict` of a checkpoint (see `trainer.checkpoint`), which it takes over.

    Raises `UsageError` where they are another design's or size's.
    """
    with torch.device("meta"):
        model = Compressor(design, size)
    weights = {name.removeprefix("model."): weight for name, weight in state.items()}
    first = {weight: name for name, weight in model.named_parameters()}  # a tied weight may be kept under one name
    wanted = model.state_dict(keep_vars=True)
    filled = {name: weights.get(name, weights.get(first[weight])) for name, weight in wanted.items()}
    wrong = sorted(weights.keys() - wanted.keys()) + [
        name for name, weight in filled.items() if weight is None or weight.shape != wanted[name].shape
    ]
    if wrong:
        raise UsageError(f"checkpoint: {wrong[0]} is not that of {design.name} at this size")
    model.load_state_dict(filled, assign=True)
    return model


def _check_tokens(words: Tokenizer, file: Path, vocab: int) -> None:
    ids = words.get_vocab()
    if missing := next((token for token in tokenizer.SPECIALS.values() if token not in ids), None):
        raise UsageError(f"tokenizer: {file} has no {missing}; give the one of the model's corpus")
    if max(ids.values()) >= vocab:
        raise UsageError(f"tokenizer: {file} has token {max(ids.values())}, and the model {vocab} rows")


def _tokenizer_config(words: Tokenizer, padding: str) -> dict[str, Any]:
    """What `transformers.AutoTokenizer` wants to know beside tokenizer.json."""
    end = next((t for t in ("<|im_end|>", "<|endoftext|>") if words.token_to_id(t) is not None), None)
    chat = all(words.token_to_id(token) is not None for token in tokenizer.CHAT)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",  # tokenizer.json as it stands, whatever the model is called
        "model_max_length": POSITIONS,
        "clean_up_tokenization_spaces": False,
        "pad_token": padding,
        **({"eos_token": end} if end else {}),
        "additional_special_tokens": list(tokenizer.SPECIALS.values()),
        **({"chat_template": _CHAT} if chat else {}),
    }


def _ids(words: Tokenizer, about: dict[str, Any]) -> dict[str, int | None]:
    ends = {name: words.token_to_id(about[name]) if name in about else None for name in ("eos_token", "pad_token")}
    return {"bos_token_id": None} | {f"{name}_id": number for name, number in ends.items()}
