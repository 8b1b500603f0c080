"""The compressor: encoder, pooling, adapter and decoder of one design, trained end to end.

Notable choices:
- all windows of a step go through the encoder in one call, all samples through the decoder in one call;
- logits exist only at scored positions;
- small-model aids that a full-scale run switches off: phase embeddings (place of a token in its block, added to
  encoder inputs and to what reconstruction asks for) and an encoder that starts as the identity.

Shapes: R rows, T positions of a row, D encoder width, M decoder width, L latents, P scored positions, V vocabulary.
"""

import zlib
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_space.axes.adapter import ADAPTERS
from search_space.axes.pooling import POOLINGS
from search_space.design import Design
from search_space.errors import UsageError
from search_space.layout import Batch, EncoderInputs, Positions
from search_space.transformer import Block, Shape, Transformer

__all__ = ["Compressor", "Size"]


@dataclass(frozen=True)
class Size:
    """What all designs of a sweep share.

    vocab: token ids, special tokens included.
    share_embeddings: one token embedding for encoder and decoder; asks for equal widths.
    positions: where latents stand for the decoder (see `lay_out`).
    phase_std: standard deviation of the phase embeddings at the start; 0 leaves them out.
    embedding_std: standard deviation of the token embeddings at the start.
    silent_encoder: the encoder's and the adapter's layers start as the identity.
    """

    vocab: int = 512
    encoder: Shape = field(default_factory=Shape)
    decoder: Shape = field(default_factory=Shape)
    share_embeddings: bool = True
    positions: Positions = "spread"
    phase_std: float = 2.0
    embedding_std: float = 0.7
    silent_encoder: bool = True


class Compressor(nn.Module):
    """Builds what `design` says at `size`. Raises `UsageError` when the two do not fit."""

    def __init__(self, design: Design, size: Size) -> None:
        super().__init__()
        if size.share_embeddings and size.encoder.width != size.decoder.width:
            raise UsageError(
                f"size.share_embeddings: encoder width {size.encoder.width} and decoder width {size.decoder.width} "
                "differ; set it to false or make them equal"
            )
        self.design, self.size = design, size
        self.decoder = Transformer(size.decoder, size.vocab)
        self.encoder: Transformer | None = None
        self.phase: nn.ModuleDict | None = None
        if design.control in ("none", "encoderless"):
            self._build_encoder()
        self._initialise()

    def _build_encoder(self) -> None:
        design, size = self.design, self.size
        layers = 0 if design.control == "encoderless" else size.encoder.layers
        self.encoder = Transformer(size.encoder, size.vocab, layers)
        if size.share_embeddings:
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
        # The head is the embedding: logits of unit variance at the start, whatever the embedding's scale.
        nn.init.constant_(self.decoder.norm.weight, self.size.decoder.width**-0.5 / self.size.embedding_std)
        if self.encoder is not None and self.size.silent_encoder:
            for part in (self.encoder, self.adapter):
                for module in part.modules():
                    if isinstance(module, Block):
                        module.silence()

    def encode(self, inputs: EncoderInputs) -> Tensor:
        """Latents in decoder width (L, M)."""
        assert self.encoder is not None, f"{self.design.name} has no encoder"
        x_RTD = self._embed(self.encoder, inputs.token_RT, inputs.phase_RT, "encoder")
        hidden_RTD = self.encoder(x_RTD, inputs.rows, causal=self.design.mask == "causal")
        return self.adapter(self.pooling(hidden_RTD.flatten(0, 1), inputs.blocks), inputs.spans)

    def forward(self, batch: Batch) -> Tensor:
        """Logits at the scored positions (P, V)."""
        x_RTM = self._embed(self.decoder, batch.token_RT, batch.phase_RT, "decoder")
        if batch.encoder is not None:
            latents_LM = self.encode(batch.encoder)
            here_RT1 = (batch.latent_RT >= 0)[:, :, None]
            x_RTM = torch.where(here_RT1, latents_LM[batch.latent_RT.clamp(min=0)].to(x_RTM.dtype), x_RTM)
        hidden_RTM = self.decoder(x_RTM, batch.rows)
        hidden_PM = hidden_RTM.flatten(0, 1)[batch.place_P]
        return F.linear(hidden_PM, self.decoder.embed_tokens.weight)

    def _embed(self, part: Transformer, token_RT: Tensor, phase_RT: Tensor, name: str) -> Tensor:
        x_RTD = part.embed_tokens(token_RT)
        if self.phase is not None:
            x_RTD = x_RTD + self.phase[name](phase_RT.clamp(min=0)) * (phase_RT >= 0)[:, :, None]
        return x_RTD


def _draw(weight: Tensor, std: float, base: int, name: str) -> None:
    if weight.is_meta:
        return
    generator = torch.Generator(weight.device).manual_seed(base ^ zlib.crc32(name.encode()))
    nn.init.normal_(weight, std=std, generator=generator)
