"""The published stages at N = 16 and what scaling, another batch, another length and another ratio make of them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.plan import Rates, Stage
from trainer.published import BATCH, LENGTH, PUBLISHED, _of_pieces, stages

RATIOS = st.sampled_from([2, 4, 8, 16, 32])
TOKENS = st.floats(1e-3, 100)


def raw(stage: Stage, ratio: int) -> float:
    """Tokens that the decoder of a stage reads as they are."""
    return stage.decoder_tokens - stage.encoder_tokens / ratio


def test_the_published_run_has_350_billion_tokens_in_45_thousand_steps() -> None:
    run = stages(16)
    encoder, decoder = sum(s.encoder_tokens for s in run), sum(s.decoder_tokens for s in run)
    assert (encoder, decoder, encoder + decoder) == pytest.approx((164.77e9, 185.27e9, 350.04e9), abs=10)
    assert [round(s.steps / 1000, 1) for s in run] == [5.1, 10.2, 23.9, 5.1]
    assert [s.warmup for s in run] == [250, 500, 1000, 500]
    assert [s.rates for s in run] == [
        Rates(adapter=1e-3),
        Rates(adapter=6e-5, encoder=6e-5),
        Rates(adapter=6e-5, encoder=6e-5, decoder=1e-5),
        Rates(adapter=3e-5, encoder=3e-5, decoder=3e-5),
    ]


@given(RATIOS)
def test_at_another_ratio_the_same_text_is_read(ratio: int) -> None:
    for ours, theirs in zip(stages(ratio), PUBLISHED, strict=True):
        assert ours.encoder_tokens == theirs.encoder
        assert raw(ours, ratio) == pytest.approx(theirs.raw)
        assert ours.decoder_tokens - theirs.decoder == pytest.approx(theirs.encoder * (1 / ratio - 1 / 16))


def test_raw_tokens_are_the_decoders_without_its_latents() -> None:
    """By hand: 21.29 billion less 17.54 billion wrapped ones at 16 to a latent."""
    assert PUBLISHED[0].raw == 21_290_000_000 - 1_096_250_000


@given(RATIOS, TOKENS)
def test_budgets_are_proportional(ratio: int, tokens: float) -> None:
    for whole, scaled in zip(stages(ratio), stages(ratio, tokens=tokens), strict=True):
        assert scaled.encoder_tokens == pytest.approx(tokens * whole.encoder_tokens)
        assert scaled.decoder_tokens == pytest.approx(tokens * whole.decoder_tokens)
        assert scaled.steps == pytest.approx(tokens * whole.steps, rel=1e-3, abs=1)
        share = 1.5 / min(whole.steps, scaled.steps)  # steps and warm-up are both rounded
        assert scaled.warmup / scaled.steps == pytest.approx(whole.warmup / whole.steps, abs=share)


@given(RATIOS, st.floats(1e-9, 2), st.integers(1, 10**8), st.integers(1, 10**6))
def test_every_wish_gives_stages_with_steps_and_pieces(ratio: int, tokens: float, batch: int, length: int) -> None:
    for stage in stages(ratio, batch, length, tokens):
        assert stage.steps >= 1 and stage.pieces >= 1 and 1 <= stage.warmup <= stage.steps


@given(RATIOS, st.integers(2**16, 2**24), st.sampled_from([2048, 4096, LENGTH]))
def test_steps_fill_the_batch_and_pieces_hold_its_text(ratio: int, batch: int, length: int) -> None:
    """A step's pieces have as many raw tokens as its share of the text, both wrapped and not."""
    for stage in stages(ratio, batch, length):
        assert stage.decoder_tokens / stage.steps == pytest.approx(batch, rel=1 / stage.steps)
        text = stage.encoder_tokens + raw(stage, ratio)
        assert stage.pieces == pytest.approx(text / stage.steps / length, abs=0.51)


def test_a_stage_mixes_the_kinds_that_there_are() -> None:
    mixed = stages(16, sources=frozenset({"web", "long", "mine"}))
    assert [s.mixture for s in mixed] == [{"web": 20.37, "long": 2.84}] * 3 + [{"long": 49.16}]
    assert all(not s.mixture for s in stages(16, sources=frozenset({"mine"})))


def test_rates_may_be_given_for_all() -> None:
    own = Rates(1e-4, 2e-4, 3e-4)
    assert [s.rates for s in stages(16, rates=own)] == [own] * 4
    assert [replace(s, rates=own) for s in stages(16)] == stages(16, rates=own)


@given(st.floats(0.001, 0.999))
def test_a_share_of_what_is_read_as_a_share_of_pieces(share: float) -> None:
    """Pieces of one length: the decoder reads the whole of one that is asked for, and half of any other."""
    pieces = _of_pieces(share)
    assert 0 < pieces < share
    assert pieces * 1.0 / (pieces * 1.0 + (1 - pieces) * 0.5) == pytest.approx(share)


def test_published_shares_are_whole() -> None:
    """To the sum of the printed digits."""
    for stage in PUBLISHED:
        assert sum(stage.mixture.values()) / 100 + stage.reconstruct == pytest.approx(1, abs=2e-4)
    assert (PUBLISHED[0].decoder / BATCH, LENGTH) == (pytest.approx(5076, abs=0.5), 16384)
