"""Reading one slice of a source, row by row: what is a document there, and what cannot be one.

Every row of a slice yields one item, a `Document` or a `Problem`, so that places can be counted whatever is wrong.
"""

import gzip
import hashlib
import io
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import IO, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from search_space.errors import UsageError

__all__ = ["Document", "Kind", "Message", "Problem", "Row", "Slice", "hub", "open_bytes", "read", "s3_client"]

Kind = Literal["text", "book", "jsonl", "json", "parquet", "hub"]
Message = tuple[str, str]  # role and content
BOOK_PART = 4000  # bytes
TO_THE_END = 2**62
ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's words
_BROKEN = (OSError, EOFError, zlib.error, pa.ArrowException)


@dataclass(frozen=True)
class Slice:
    """A stretch of a file that is read on its own.

    kind: `text` is one document, `book` one text to be cut into documents, the others hold records.
    name: of the file in its source; start, stop: bytes of a book or of JSON lines, row groups of a Parquet file,
    rows of a dataset of the hub.
    """

    source: int
    kind: Kind
    path: str
    name: str
    start: int = 0
    stop: int = TO_THE_END

    def place(self, row: int) -> str:
        """Where row `row` of the file is, as a person counts; also the name of a document."""
        match self.kind:
            case "text":
                return self.name
            case "book":
                return f"{self.name}#{row}"
            case "jsonl":
                return f"{self.name}:{row + 1}"
            case _:
                return f"{self.name} row {row}"


@dataclass(frozen=True)
class Document:
    """A text, or a chat where there are messages."""

    text: str
    messages: tuple[Message, ...] = ()

    @property
    def chat(self) -> bool:
        return bool(self.messages)

    def encoded(self) -> bytes:
        """What makes two documents copies of each other."""
        if self.messages:
            return b"\0chat" + json.dumps(self.messages, ensure_ascii=False).encode()
        return self.text.encode()

    def digest(self) -> bytes:
        return hashlib.sha256(self.encoded()).digest()[:16]


@dataclass(frozen=True)
class Problem:
    """broken: whether somebody should repair it; an empty text is none, and not broken."""

    reason: str
    broken: bool = True


Row = Document | Problem
EMPTY = Problem("empty", broken=False)


def read(piece: Slice, text_field: str) -> Iterator[Row]:
    """The rows of a slice. text_field: of a record; empty takes `messages`, `conversations` or `text`."""
    try:
        for row in READERS[piece.kind](piece, text_field):
            if isinstance(row, Document) and not (row.text.strip() or row.messages):
                row = EMPTY
            yield row
    except _BROKEN as error:
        if piece.path.startswith("s3://") and not isinstance(error, (EOFError, zlib.error, pa.ArrowInvalid)):
            raise  # of the network, not of the file
        yield Problem(f"unreadable from here on: {_line(error)}")


def _text(piece: Slice, text_field: str) -> Iterator[Row]:
    with open_bytes(piece.path) as stream:
        yield _decode(stream.read())


def _book(piece: Slice, text_field: str) -> Iterator[Row]:
    """Cut at blank lines once `BOOK_PART` bytes have come together."""
    part = b""
    for paragraph in _stretch(piece, b"\n\n").removesuffix(b"\n\n").split(b"\n\n"):
        part += paragraph + b"\n\n"
        if len(part) >= BOOK_PART:
            yield _decode(part)
            part = b""
    if part.strip():
        yield _decode(part)


def _decode(data: bytes) -> Row:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        return Problem(f"not UTF-8 at byte {error.start}")
    if "\0" in text:
        return Problem("not text: it has a NUL byte")
    return Document(text.replace("\r\n", "\n").replace("\r", "\n"))


def _jsonl(piece: Slice, text_field: str) -> Iterator[Row]:
    if piece.path.endswith(".gz"):
        with open_bytes(piece.path) as packed, gzip.open(packed) as stream:
            yield from (_json_line(line, text_field) for line in stream)
    else:
        yield from (_json_line(line, text_field) for line in io.BytesIO(_stretch(piece, b"\n")))


def _json_line(line: bytes, text_field: str) -> Row:
    if not line.strip():
        return EMPTY
    try:
        return _document(json.loads(line), text_field)
    except (ValueError, RecursionError) as error:
        return Problem(f"not JSON: {_line(error)}")


def _json(piece: Slice, text_field: str) -> Iterator[Row]:
    """One array of records, or JSON lines under that name."""
    with open_bytes(piece.path) as stream:
        data = stream.read()
    if not data.lstrip().startswith(b"["):
        yield from (_json_line(line, text_field) for line in io.BytesIO(data))
        return
    try:
        records = json.loads(data)
    except (ValueError, RecursionError) as error:
        yield Problem(f"not JSON: {_line(error)}")
        return
    yield from (_document(record, text_field) for record in records)


def _parquet(piece: Slice, text_field: str) -> Iterator[Row]:
    with open_bytes(piece.path) as stream, closing(pq.ParquetFile(stream)) as file:
        columns = [c for c in _fields(text_field) if c in file.schema_arrow.names]
        groups = list(range(piece.start, min(piece.stop, file.num_row_groups)))
        if not columns:
            rows = sum(file.metadata.row_group(g).num_rows for g in groups)
            yield from [_document({}, text_field)] * rows
            return
        for batch in file.iter_batches(512, row_groups=groups, columns=columns, use_threads=False):
            yield from (_document(record, text_field) for record in batch.to_pylist())


def _hub(piece: Slice, text_field: str) -> Iterator[Row]:
    dataset = hub(piece.path)
    columns = [c for c in _fields(text_field) if c in dataset.column_names]
    for row in range(piece.start, piece.stop):
        yield _document({c: v for c, v in dataset[row].items() if c in columns}, text_field)


READERS: dict[Kind, Callable[[Slice, str], Iterator[Row]]] = {
    "text": _text,
    "book": _book,
    "jsonl": _jsonl,
    "json": _json,
    "parquet": _parquet,
    "hub": _hub,
}


def _fields(text_field: str) -> tuple[str, ...]:
    return (text_field,) if text_field else ("messages", "conversations", "text")


def _document(record: Any, text_field: str) -> Row:
    if not isinstance(record, dict):
        return Problem(f"a record is an object, not {type(record).__name__}")
    fields = _fields(text_field)
    field = next((f for f in fields if record.get(f) is not None), None)
    if field is None:
        return Problem(f"has no {' or '.join(map(repr, fields))}")
    value = record[field]
    try:
        if isinstance(value, str):
            value.encode()
            return Document(value)
        if isinstance(value, list):
            document = Document("", tuple(map(_message, value)))
            document.encoded()
            return document
    except UnicodeEncodeError:
        return Problem(f"{field!r} has half of a surrogate pair")
    except ValueError as error:
        return Problem(f"{field!r}: {error}")
    return Problem(f"{field!r} is neither text nor a list of messages")


def _message(entry: Any) -> Message:
    if not isinstance(entry, dict):
        raise ValueError("a message is an object with role and content")
    role, content = entry.get("role", entry.get("from")), entry.get("content", entry.get("value"))
    if not isinstance(role, str) or not role.strip() or "\n" in role:
        raise ValueError(f"{role!r} is not a role")
    if not isinstance(content, str):
        raise ValueError(f"the content of a message of {role} is not text")
    return ROLES.get(role, role), content


def open_bytes(path: str) -> IO[bytes]:
    """A local file or an object of S3, to read and seek."""
    if path.startswith("s3://"):
        from smart_open import open as open_remote  # imports boto3

        return open_remote(path, "rb", compression="disable", transport_params={"client": s3_client(os.getpid())})
    return open(path, "rb")


@cache
def s3_client(process: int) -> Any:
    """Of this process: a fork must not talk through its parent's connections."""
    import boto3

    return boto3.client("s3")


def _stretch(piece: Slice, separator: bytes) -> bytes:
    """The bytes of a slice, both ends moved on to behind the next separator: slices share no row and miss none."""
    with open_bytes(piece.path) as stream:
        start = _behind(stream, piece.start, separator)
        if piece.stop >= TO_THE_END:
            stream.seek(start)
            return stream.read()
        stop = _behind(stream, piece.stop, separator)
        stream.seek(start)
        return stream.read(stop - start)


def _behind(stream: IO[bytes], at: int, separator: bytes) -> int:
    if at == 0:
        return 0
    at = max(0, at - len(separator))  # a separator that ends at `at` counts
    stream.seek(at)
    seen = b""
    while block := stream.read(2**16):
        seen += block
        found = seen.find(separator)
        if found >= 0:
            return at + found + len(separator)
    return at + len(seen)


@cache
def hub(path: str) -> Any:
    """A dataset of the Hugging Face hub, `hf:owner/name[:split]`, memory-mapped from the cache of `datasets`.

    Raises `UsageError` where the package is missing or the dataset cannot be had.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise UsageError(f"corpus.source: {path} needs the package datasets; pip install datasets") from None
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a line for each try at a network that is away
    name, _, split = path.removeprefix("hf:").partition(":")
    try:
        return load_dataset(name, split=split or "train")
    except Exception as error:  # of many libraries: hub, HTTP, file systems, formats
        raise UsageError(f"corpus.source: {path} cannot be loaded: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
