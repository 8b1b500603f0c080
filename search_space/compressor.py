"""The compressor: encoder, pooling, adapter and decoder of one design, trained end to end.

Notable choices:
- all windows of a step go through the encoder in one call, all samples through the decoder in one call;
- logits exist only at scored positions, and for the loss a chunk at a time;
- small-model aids that a full-scale run switches off: phase embeddings (place of a token in its block, added to
  encoder inputs and to what reconstruction asks for) and an encoder that starts as the identity.

Shapes: R rows, T positions of a row, D encoder width, M decoder width, L latents, P scored positions, V vocabulary.
"""

import zlib
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from search_space.axes import shape
from search_space.axes.adapter import ADAPTERS
from search_space.axes.axis import has_encoder
from search_space.axes.base import BASE
from search_space.axes.embeddings import Embeddings
from search_space.axes.pooling import POOLINGS
from search_space.axes.positions import Positions
from search_space.design import Design
from search_space.errors import UsageError
from search_space.layout import Batch, EncoderInputs
from search_space.loss import CHUNK_BYTES, linear_cross_entropy, linear_scores
from search_space.transformer import Block, Layers, Shape, Transformer

__all__ = ["Compressor", "Size", "matrices"]


@dataclass(frozen=True)
class Size:
    """What all designs of a sweep share, but for those axes in which a design says otherwise.

    vocab: token ids, special tokens included.
    encoder, decoder: shapes of the transformers.
    embeddings: one token embedding for encoder and decoder (`tied`; asks for equal widths) or one each.
    positions: where latents stand for the decoder (see `axes.positions`).
    phase_std: standard deviation of the phase embeddings at the start; 0 leaves them out.
    embedding_std: standard deviation of the token embeddings at the start.
    silent_encoder: the encoder's and the adapter's layers start as the identity.
    """

    vocab: int = 512
    encoder: Shape = field(default_factory=Shape)
    decoder: Shape = field(default_factory=Shape)
    embeddings: Embeddings = "tied"
    positions: Positions = "spread"
    phase_std: float = 2.0
    embedding_std: float = 0.7
    silent_encoder: bool = True

    def of(self, design: Design) -> "Size":
        """This size with what `design` says of it. Raises `UsageError` where the two do not fit."""
        encoder, decoder = shape.apply(design.encoder, self.encoder), shape.apply(design.decoder, self.decoder)
        if design.control == "encoderless":
            encoder = replace(encoder, layers=0)
        own = {axis: getattr(design, axis) for axis in ("embeddings", "positions") if getattr(design, axis) != BASE}
        size = replace(self, encoder=encoder, decoder=decoder, **own)
        if has_encoder(vars(design)) and size.embeddings == "tied" and encoder.width != decoder.width:
            raise UsageError(
                f"embeddings: encoder width {encoder.width} and decoder width {decoder.width} differ in {design.name}, "
                "so that they cannot be tied; set size.embeddings=separate or make the widths equal"
            )
        return size

    def resolve(self, design: Design) -> Design:
        """`design` with nothing left to the size: equal for two designs exactly when they are the same at this size."""
        size = self.of(design)
        encoder = shape.apply(design.encoder, self.encoder)  # also of an encoder whose layers a control leaves out
        return design.but(
            encoder=shape.ENCODER.spell(encoder),
            decoder=shape.DECODER.spell(size.decoder),
            embeddings=size.embeddings,
            positions=size.positions,
        )


class Compressor(nn.Module):
    """Builds what `design` says at `size`. Raises `UsageError` when the two do not fit."""

    def __init__(self, design: Design, size: Size) -> None:
        super().__init__()
        size = size.of(design)
        self.design, self.size = design, size
        self.decoder = Transformer(size.decoder, size.vocab, head=True)
        self.encoder: Transformer | None = None
        self.phase: nn.ModuleDict | None = None
        if design.control in ("none", "encoderless"):
            self._build_encoder()
        self._initialise()

    def _build_encoder(self) -> None:
        design, size = self.design, self.size
        self.encoder = Transformer(size.encoder, size.vocab)
        if size.embeddings == "tied":
            self.encoder.embed_tokens = self.decoder.embed_tokens
        self.pooling = POOLINGS[design.pooling](size.encoder.width, design.ratio)
        adapter = ADAPTERS[design.adapter]
        self.adapter = adapter(self.pooling.out_width, size.encoder, size.decoder, design.depth)
        if size.phase_std:
            self.phase = nn.ModuleDict(
                {
                    "encoder": nn.Embedding(design.ratio, size.encoder.width),
                    "decoder": nn.Embedding(design.ratio, size.decoder.width),
                }
            )

    def _initialise(self) -> None:
        """Linear weights at 1/sqrt(inputs), embeddings as `size` says, the tied head's scale in the last norm.

        Each weight is drawn from a generator of its own, seeded by torch's state and the weight's name: what two
        designs have in common starts equal, so that a comparison of one seed is paired in its weights too.
        """
        base = int(torch.randint(2**31, (), device="cpu"))
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                _draw(module.weight, module.in_features**-0.5, base, name)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                is_phase = name.startswith("phase")
                _draw(module.weight, self.size.phase_std if is_phase else self.size.embedding_std, base, name)
        if self.size.decoder.tied_head:  # logits of unit variance at the start, whatever the embedding's scale
            nn.init.constant_(self.decoder.norm.weight, self.size.decoder.width**-0.5 / self.size.embedding_std)
        if self.encoder is not None and self.size.silent_encoder:
            for part in (self.encoder, self.adapter):
                for module in part.modules():
                    if isinstance(module, Block):
                        module.silence()

    def checkpoint_activations(self, on: bool = True) -> None:
        """Whether layers compute their blocks again in the backward pass: less memory, the same gradients."""
        for part in self.modules():
            if isinstance(part, Layers):
                part.checkpointed = on

    def encode(self, inputs: EncoderInputs) -> Tensor:
        """Latents in decoder width (L, M)."""
        assert self.encoder is not None, f"{self.design.name} has no encoder"
        x_RTD = self._embed(self.encoder, inputs.token_RT, inputs.phase_RT, "encoder")
        hidden_RTD = self.encoder(x_RTD, inputs.rows, causal=self.design.mask == "causal")
        return self.adapter(self.pooling(hidden_RTD.flatten(0, 1), inputs.blocks), inputs.spans)

    def forward(self, batch: Batch) -> Tensor:
        """Logits at the scored positions (P, V)."""
        return self.decoder.logits(self.hidden(batch))

    def loss(self, batch: Batch, chunk_bytes: int = CHUNK_BYTES) -> Tensor:
        """Sum of the cross-entropy over the scored positions, in nats, without all logits at once (see `loss`)."""
        return linear_cross_entropy(self.hidden(batch), self.decoder.head_weight, batch.target_P, chunk_bytes)

    @torch.no_grad()
    def scores(self, batch: Batch, chunk_bytes: int = CHUNK_BYTES) -> tuple[Tensor, Tensor]:
        """Per scored position its cross-entropy (P,), and whether the likeliest token is right (P,); no gradients."""
        return linear_scores(self.hidden(batch), self.decoder.head_weight, batch.target_P, chunk_bytes)

    def hidden(self, batch: Batch) -> Tensor:
        """The decoder's final states at the scored positions (P, M)."""
        x_RTM = self._embed(self.decoder, batch.token_RT, batch.phase_RT, "decoder")
        if batch.encoder is not None:
            latents_LM = self.encode(batch.encoder)
            here_RT1 = (batch.latent_RT >= 0)[:, :, None]
            x_RTM = torch.where(here_RT1, latents_LM[batch.latent_RT.clamp(min=0)].to(x_RTM.dtype), x_RTM)
        hidden_RTM = self.decoder(x_RTM, batch.rows)
        return hidden_RTM.flatten(0, 1)[batch.place_P]

    def _embed(self, part: Transformer, token_RT: Tensor, phase_RT: Tensor, name: str) -> Tensor:
        x_RTD = part.embed_tokens(token_RT)
        if self.phase is not None:
            x_RTD = x_RTD + self.phase[name](phase_RT.clamp(min=0)) * (phase_RT >= 0)[:, :, None]
        return x_RTD


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights that an optimizer for matrices trains: those of linear layers, but for an untied head."""
    named = model.named_modules()
    return [m.weight for name, m in named if isinstance(m, nn.Linear) and not name.endswith("lm_head")]


def _draw(weight: Tensor, std: float, base: int, name: str) -> None:
    if weight.is_meta:
        return
    generator = torch.Generator(weight.device).manual_seed(base ^ zlib.crc32(name.encode()))
    nn.init.normal_(weight, std=std, generator=generator)
