"""The compressor once more, slowly: a loop for every "each" of the definitions.

One encoder call per window, one call of an attention adapter per span, one decoder call per sample; no packing, no
index tensors. It borrows the transformer blocks of the model under test (they have tests of their own) and its
weights; everything else is written anew.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_space.axes.adapter import AttnMlp, MlpAttn
from search_space.axes.pooling import Attention, Conv
from search_space.compressor import Compressor
from search_space.layout import Sample, Specials
from search_space.transformer import Rows

__all__ = ["Scored", "forward", "latents", "loss"]


@dataclass
class Scored:
    """What a step is scored on, in the order of samples and, inside one, of the text."""

    logits: Tensor
    targets: list[int]
    tasks: list[str]
    documents: list[int]


@dataclass
class Element:
    """One position of a sample's decoder sequence; `raw` is the token if it is one that counts."""

    vector: Tensor
    position: int
    raw: int | None = None
    target: int | None = None


def forward(model: Compressor, samples: list[Sample], specials: Specials) -> Scored:
    """Logits at everything that is scored, with what they are compared to."""
    scored = Scored(torch.empty(0), [], [], [])
    logits = []
    head = model.decoder.embed_tokens if model.decoder.lm_head is None else model.decoder.lm_head
    for sample in samples:
        elements = _elements(model, sample, specials)
        spread = model.size.positions == "spread"
        at = [e.position if spread else i for i, e in enumerate(elements)]
        hidden = model.decoder(torch.stack([e.vector for e in elements])[None], _one(at), causal=True)[0]
        for element, state in zip(elements, hidden, strict=True):
            if element.target is not None:
                logits.append(head.weight @ state)
                scored.targets.append(element.target)
                scored.tasks.append(sample.task)
                scored.documents.append(sample.document)
    scored.logits = torch.stack(logits)
    return scored


def latents(model: Compressor, span: list[int], specials: Specials) -> list[Tensor]:
    """What the decoder reads in place of `span`."""
    pooled = []
    for start in range(0, len(span), model.design.window):
        pooled += _window(model, span, start, specials)
    return _adapt(model, pooled)


def _one(positions: list[int]) -> Rows:
    """A single sequence without padding."""
    return Rows(torch.zeros(1, len(positions), dtype=torch.long), torch.tensor([positions]), alone=True)


def _table(model: Compressor, part: str) -> Tensor | None:
    if model.phase is None:
        return None
    table = model.phase[part]
    assert isinstance(table, nn.Embedding)
    return table.weight


def _window(model: Compressor, span: list[int], start: int, specials: Specials) -> list[Tensor]:
    """Pooled latents of the window that starts at `start`."""
    design, encoder = model.design, model.encoder
    assert encoder is not None
    n = design.ratio
    stop = min(start + design.window, len(span))
    first = max(0, start - design.overlap)
    last = min(len(span), stop + design.overlap) if design.mask == "bidirectional" else stop
    phase = _table(model, "encoder")

    vectors, positions = [], []
    for i in range(first, last):
        vector = encoder.embed_tokens.weight[span[i]]
        vectors.append(vector if phase is None else vector + phase[i % n])
        positions.append(i - first)
    blocks = [(b, min(b + n, stop)) for b in range(start, stop, n)]
    if design.pooling == "eos":
        for count, (_, block_stop) in enumerate(blocks):
            vectors.append(encoder.embed_tokens.weight[specials.memory])
            behind = last - first + count
            positions.append(block_stop - 1 - first if model.size.positions == "spread" else behind)

    hidden = encoder(torch.stack(vectors)[None], _one(positions), causal=design.mask == "causal")[0]
    pooled = []
    for count, (a, b) in enumerate(blocks):
        block = [hidden[i - first] for i in range(a, b)]
        if design.pooling == "mean":
            pooled.append(sum(block[1:], block[0]) / len(block))
        elif design.pooling == "concat":
            pooled.append(torch.cat(block + [torch.zeros_like(block[0])] * (n - len(block))))
        elif design.pooling == "eos":
            pooled.append(hidden[last - first + count])
        else:
            pooled.append({"attention": _attention, "conv": _conv}[design.pooling](model, block))
    return pooled


def _attention(model: Compressor, block: list[Tensor]) -> Tensor:
    """Softmax over the block's scores, head by head; each head has its slice of the values."""
    pooling = model.pooling
    assert isinstance(pooling, Attention)
    values = [pooling.value.weight @ x for x in block]
    e, slices = len(values[0]) // pooling.heads, []
    for head in range(pooling.heads):
        scores = torch.stack([pooling.score.weight[head] @ x for x in block])
        weights = torch.exp(scores) / torch.exp(scores).sum()
        slices.append(sum(w * v[head * e : (head + 1) * e] for w, v in zip(weights, values, strict=True)))
    return pooling.out.weight @ torch.cat(slices)


def _conv(model: Compressor, block: list[Tensor]) -> Tensor:
    """torch's own strided convolution, level by level, over the block padded with zeros."""
    assert isinstance(model.pooling, Conv)
    missing = model.design.ratio - len(block)
    x = torch.stack(block + [torch.zeros_like(block[0])] * missing, -1)  # (D, N)
    for level in model.pooling.levels:
        assert isinstance(level, nn.Linear)
        if x.shape[1] < model.design.ratio:
            x = F.gelu(x)
        stride = level.in_features // level.out_features
        kernel = level.weight.view(level.out_features, stride, -1).transpose(1, 2)
        x = F.conv1d(x[None], kernel, level.bias, stride=stride)[0]
    return x[:, 0]


def _adapt(model: Compressor, pooled: list[Tensor]) -> list[Tensor]:
    """RMSNorm, Linear, GELU, Linear on each latent; attention over the span before or behind it."""
    adapter = model.adapter

    def mlp(x: Tensor) -> Tensor:
        x = x * torch.rsqrt((x * x).mean() + model.size.encoder.norm_eps) * adapter.norm.weight
        x = adapter.fc1.weight @ x + adapter.fc1.bias
        x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
        return adapter.fc2.weight @ x + adapter.fc2.bias

    if isinstance(adapter, AttnMlp):
        pooled = _mix(adapter, pooled)
    adapted = [mlp(x) for x in pooled]
    return _mix(adapter, adapted) if isinstance(adapter, MlpAttn) else adapted


def _mix(adapter: AttnMlp | MlpAttn, states: list[Tensor]) -> list[Tensor]:
    rows = _one(list(range(len(states))))
    return list(adapter.attention_layers(torch.stack(states)[None], rows, causal=False)[0])


def _elements(model: Compressor, sample: Sample, specials: Specials) -> list[Element]:
    """The sample's decoder sequence, with the targets filled in."""
    embedding, tokens = model.decoder.embed_tokens.weight, [int(t) for t in sample.tokens]
    edges = [0, *sample.cuts, len(tokens)]
    out: list[Element] = []
    for number in range(len(edges) - 1):
        a, b = edges[number], edges[number + 1]
        if number % 2 == 1:
            out += [Element(embedding[tokens[i]], i, raw=tokens[i] if i >= sample.quiet else None) for i in range(a, b)]
            continue
        if a == b:  # starts raw
            continue
        out.append(Element(embedding[specials.memory_start], a))
        if model.design.control == "uncompressed":
            out += [Element(embedding[tokens[i]], i) for i in range(a, b)]
        elif model.design.control != "blind":
            read = latents(model, tokens[a:b], specials)
            out += [Element(x, a + j * model.design.ratio) for j, x in enumerate(read)]
        out.append(Element(embedding[specials.memory_end], b - 1))
    for element, following in pairwise(out):
        element.target = following.raw
    if sample.task != "continue" and not sample.cuts:
        out += _asked(model, sample.task, tokens, specials)
    return out


def _asked(model: Compressor, task: str, tokens: list[int], specials: Specials) -> list[Element]:
    """The span's tokens once more, each scored at the place it is asked for."""
    embedding, phase, out = model.decoder.embed_tokens.weight, _table(model, "decoder"), []
    for i, target in enumerate(tokens):
        if task == "parallel":
            vector = embedding[specials.mask]
        else:
            vector = embedding[tokens[i - 1] if i else specials.reconstruct]
        if phase is not None:
            vector = vector + phase[i % model.design.ratio]
        out.append(Element(vector, i, target=target))
    return out


def loss(scored: Scored) -> Tensor:
    return F.cross_entropy(scored.logits, torch.tensor(scored.targets))
