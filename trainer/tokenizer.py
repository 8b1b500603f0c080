"""Tokenizers: byte-level BPE trained on a corpus, or a folder with a tokenizer.json such as Qwen3's; chat markup.

Text is data: a special token spelled out in it is encoded as the characters it is made of. Only this module puts
special tokens into a document, and only as markup of a chat.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from search_space.errors import UsageError
from search_space.layout import Specials
from trainer.records import Document

__all__ = [
    "SMALLEST_VOCAB",
    "Encoded",
    "Encoder",
    "load",
    "specials_of",
    "texts_of",
    "train",
    "vocab_of",
    "with_specials",
]

SPECIALS = {
    "memory_start": "<|memory_start|>",
    "memory_end": "<|memory_end|>",
    "memory": "<|memory|>",
    "reconstruct": "<|reconstruct|>",
    "mask": "<|mask|>",
}
CHAT = ("<|im_start|>", "<|im_end|>")
SMALLEST_VOCAB = 256 + len(SPECIALS)
QWEN3_EMBEDDINGS = 151_936
_QWEN3_END_OF_TEXT = 151_643


def train(texts: Iterable[str], vocab: int, chat: bool) -> Tokenizer:
    """Byte-level BPE of up to `vocab` tokens, special ones included; those of chat only where there is any."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[*SPECIALS.values(), *(CHAT if chat else ())],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load(path: str) -> tuple[Tokenizer, str]:
    """The tokenizer of a tokenizer.json or of the folder that has one, and the hash of the file.

    Raises `UsageError` where it cannot be read.
    """
    file = Path(path).expanduser()
    file = file / "tokenizer.json" if file.is_dir() else file
    try:
        data = file.read_bytes()
        tokenizer = Tokenizer.from_str(data.decode())
    except OSError as error:
        raise UsageError(f"corpus.tokenizer: {file} cannot be read ({error.strerror})") from error
    except Exception as error:  # `tokenizers` raises no narrower one
        raise UsageError(f"corpus.tokenizer: {file} is not a tokenizer.json ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, hashlib.sha256(data).hexdigest()


def with_specials(tokenizer: Tokenizer, chat: bool) -> Tokenizer:
    """The special tokens it lacks are added behind the ids it has."""
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in (*SPECIALS.values(), *(CHAT if chat else ()))])
    return tokenizer


def specials_of(tokenizer: Tokenizer) -> Specials:
    ids = tokenizer.get_vocab()
    return Specials(**{field: ids[token] for field, token in SPECIALS.items()})


def vocab_of(tokenizer: Tokenizer) -> int:
    """Rows that embeddings need. Qwen3's have more than its tokenizer has tokens."""
    size = max(tokenizer.get_vocab().values()) + 1
    return max(size, QWEN3_EMBEDDINGS) if tokenizer.token_to_id("<|endoftext|>") == _QWEN3_END_OF_TEXT else size


def texts_of(document: Document) -> list[str]:
    """The strings of a document that are encoded each on its own."""
    return [f"{role}\n{content}" for role, content in document.messages] if document.chat else [document.text]


@dataclass(frozen=True)
class Encoded:
    """tokens: of the whole document. messages: role, start and stop of each message in tokens, markup included."""

    tokens: NDArray[np.uint32]
    messages: list[tuple[str, int, int]]


class Encoder:
    """Documents to tokens; chats in Qwen's markup, `<|im_start|>role\\ncontent<|im_end|>\\n` per message."""

    def __init__(self, file: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.encode_special_tokens = True  # as what they are spelled with
        before, behind = (self._tokenizer.token_to_id(token) for token in CHAT)
        if before is not None and behind is not None:  # else no source had a chat
            newline = self._tokenizer.encode("\n", add_special_tokens=False).ids
            self._before, self._behind = [before], [behind, *newline]

    def __call__(self, documents: Sequence[Document]) -> list[Encoded]:
        texts = [text for document in documents for text in texts_of(document)]
        ids = (e.ids for e in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        return [self._chat(d, [next(ids) for _ in d.messages]) if d.chat else _plain(next(ids)) for d in documents]

    def _chat(self, document: Document, bodies: list[list[int]]) -> Encoded:
        ids: list[int] = []
        messages = []
        for (role, _), body in zip(document.messages, bodies, strict=True):
            start = len(ids)
            ids += [*self._before, *body, *self._behind]
            messages.append((role, start, len(ids)))
        return Encoded(np.array(ids, np.uint32), messages)


def _plain(ids: list[int]) -> Encoded:
    return Encoded(np.array(ids, np.uint32), [])
