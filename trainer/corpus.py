"""A corpus as it is read: the tokenizer, and two splits of documents in LitData shards.

A corpus folder holds `manifest.json` (sources, counts, hashes), `tokenizer.json`, `skipped.jsonl` (what was left out
and why), `train/` and `heldout/`. A split is a folder of LitData shards, one item per document (`tokens`, and `about`:
its name and messages as JSON), and beside them, per document in the order of the shards, `lengths.npy`, `source.npy`
and `chat.npy`. `trainer.prepare` makes it.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from search_space.errors import UsageError
from search_space.layout import Specials

__all__ = ["FORMAT", "Corpus", "Split", "digest_of", "is_corpus"]

FORMAT = 2  # part of a corpus's key: raise it when the layout of a corpus folder changes
OPEN_SHARDS = 256


def is_corpus(folder: Path) -> bool:
    return (folder / "manifest.json").is_file() and (folder / "tokenizer.json").is_file()


class Split:
    """The documents of one split, at random.

    LitData's own reader opens and decodes a shard anew where reads jump between shards, 1 ms each on the demo's
    corpus. A shard is mapped here instead: a document is a view of the file, in the memory that the system has left,
    for all processes of a machine together; the maps of the shards used last stay open.
    """

    def __init__(self, folder: Path) -> None:
        self.lengths: NDArray[np.int64] = np.load(folder / "lengths.npy")
        self.source: NDArray[np.int16] = np.load(folder / "source.npy")
        self.chat: NDArray[np.bool] = np.load(folder / "chat.npy")
        chunks = json.loads((folder / "index.json").read_text())["chunks"]
        sizes = [c["chunk_size"] for c in chunks]
        self.shard: NDArray[np.int32] = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        self._first = np.cumsum(sizes) - sizes
        self._files: Sequence[str] = [str(folder / c["filename"]) for c in chunks]
        self.orders: dict[tuple[int, int, int], Any] = {}  # in which it is read, for whoever reads it once more so

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, document: int) -> NDArray[np.uint32]:
        """The tokens of a document, read-only."""
        return self._item(document)[1].view(np.uint32)

    def name(self, document: int) -> str:
        return self._about(document)[0]

    def messages(self, document: int) -> list[tuple[str, int, int]]:
        """Role, start and stop of each message in tokens, its markup included; none where it is not a chat."""
        return [(role, start, stop) for role, start, stop in self._about(document)[1]]

    def _about(self, document: int) -> tuple[str, list[Any]]:
        return json.loads(self._item(document)[0].tobytes())

    def _item(self, document: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The bytes of its two fields. An item is the size of each field, and the fields."""
        if not 0 <= document < len(self.lengths):
            raise IndexError(f"document {document} of {len(self.lengths)}")
        shard = self.shard[document]
        raw, offsets = _shard(self._files[shard])
        start, stop = offsets[document - self._first[shard] :][:2].tolist()
        middle = start + 8 + int(raw[start : start + 4].view(np.uint32)[0])
        return raw[start + 8 : middle], raw[middle:stop]


@lru_cache(OPEN_SHARDS)
def _shard(file: str) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """A shard's bytes, and the offsets of its items: their number n and n + 1 offsets come first, each in 4 bytes."""
    raw = np.memmap(file, np.uint8, "r").view(np.ndarray)
    items = int(raw[:4].view(np.uint32)[0])
    return raw, raw[4 : 4 * (items + 2)].view(np.uint32)


class Corpus:
    """An existing corpus folder. Raises `UsageError` where a file is missing, truncated or altered."""

    def __init__(self, folder: Path, verify: bool = True) -> None:
        self.folder = folder
        try:
            self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        except (OSError, ValueError) as error:
            message = f"corpus: {folder} has no readable manifest.json ({error}); delete the folder to rebuild it"
            raise UsageError(message) from error
        if self.manifest.get("format") != FORMAT:
            raise UsageError(f"corpus: {folder} is of another version of lclab; delete the folder to rebuild it")
        if verify:
            self._verify()
        self.specials = Specials(**self.manifest["specials"])
        self.sources: list[str] = [s["name"] for s in self.manifest["sources"]]
        self.vocab: int = self.manifest["vocab"]

    def _verify(self) -> None:
        for name, digest in self.manifest["files"].items():
            file = self.folder / name
            if not file.is_file() or digest_of(file) != digest:
                what = "differs from its checksum" if file.is_file() else "is missing"
                raise UsageError(f"corpus: shard {file} {what}; delete the folder {self.folder} to rebuild it")

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    @cached_property
    def train(self) -> Split:
        return Split(self.folder / "train")

    @cached_property
    def heldout(self) -> Split:
        return Split(self.folder / "heldout")


def digest_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
