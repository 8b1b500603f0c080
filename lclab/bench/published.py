"""The published training step, built anew on our modules: what the vectorised path is measured against.

Its structure is that of the public code (paper section 5):
- one encoder call per batch item: inside the forward pass, Python cuts the item's spans into windows, makes a tensor
  of one window at a time and pads them on the left to the longest;
- pooling in Python: a slice per window, a slice and a mean (or a flattening) per block, a stack; `eos` selects the
  markers window by window;
- one adapter call per batch item;
- latents written into the embedded decoder input span by span, items padded on the right to the longest of the batch,
  logits at every position and a loss that ignores those without a label.

A batch item is one sample where the published loader does not pack, and a row of samples where it does: then decoder
attention stays inside each sample, and the windows of all samples are padded to the longest of the row.

Transformers, adapter and weights are the model's own, so that loss and gradients are equal and only structure differs.
What the published loader does outside the step (decoder tokens, labels, places of latents) is done here by `load`.

Shapes: W windows of an item, B items, T positions of a window or an item, D encoder width, L latents, M decoder width.
"""

from dataclasses import dataclass, field
from itertools import accumulate, count

import torch
import torch.nn.functional as F
from torch import Tensor

from search_space.axes.adapter import ADAPTERS
from search_space.compressor import Compressor
from search_space.design import Design
from search_space.layout import Sample, Specials, lay_out
from search_space.transformer import Rows

__all__ = ["Item", "Window", "cut", "encode", "load", "loss", "pool"]

IGNORED = -100  # label of a position without loss


@dataclass
class Item:
    """One batch item, as the published loader hands it over.

    spans: wrapped token ids.
    slots: where a span's latents stand in the decoder input, start and stop.
    tokens, labels: decoder input, and what its positions are scored on.
    lengths: positions of each sample in it.
    """

    spans: list[list[int]] = field(default_factory=list)
    slots: list[tuple[int, int]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)


def load(samples: list[Sample], design: Design, specials: Specials) -> Item:
    """One batch item of `samples`, positions consecutive as published."""
    item = Item()
    for sample in samples:
        batch = lay_out([sample], design, specials, "consecutive")
        label_T = torch.full_like(batch.token_RT[0], IGNORED)
        label_T[batch.place_P] = batch.target_P
        spans = [sample.tokens[a:b].tolist() for a, b, wrapped in sample.segments() if wrapped]
        latent = 0
        for span in spans:
            start = len(item.tokens) + batch.latent_RT[0].tolist().index(latent)
            latents = -(-len(span) // design.ratio)
            item.slots.append((start, start + latents))
            latent += latents
        item.spans += spans
        item.tokens += batch.token_RT[0].tolist()
        item.labels += label_T.tolist()
        item.lengths.append(len(label_T))
    return item


@dataclass
class Window:
    """What the encoder reads of one window, what of that is pooled, and where its markers stand."""

    tokens: list[int]
    core: slice
    markers: list[int]


def cut(spans: list[list[int]], design: Design, specials: Specials) -> list[Window]:
    """The windows of all spans."""
    windows = []
    for span in spans:
        for start in range(0, len(span), design.window):
            stop = min(start + design.window, len(span))
            first = max(0, start - design.overlap)
            last = min(len(span), stop + design.overlap) if design.mask == "bidirectional" else stop
            markers = -(-(stop - start) // design.ratio) if design.pooling == "eos" else 0
            tokens = span[first:last] + [specials.memory] * markers
            windows.append(Window(tokens, slice(start - first, stop - first), list(range(last - first, len(tokens)))))
    return windows


def pool(hidden_WTD: Tensor, windows: list[Window], design: Design) -> Tensor:
    """Hidden states, padded on the left, to latents (L, D or N * D): `eos` by window, `mean` and `concat` by block."""
    pooled = []
    for i, window in enumerate(windows):
        hidden_TD = hidden_WTD[i, hidden_WTD.shape[1] - len(window.tokens) :]
        if design.pooling == "eos":
            pooled.append(hidden_TD.index_select(0, torch.tensor(window.markers)))
            continue
        core_TD, blocks = hidden_TD[window.core], []
        for start in range(0, len(core_TD), design.ratio):
            block_ND = core_TD[start : start + design.ratio]
            if design.pooling == "mean":
                blocks.append(block_ND.mean(0))
            else:
                blocks.append(F.pad(block_ND.flatten(), (0, (design.ratio - len(block_ND)) * core_TD.shape[1])))
        pooled.append(torch.stack(blocks))
    return torch.cat(pooled)


def encode(model: Compressor, item: Item, specials: Specials) -> Tensor:
    """The latents of `item` (L, M)."""
    design, encoder = model.design, model.encoder
    assert encoder is not None and model.phase is None and not ADAPTERS[design.adapter].attention
    windows = cut(item.spans, design, specials)
    longest = max(len(window.tokens) for window in windows)
    token_WT = torch.full((len(windows), longest), specials.mask)
    segment_WT, position_WT = torch.full_like(token_WT, -1), torch.zeros_like(token_WT)
    for i, window in enumerate(windows):
        first = longest - len(window.tokens)
        token_WT[i, first:] = torch.tensor(window.tokens)
        segment_WT[i, first:] = i
        position_WT[i, first:] = torch.arange(len(window.tokens))
    rows = Rows(segment_WT, position_WT, alone=all(len(window.tokens) == longest for window in windows))
    hidden_WTD = encoder(encoder.embed_tokens(token_WT), rows, causal=design.mask == "causal")
    return model.adapter(pool(hidden_WTD, windows, design), None)


def loss(model: Compressor, items: list[Item], specials: Specials) -> Tensor:
    """Mean cross-entropy over the scored positions of the step."""
    longest = max(len(item.tokens) for item in items)
    token_BT = torch.full((len(items), longest), specials.mask)
    label_BT = torch.full_like(token_BT, IGNORED)
    segment_BT, position_BT = torch.full_like(token_BT, -1), torch.zeros_like(token_BT)
    segments = count()
    for i, item in enumerate(items):
        token_BT[i, : len(item.tokens)] = torch.tensor(item.tokens)
        label_BT[i, : len(item.tokens)] = torch.tensor(item.labels)
        for stop, length in zip(accumulate(item.lengths), item.lengths, strict=True):
            segment_BT[i, stop - length : stop] = next(segments)
            position_BT[i, stop - length : stop] = torch.arange(length)
    x_BTM = model.decoder.embed_tokens(token_BT).clone()
    for i, item in enumerate(items):
        latents = encode(model, item, specials).split([stop - start for start, stop in item.slots])
        for latents_LM, (start, stop) in zip(latents, item.slots, strict=True):
            x_BTM[i, start:stop] = latents_LM
    alone = all(item.lengths == [longest] for item in items)
    hidden_BTM = model.decoder(x_BTM, Rows(segment_BT, position_BT, alone))
    return F.cross_entropy(model.decoder.logits(hidden_BTM).flatten(0, 1), label_BT.flatten(), ignore_index=IGNORED)
