"""Adapters: from pooled encoder states to the decoder's width (paper section 1).

`mlp` is RMSNorm, Linear, GELU, Linear with biases; `attn_mlp` puts transformer layers before it, `mlp_attn`
behind it. Those layers are bidirectional over the latents of one span and never see another span's.

Shapes: L latents of the batch, D pooled width, M decoder width; R, T rows that hold the latents of spans.
"""

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from search_space.axes.axis import Choice, Values, has_encoder
from search_space.transformer import Layers, Rows, Shape

__all__ = ["ADAPTERS", "AXIS", "Adapter", "LatentRows"]


@dataclass
class LatentRows:
    """The latents laid out in rows, one segment per span.

    latent_RT: which latent stands at a position (0 at padding).
    place_L: where a latent stands in the flattened rows.
    """

    rows: Rows
    latent_RT: Tensor
    place_L: Tensor


class Adapter(nn.Module):
    """The mlp alone. `attention` says whether `depth` means anything, `in_pooled_width` whether its layers have the
    encoder's heads and feed-forward."""

    attention: bool = False
    in_pooled_width: bool = False

    def __init__(self, pooled_width: int, encoder: Shape, decoder: Shape, depth: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(pooled_width, eps=encoder.norm_eps)
        self.fc1 = nn.Linear(pooled_width, decoder.width)
        self.fc2 = nn.Linear(decoder.width, decoder.width)

    def mlp(self, latents_LD: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(latents_LD))))

    def forward(self, latents_LD: Tensor, spans: LatentRows | None) -> Tensor:
        """Pooled states (L, D) to latents the decoder reads (L, M)."""
        return self.mlp(latents_LD)


class AttnMlp(Adapter):
    """Layers in pooled width (the encoder's for `mean` and `eos`, N times it for `concat`), then the mlp."""

    attention = in_pooled_width = True

    def __init__(self, pooled_width: int, encoder: Shape, decoder: Shape, depth: int) -> None:
        super().__init__(pooled_width, encoder, decoder, depth)
        self.attention_layers = Layers(replace(encoder, width=pooled_width), depth)

    def forward(self, latents_LD: Tensor, spans: LatentRows | None) -> Tensor:
        return self.mlp(_within_spans(self.attention_layers, latents_LD, spans))


class MlpAttn(Adapter):
    """The mlp, then layers in decoder width."""

    attention = True

    def __init__(self, pooled_width: int, encoder: Shape, decoder: Shape, depth: int) -> None:
        super().__init__(pooled_width, encoder, decoder, depth)
        self.attention_layers = Layers(decoder, depth)

    def forward(self, latents_LD: Tensor, spans: LatentRows | None) -> Tensor:
        return _within_spans(self.attention_layers, self.mlp(latents_LD), spans)


def _within_spans(layers: Layers, latents_LD: Tensor, spans: LatentRows | None) -> Tensor:
    assert spans is not None, "an adapter with attention needs the layout of latents in spans"
    states_RTD = layers(latents_LD[spans.latent_RT], spans.rows, causal=False)
    return states_RTD.flatten(0, 1)[spans.place_L]


ADAPTERS: dict[str, type[Adapter]] = {"mlp": Adapter, "attn_mlp": AttnMlp, "mlp_attn": MlpAttn}


class AdapterAxis(Choice):
    name, default = "adapter", "mlp"
    asked = "where anything is compressed"
    pattern = r"-(?P<adapter>[a-z_]+)"

    def choices(self) -> tuple[str, ...]:
        return tuple(ADAPTERS)

    def idle(self, beside: Values) -> bool:
        return not has_encoder(beside)


AXIS = AdapterAxis()
