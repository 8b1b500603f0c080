"""One unit of work, twice: a look at its rows, and its kept documents as LitData shards. Runs in worker processes.

Both leave one result under a name that appears when it is whole; a unit whose result exists is not done again.
"""

import json
import os
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
from litdata.streaming.writer import BinaryWriter
from numpy.typing import NDArray

from search_space.errors import UsageError
from search_space.files import whole
from trainer.corpus import digest_of
from trainer.records import Document, Problem, Slice, read
from trainer.sources import Unit
from trainer.tokenizer import Encoded, Encoder

__all__ = ["SPLITS", "Look", "Shards", "begin_worker", "encode_unit", "look_at"]

SPLITS = ("train", "heldout")
SHARD = 2**26  # bytes, what LitData advises
_BATCH = 2**16  # bytes of text that a tokenizer call gets: short ones are no slower, and keep less in memory


@dataclass(frozen=True)
class Look:
    """What a unit's rows are. Arrays over rows: digest (rows, 2) of the documents, size in bytes, 0 where there is no
    document, chat. rows: of each slice. problems: slice, row in the slice, reason, broken.
    """

    digest: NDArray[np.uint64]
    size: NDArray[np.int64]
    chat: NDArray[np.bool]
    rows: list[int]
    problems: list[tuple[int, int, str, bool]]

    def save(self, file: Path) -> None:
        rest = json.dumps([self.rows, self.problems])
        with whole(file) as scratch:
            _save(scratch, self.digest, self.size, self.chat, rest)

    @classmethod
    def load(cls, file: Path) -> "Look":
        with np.load(file) as held:
            rows, problems = json.loads(str(held["rest"]))
            return cls(held["digest"], held["size"], held["chat"], rows, [tuple(p) for p in problems])


def _save(file: Path, digest: NDArray, size: NDArray, chat: NDArray, rest: str) -> None:
    with file.open("wb") as stream:
        np.savez(stream, digest=digest, size=size, chat=chat, rest=np.array(rest))


@dataclass(frozen=True)
class Shards:
    """What a unit gave one split. lengths, source, chat: of each document, in order. digests: of the shards' files.
    chunks, config: as LitData's index has them.
    """

    bytes: int
    lengths: list[int]
    source: list[int]
    chat: list[bool]
    digests: list[str]
    chunks: list[dict[str, Any]]
    config: dict[str, Any]


def look_at(unit: Unit, text_field: str, out: Path) -> int:
    """Read a unit and write its `Look` to `out`; the number of its rows."""
    digests, sizes, chat, rows, problems = [], [], [], [], []
    for number, piece in enumerate(unit):
        row = -1
        for row, item in enumerate(read(piece, text_field)):
            document = isinstance(item, Document)
            digests.append(item.digest() if document else bytes(16))
            sizes.append(len(item.encoded()) if document else 0)
            chat.append(document and item.chat)
            if isinstance(item, Problem):
                problems.append((number, row, item.reason, item.broken))
        rows.append(row + 1)
    digest = np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2)
    Look(digest, np.array(sizes, np.int64), np.array(chat, np.bool), rows, problems).save(out)
    return len(sizes)


def documents(unit: Unit, text_field: str, first: list[int]) -> Iterator[tuple[Slice, str, Document | None]]:
    """Slice, place and document of each row. first: rows of the file before each slice."""
    for piece, begin in zip(unit, first, strict=True):
        for row, item in enumerate(read(piece, text_field)):
            yield piece, piece.place(begin + row), item if isinstance(item, Document) else None


def encode_unit(
    unit: Unit,
    text_field: str,
    first: list[int],
    fate: NDArray[np.int8],
    digest: NDArray[np.uint64],
    tokenizer: Path,
    out: Path,
) -> int:
    """Write the shards of a unit and what is known of them to the folder `out`; the bytes of text in them.

    first: rows of the file before each slice. fate: of each row, the number of its split or -1. digest: of each row.
    Raises `UsageError` where the rows are not those that `look_at` saw.
    """
    encoder = _encoder(tokenizer)
    scratch = Path(tempfile.mkdtemp(prefix=".unit-", dir=out.parent))
    writers = [_Writer(scratch / split) for split in SPLITS]
    held: list[tuple[_Writer, Slice, str, Document]] = []
    size = 0

    def flush() -> None:
        for (writer, piece, place, document), encoded in zip(held, encoder([d for *_, d in held]), strict=True):
            writer.add(piece, place, document, encoded)
        held.clear()

    rows = -1
    for rows, (piece, place, document) in enumerate(documents(unit, text_field, first)):
        if rows >= len(fate) or (fate[rows] >= 0 and _digest(document) != digest[rows].tolist()):
            raise UsageError(
                f"corpus.source: {piece.path} has changed since it was first read, at {place}; start again"
            )
        if fate[rows] >= 0 and document is not None:
            held.append((writers[fate[rows]], piece, place, document))
            size += len(document.encoded())
            if size >= _BATCH:
                flush()
                size = 0
    if rows + 1 != len(fate):
        raise UsageError(f"corpus.source: {unit[-1].path} has changed since it was first read; start again")
    flush()
    known = [writer.close() for writer in writers]
    (scratch / "shards.json").write_text(json.dumps([asdict(shards) for shards in known]))
    if not out.exists():  # else an orphan of a killed process was faster, with the same
        os.replace(scratch, out)
    return sum(shards.bytes for shards in known)


def _digest(document: Document | None) -> list[int]:
    return np.frombuffer(document.digest(), ">u8").tolist() if document else []


class _Writer:
    """The shards of one split of a unit. An item is its tokens and, as JSON, its name and messages."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer = BinaryWriter(str(folder), chunk_bytes=SHARD)
        self._shards = Shards(0, [], [], [], [], [], {})
        self._bytes = 0

    def add(self, piece: Slice, place: str, document: Document, encoded: Encoded) -> None:
        about = json.dumps([place, encoded.messages]).encode()  # bytes: LitData takes a string that names a file for it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # one document may be larger than a shard
            self._writer.add_item(len(self._shards.lengths), {"about": about, "tokens": encoded.tokens})
        self._bytes += len(document.encoded())
        self._shards.lengths.append(len(encoded.tokens))
        self._shards.source.append(piece.source)
        self._shards.chat.append(document.chat)

    def close(self) -> Shards:
        if not self._shards.lengths:
            return self._shards
        self._writer.done()
        (index,) = self._folder.glob("*.index.json")
        found = json.loads(index.read_text())
        digests = [digest_of(self._folder / chunk["filename"]) for chunk in found["chunks"]]
        return replace(self._shards, bytes=self._bytes, digests=digests, chunks=found["chunks"], config=found["config"])


@cache
def _encoder(file: Path) -> Encoder:
    return Encoder(file)


def begin_worker() -> None:
    """Cores are shared by the processes, so that a tokenizer takes one; and a worker ends soon after its parent,
    however that ended."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for number in (signal.SIGINT, signal.SIGTERM):  # not what the parent does then
        signal.signal(number, signal.SIG_DFL)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
