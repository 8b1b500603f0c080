"""What a person names as a source, to units of work: which files, of which kind, cut or put together to a fair size."""

import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from search_space.errors import UsageError
from trainer.records import TO_THE_END, Kind, Slice, hub, open_bytes, s3_client

__all__ = ["Source", "Unit", "find", "units_of"]

Unit = tuple[Slice, ...]
STDLIB = "stdlib"
SMALLEST_UNIT, LARGEST_UNIT = 2**20, 2**26  # bytes
_STDLIB_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_KINDS: dict[str, Kind] = {".jsonl": "jsonl", ".jsonl.gz": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True)
class File:
    """stamp: changes when the content does. size: bytes, of a hub's dataset in memory."""

    kind: Kind
    path: str
    name: str
    size: int
    stamp: str | int


@dataclass(frozen=True)
class Source:
    """name: what a mixture calls it. given: as the person wrote it."""

    name: str
    given: str
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        return sum(f.size for f in self.files)

    def stamps(self) -> list[Any]:
        """Of everything that its documents depend on."""
        version = sys.version_info[:2] if self.given == STDLIB else ()
        return [self.name, version, [(f.kind, f.name, f.size, f.stamp) for f in self.files]]


def find(given: Sequence[str]) -> list[Source]:
    """The sources named by `given`, each `[NAME=]SOURCE`: `stdlib` (the sources and documentation of this Python's
    standard library), a file or folder, `s3://bucket/prefix` or `hf:owner/name[:split]`.

    Raises `UsageError` for one that is not there or has nothing, and for two of one name.
    """
    sources: list[Source] = []
    for text in given:
        name, where = _named(text)
        files = tuple(_files(where))
        if not files:
            raise UsageError(f"corpus.source: {where!r} holds no readable text: it has no files")
        if name in (s.name for s in sources):
            raise UsageError(f"corpus.source: two sources are named {name!r}; write one as NAME={where}")
        sources.append(Source(name, where, files))
    return sources


def _named(text: str) -> tuple[str, str]:
    match = re.fullmatch(r"([\w.-]+)=(.+)", text)
    if match and not Path(text).exists():
        return match[1], match[2]
    last = PurePosixPath(text.removeprefix("hf:").partition(":")[0] if text.startswith("hf:") else text).name
    return re.sub(r"(\.jsonl|\.json|\.parquet|\.txt|\.gz)+$", "", last) or "corpus", text


def _files(where: str) -> Iterable[File]:
    if where.startswith("s3://"):
        return _in_s3(where)
    if where.startswith("hf:"):
        dataset = hub(where)
        size = int(dataset.data.nbytes)
        return [File("hub", where, where.removeprefix("hf:"), size, f"{len(dataset)} {dataset._fingerprint}")]
    return _in_folder(where)


def _in_folder(where: str) -> Iterator[File]:
    root = Path(sysconfig.get_path("stdlib")) if where == STDLIB else Path(where).expanduser()
    if not root.exists():
        raise UsageError(f"corpus.source: {where!r} is neither {STDLIB!r} nor an existing file or folder")
    if root.is_file():
        paths = {root.name: root}
    else:
        # What begins with a dot is not the text of a person: version control, caches, our own unfinished corpora.
        named = ((p.relative_to(root), p) for p in root.rglob("*.py" if where == STDLIB else "*"))
        kept = ((n, p) for n, p in named if not any(part.startswith(".") for part in n.parts) and p.is_file())
        paths = {str(n): p for n, p in kept if where != STDLIB or not _STDLIB_LEFT_OUT & set(n.parts)}
    for name, path in sorted(paths.items()):
        stat = path.stat()
        yield File(_kind(name, alone=root.is_file()), str(path), name, stat.st_size, stat.st_mtime_ns)


def _in_s3(where: str) -> Iterator[File]:
    """Credentials, region and address as `boto3` finds them, from AWS_* variables or its configuration files."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = where.removeprefix("s3://").partition("/")
    try:
        pages = s3_client(os.getpid()).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        found = {o["Key"]: o for page in pages for o in page.get("Contents", ()) if not o["Key"].endswith("/")}
    except (BotoCoreError, ClientError) as error:
        raise UsageError(f"corpus.source: {where!r} cannot be listed: {error}") from error
    folder = prefix if not prefix or prefix.endswith("/") else prefix + "/"
    if prefix in found:
        folder = prefix.rpartition("/")[0] + "/" if "/" in prefix else ""
        found = {prefix: found[prefix]}
    for key, o in sorted(found.items()):
        if key.startswith(folder):
            name = key.removeprefix(folder)
            yield File(_kind(name, alone=key == prefix), f"s3://{bucket}/{key}", name, o["Size"], o["ETag"])


def _kind(name: str, alone: bool) -> Kind:
    """By its ending. In a folder a .json is a text like others, and a text is one document."""
    for ending, kind in _KINDS.items():
        if name.endswith(ending):
            return kind
    if not alone:
        return "text"
    return "json" if name.endswith(".json") else "book"


def units_of(sources: Sequence[Source]) -> list[Unit]:
    """The work, in the order of the sources: small files together, large ones in stretches.

    The size of a unit depends on the sources alone, so that the shards do not depend on the number of workers.
    """
    total = sum(s.size for s in sources)
    target = min(max(total // 64, SMALLEST_UNIT), LARGEST_UNIT)
    units: list[Unit] = []
    held: list[Slice] = []
    size = 0
    for number, source in enumerate(sources):
        for file in source.files:
            for piece, weight in _slices(number, file, target):
                if held and size + weight > target:
                    units.append(tuple(held))
                    held, size = [], 0
                held.append(piece)
                size += weight
    return [*units, tuple(held)]


def _slices(source: int, file: File, target: int) -> Iterator[tuple[Slice, int]]:
    """Slices of a file of about `target` bytes, with the bytes of each."""
    ends = [(TO_THE_END, file.size)]
    if file.kind == "parquet":
        ends = _row_groups(file, target) or ends
    elif file.kind == "hub":
        rows = int(str(file.stamp).split()[0])
        step = max(1, rows * target // max(1, file.size))
        ends = [(min(i + step, rows), target) for i in range(0, rows, step)]
    elif file.kind != "text" and file.kind != "json" and not file.path.endswith(".gz") and file.size > target:
        ends = [(end, target) for end in range(target, file.size, target)] + [(TO_THE_END, file.size % target)]
    start = 0
    for stop, weight in ends:
        yield Slice(source, file.kind, file.path, file.name, start, stop), weight
        start = stop


def _row_groups(file: File, target: int) -> list[tuple[int, int]]:
    """(last row group, bytes) of slices; none where the file cannot be read, which its reader will report."""
    try:
        with open_bytes(file.path) as stream:
            metadata = pq.read_metadata(stream)
    except (OSError, pa.ArrowException):
        return []
    ends, size = [], 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        if size >= target or group == metadata.num_row_groups - 1:
            ends.append((group + 1, size))
            size = 0
    return ends
