"""The published full-scale recipe as data (paper section 3): four stages, what each trains, at which rates.

Published are the tokens at N = 16. At another ratio the same text is read: as many tokens are wrapped and as many are
read raw, and the decoder's budget has the other number of latents.
"""

from dataclasses import dataclass

from trainer.plan import Rates, Stage

__all__ = ["BATCH", "LENGTH", "PUBLISHED", "PublishedStage", "stages"]

BATCH = 4_194_304  # decoder tokens of a step
LENGTH = 16_384
_RATIO = 16


@dataclass(frozen=True)
class PublishedStage:
    """encoder, decoder: tokens at N = 16. reconstruct: share of the tokens after compression. mixture: shares of the
    others by kind of text."""

    name: str
    rates: Rates
    encoder: int
    decoder: int
    warmup: int
    reconstruct: float
    mixture: dict[str, float]

    @property
    def raw(self) -> int:
        """Tokens that the decoder reads as they are."""
        return self.decoder - self.encoder // _RATIO


_TEXT = {"web": 20.37, "code": 16.90, "reasoning": 17.17, "long": 2.84, "sft": 25.49}
_SFT = {"reasoning": 17.88, "long": 49.16, "general": 20.91}
PUBLISHED = (
    PublishedStage("adapter", Rates(1e-3), 17_540_000_000, 21_290_000_000, 250, 0.1723, _TEXT),
    PublishedStage("encoder", Rates(6e-5, 6e-5), 35_070_000_000, 42_580_000_000, 500, 0.1723, _TEXT),
    PublishedStage("all", Rates(6e-5, 6e-5, 1e-5), 82_430_000_000, 100_080_000_000, 1000, 0.1723, _TEXT),
    PublishedStage("sft", Rates(3e-5, 3e-5, 3e-5), 29_730_000_000, 21_320_000_000, 500, 0.1205, _SFT),
)


def stages(
    ratio: int,
    batch: int = BATCH,
    length: int = LENGTH,
    tokens: float = 1.0,
    sources: frozenset[str] = frozenset(),
    rates: Rates | None = None,
) -> list[Stage]:
    """The published stages at a ratio, with `tokens` times the budget.

    sources: of the corpus; a stage mixes those of its kinds that are there, and by their size where there is none.
    rates: for all stages, in place of the published ones.
    """
    return [_stage(published, ratio, batch, length, tokens, sources, rates) for published in PUBLISHED]


def _stage(
    published: PublishedStage,
    ratio: int,
    batch: int,
    length: int,
    tokens: float,
    sources: frozenset[str],
    rates: Rates | None,
) -> Stage:
    encoder, raw = published.encoder * tokens, published.raw * tokens
    decoder = raw + encoder / ratio
    steps = max(1, round(decoder / batch))
    whole = published.decoder / BATCH  # steps as published
    return Stage(
        name=published.name,
        rates=rates or published.rates,
        steps=steps,
        warmup=min(steps, max(1, round(published.warmup * steps / whole))),
        encoder_tokens=round(encoder),
        decoder_tokens=round(decoder),
        pieces=max(1, round((encoder + raw) / steps / length)),
        reconstruct=_of_pieces(published.reconstruct),
        mixture={kind: share for kind, share in published.mixture.items() if kind in sources},
    )


def _of_pieces(share: float) -> float:
    """Share of the pieces that are reconstructed, by their share of what the decoder reads: it reads all of such a
    piece, and half of one that is interleaved."""
    return share / (2 - share)
