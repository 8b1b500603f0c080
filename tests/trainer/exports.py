"""Compressors to write out and read again."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from search_space.compressor import Compressor, Size
from search_space.design import Design
from search_space.transformer import Shape
from tests.search_space.cases import randomise

VOCAB = 330  # rows; the tokenizer has fewer
ENCODER = Shape(layers=2, width=16, heads=4, kv_heads=2, head_width=8, feedforward=24, rope_base=5e5)
DECODER = Shape(layers=2, width=24, heads=2, kv_heads=1, head_width=8, feedforward=32)
SIZE = Size(VOCAB, ENCODER, DECODER, embeddings="separate", positions="consecutive", phase_std=0.0)
SMALL = replace(SIZE, decoder=replace(DECODER, width=16), embeddings="tied", positions="spread", phase_std=2.0)


def build(name: str, size: Size = SIZE) -> Compressor:
    model = Compressor(Design.parse(name), size)
    randomise(model)
    if size.decoder.tied_head:
        with torch.no_grad():  # logits of about unit variance, as they start
            model.decoder.norm.weight.mul_(size.decoder.width**-0.5 / size.embedding_std)
    return model


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def reweigh(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
