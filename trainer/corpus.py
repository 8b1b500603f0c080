"""A corpus: text files to a tokenizer and LitData shards, once, and the way back from shards to tokens.

Layout of a corpus folder: `manifest.json`, `tokenizer.json`, `train/` and `heldout/` (LitData shards, one item per
document, and `lengths.npy`). It is built under a temporary name and renamed when complete, so that a folder that
exists is whole. Its name carries a hash of what it was made from, so that nothing is built twice.
"""

import hashlib
import json
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from litdata import StreamingDataset, optimize
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from search_space.errors import UsageError
from search_space.layout import Specials

__all__ = ["Corpus", "CorpusConfig", "Split", "prepare"]

SPECIALS = {
    "memory_start": "<|memory_start|>",
    "memory_end": "<|memory_end|>",
    "memory": "<|memory|>",
    "reconstruct": "<|reconstruct|>",
    "mask": "<|mask|>",
}
FORMAT = 1  # part of the hash: raise it when the layout of a corpus folder changes
IN_MEMORY = 2**25  # tokens of a split, 128 MB
SMALLEST_VOCAB = 256 + len(SPECIALS)
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True)
class CorpusConfig:
    """source: `stdlib` (the sources and documentation of this Python's standard library) or a file or folder of text.
    vocab: size of the byte-level BPE, special tokens included.
    heldout: share of files kept out of training, chosen by a hash of their names.
    """

    source: str = "stdlib"
    vocab: int = 512
    heldout: float = 0.1

    def check(self) -> None:
        if self.vocab < SMALLEST_VOCAB:
            raise UsageError(f"corpus.vocab: {self.vocab} is below {SMALLEST_VOCAB} (bytes and special tokens)")
        if not 0 < self.heldout < 1:
            raise UsageError(f"corpus.heldout: {self.heldout} is not between 0 and 1")


class Split:
    """The documents of one split, read at random from LitData shards.

    LitData decodes a whole shard where reads jump between shards, 1 ms each on the demo's corpus; documents are
    therefore kept in memory, up to `IN_MEMORY` tokens of them.
    """

    def __init__(self, folder: Path) -> None:
        self.lengths: NDArray[np.int64] = np.load(folder / "lengths.npy")
        self._shards = StreamingDataset(str(folder))
        self._kept: dict[int, NDArray[np.uint32]] = {}
        self._room = IN_MEMORY

    def __getitem__(self, document: int) -> NDArray[np.uint32]:
        """The tokens of a document."""
        tokens = self._kept.get(document)
        if tokens is None:
            tokens = self._shards[document]["tokens"]
            if len(tokens) <= self._room:
                self._room -= len(tokens)
                self._kept[document] = tokens
        return tokens

    def name(self, document: int) -> str:
        return self._shards[document]["name"]


class Corpus:
    """An existing corpus folder. Raises `UsageError` where a shard is missing, truncated or altered."""

    def __init__(self, folder: Path, verify: bool = True) -> None:
        self.folder = folder
        try:
            self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        except (OSError, ValueError) as error:
            message = f"corpus: {folder} has no readable manifest.json ({error}); delete the folder to rebuild it"
            raise UsageError(message) from error
        if verify:
            self._verify()
        self.specials = Specials(**self.manifest["specials"])

    def _verify(self) -> None:
        for name, digest in self.manifest["files"].items():
            file = self.folder / name
            if not file.is_file() or _digest(file) != digest:
                what = "differs from its checksum" if file.is_file() else "is missing"
                raise UsageError(f"corpus: shard {file} {what}; delete the folder {self.folder} to rebuild it")

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    @property
    def train(self) -> Split:
        return Split(self.folder / "train")

    @property
    def heldout(self) -> Split:
        return Split(self.folder / "heldout")


def prepare(config: CorpusConfig, home: Path, workers: int = 2) -> Corpus:
    """The corpus of `config` under `home`, built if it is not there yet.

    Raises `UsageError` when the source has no readable text; nothing is left behind then.
    """
    config.check()
    files = _files(config.source)
    key = hashlib.sha256(json.dumps([FORMAT, asdict(config), _stamps(files)]).encode()).hexdigest()[:12]
    folder = home / f"{Path(config.source).name or 'corpus'}-v{config.vocab}-{key}"
    if not folder.exists():
        texts, left_out = _texts(files, config.source)
        splits = _split(texts, config.heldout)
        home.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=home))
        try:
            _build(splits, left_out, config, scratch, workers)
            os.replace(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return Corpus(folder)


def _files(source: str) -> dict[str, Path]:
    """Name of each document to its file, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib")) if source == "stdlib" else Path(source).expanduser()
    if not root.exists():
        raise UsageError(f"corpus.source: {source!r} is neither 'stdlib' nor an existing file or folder")
    if root.is_file():
        return {root.name: root}
    found = root.rglob("*.py") if source == "stdlib" else (p for p in root.rglob("*") if p.is_file())
    names = {str(p.relative_to(root)): p for p in found}
    if source == "stdlib":
        names = {n: p for n, p in names.items() if not _LEFT_OUT & set(Path(n).parts)}
    return dict(sorted(names.items()))


def _stamps(files: dict[str, Path]) -> list[Any]:
    return [sys.version_info[:2], [(n, p.stat().st_size, p.stat().st_mtime_ns) for n, p in files.items()]]


def _texts(files: dict[str, Path], source: str) -> tuple[dict[str, str], list[str]]:
    """Distinct readable texts by name, and the names left out (not UTF-8, empty, or a copy of another)."""
    texts: dict[str, str] = {}
    left_out: list[str] = []
    seen: set[str] = set()
    for name, path in files.items():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            text = ""
        if not text.strip() or "\0" in text or text in seen:
            left_out.append(name)
            continue
        seen.add(text)
        texts[name] = text
    if not texts:
        raise UsageError(f"corpus.source: {source!r} holds no readable UTF-8 text among its {len(files)} files")
    if len(files) == 1:
        ((name, text),) = texts.items()
        texts = {f"{name}#{i}": part for i, part in enumerate(_parts(text))}
    return texts, left_out


def _parts(text: str, size: int = 4000) -> Iterator[str]:
    """A single file as documents: cut at blank lines once `size` characters have come together."""
    part = ""
    for paragraph in text.split("\n\n"):
        part += paragraph + "\n\n"
        if len(part) >= size:
            yield part
            part = ""
    if part.strip():
        yield part


Documents = list[tuple[str, str]]  # name and text


def _split(texts: dict[str, str], heldout: float) -> dict[str, Documents]:
    splits: dict[str, Documents] = {"train": [], "heldout": []}
    for name, text in texts.items():
        splits["heldout" if _share(name) < heldout else "train"].append((name, text))
    for split, documents in splits.items():
        if not documents:
            raise UsageError(
                f"corpus.heldout: {heldout} of {len(texts)} documents leaves none in {split}; "
                "give more text or another share"
            )
    return splits


def _build(splits: dict[str, Documents], left_out: list[str], config: CorpusConfig, folder: Path, workers: int) -> None:
    tokenizer = _train_tokenizer([text for _, text in splits["train"]], config.vocab)
    tokenizer.save(str(folder / "tokenizer.json"))
    counts = {}
    for split, documents in splits.items():
        lengths = _write_shards(folder / split, documents, folder / "tokenizer.json", workers)
        size = sum(len(text.encode()) for _, text in documents)
        counts[split] = {"documents": len(documents), "bytes": size, "tokens": int(lengths.sum())}
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    manifest = {
        "format": FORMAT,
        "config": asdict(config),
        "specials": {field: tokenizer.token_to_id(token) for field, token in SPECIALS.items()},
        "counts": counts,
        "left_out": left_out,
        "files": {str(p.relative_to(folder)): _digest(p) for p in files},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _train_tokenizer(texts: list[str], vocab: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=list(SPECIALS.values()), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _write_shards(folder: Path, documents: Documents, tokenizer: Path, workers: int) -> NDArray[np.int64]:
    """LitData shards of `documents` and `lengths.npy` beside them, in the order of the shards."""
    optimize(
        fn=partial(_encode, str(tokenizer)),
        inputs=documents,
        output_dir=str(folder),
        chunk_bytes="16MB",
        num_workers=min(workers, len(documents)),
        start_method="fork" if sys.platform == "linux" else None,  # spawned workers import torch again: 9 s against 0.2
        keep_data_ordered=True,  # else which document lands in which shard is a race between workers
        verbose=False,
    )
    shards = StreamingDataset(str(folder))
    lengths = np.array([len(shards[i]["tokens"]) for i in range(len(shards))])
    np.save(folder / "lengths.npy", lengths)
    return lengths


def _encode(tokenizer: str, document: tuple[str, str]) -> dict[str, Any]:
    name, text = document
    ids = _load_tokenizer(tokenizer).encode(text).ids
    return {"name": name, "tokens": np.array(ids, np.uint32)}


@cache
def _load_tokenizer(path: str) -> Tokenizer:
    return Tokenizer.from_file(path)


def _share(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
