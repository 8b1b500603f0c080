"""Which stretches of a document are wrapped, that is compressed: published rules, and a curriculum for small models.

All are functions of lengths and a random generator alone; nothing here knows a design, so that all designs of a seed
wrap the same text. Cuts are those of a `Sample`: segments alternate wrapped, raw, ..., and start wrapped unless the
first cut is 0.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["PROMPTS", "Turn", "chat", "curriculum", "document"]

Floats = NDArray[np.float64]
Turn = tuple[str, int, int]
"""Role, start and stop in tokens."""

TRAINABLE = 8192  # raw tokens of a document above twice as many (paper section 3)
SHORTEST = 128  # tokens of a segment, where the document has twice as many
ANSWERS = "assistant"  # the role whose messages are what a compressed context is read for

# Wordings of "say it again" (paper section 3: many prompt wordings).
PROMPTS = (
    "Repeat the text above word for word.",
    "Write out the passage you have just read, exactly as it was.",
    "Reproduce the document above verbatim.",
    "What did the text say? Quote it in full.",
    "Copy the text above without changing anything.",
    "Recite the passage above from beginning to end.",
    "Give back the original text, letter for letter.",
    "Please print the document again, unchanged.",
    "Restore the compressed text.",
    "Decode the memory into the text it was made from.",
    "Now write down everything that was in the context.",
    "Output the context once more, in the same words and the same order.",
    "Transcribe the passage above.",
    "Return the full text of the document.",
    "Say exactly what you have read.",
    "Spell out the text above again, with its punctuation and its line breaks.",
    "Type the passage again; leave nothing out and add nothing.",
    "Could you repeat the whole document?",
    "I need the original wording. Repeat the text.",
    "Quote the entire passage above.",
    "Rewrite the text above exactly as it stands.",
    "From memory: what was the text?",
    "Show the document again.",
    "Echo the text above.",
)


def curriculum(length: int, span: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Wrapped and raw segments in turn, as many pairs as spans of `span` tokens fit when half of the tokens are raw;
    each segment's share varies by 20%."""
    pairs = max(1, length // (2 * span))
    return _cuts(length * _shares(2 * pairs, rng), length)


def document(length: int, rng: np.random.Generator) -> tuple[int, ...]:
    """The published rule for raw documents (paper section 3).

    Half of the tokens are raw, or 8,192 of a document above 16,384. The number of pairs grows with the length; the
    first wrapped segment has 30 to 40% of the wrapped tokens, the last raw one 40 to 50% of the raw ones, the others
    vary by 20%; none has less than 128 tokens, unless the document is shorter than two of them.
    """
    raw = min(length // 2, TRAINABLE)
    pairs = int(rng.integers(*_pairs(length), endpoint=True))
    if pairs == 1:
        return (length - raw,)
    first, last = rng.uniform(0.3, 0.4), rng.uniform(0.4, 0.5)
    wrapped_shares = np.array([first, *(1 - first) * _shares(pairs - 1, rng)])
    raw_shares = np.array([*(1 - last) * _shares(pairs - 1, rng), last])
    sizes = np.stack([wrapped_shares * (length - raw), raw_shares * raw], 1).ravel()
    return _cuts(sizes, length)


def chat(messages: Sequence[Turn], length: int, rng: np.random.Generator) -> tuple[int, ...]:
    """The published rule for chats (paper section 3); no cut where there is no answer, or nothing else.

    Wrapped are stretches of the messages that are not the assistant's, since those are what is asked of the model.
    Per message, with probability 0.5 all of it, else up to three regions: below 32 tokens always all, to 200 one, to
    600 one or two, above one to three, covering 80 to 100% of it, with raw gaps of 5% between them.
    """
    if not any(role == ANSWERS for role, _, _ in messages):
        return ()
    wrapped: list[tuple[int, int]] = []
    for role, start, stop in messages:
        if role == ANSWERS or start == stop:
            continue
        for a, b in _regions(stop - start, rng):
            if wrapped and wrapped[-1][1] == start + a:  # neighbours are one span
                wrapped[-1] = (wrapped[-1][0], start + b)
            else:
                wrapped.append((start + a, start + b))
    edges = [edge for region in wrapped for edge in region]
    inner = [edge for edge in edges if 0 < edge < length]
    return (0, *inner) if edges and edges[0] > 0 else tuple(inner)


def _pairs(length: int) -> tuple[int, int]:
    """Fewest and most pairs of segments by the length of a document."""
    for below, pairs in ((2048, (1, 1)), (4096, (1, 2)), (8192, (2, 4)), (16384, (4, 6))):
        if length < below:
            return pairs
    return (4, 8)


def _regions(length: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """What is wrapped of a message of `length` tokens."""
    if length < 32 or rng.random() < 0.5:
        return [(0, length)]
    most = 1 if length < 200 else 2 if length < 600 else 3
    count = int(rng.integers(1, most, endpoint=True))
    gap = 0.05 * length
    room = length - (count - 1) * gap
    covered = min(rng.uniform(0.8, 1.0) * length, room)
    before = rng.uniform(0, 1) * (room - covered)
    sizes = covered * _shares(count, rng)
    starts = before + np.cumsum(sizes) - sizes + gap * np.arange(count)
    return [(int(a), int(b)) for a, b in zip(np.round(starts), np.round(starts + sizes), strict=True)]


def _shares(count: int, rng: np.random.Generator) -> Floats:
    """Shares of a whole that vary by 20%."""
    shares = rng.uniform(0.8, 1.2, count)
    return shares / shares.sum()


def _cuts(sizes: Floats, length: int) -> tuple[int, ...]:
    """Inner boundaries of segments of about these sizes, none empty."""
    edges = np.round(np.cumsum(sizes)).astype(int)
    edges[-1] = length
    assert all(a < b for a, b in pairwise([0, *edges])), f"segments of {sizes} in {length} tokens"
    return tuple(int(e) for e in edges[:-1])
