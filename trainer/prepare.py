"""Sources to a corpus: read, de-duplicate, split, train or load a tokenizer, write shards, with several processes.

The order of work, each step resumable after a kill:
1. Every unit of work is read once: hashes of its documents and what is wrong with its rows.
2. Of exact copies the first in the order of the sources stays. A document is held out where its hash, as a number in
   [0, 1), is below `heldout`: who adds sources later moves no document from one split to the other.
3. The tokenizer, trained on the training split where none is given.
4. Every unit is read again and written as shards.
5. Shards move to their place, and the corpus to its name: a corpus folder that exists is whole.

Nothing here depends on the number of workers. In memory are hashes and sizes of rows, never the text of a corpus.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from tokenizers import Tokenizer

from search_space.errors import UsageError
from search_space.files import whole, write_json, write_text
from trainer.assemble import assemble
from trainer.corpus import FORMAT, Corpus, digest_of, is_corpus
from trainer.rows import Rows
from trainer.sources import Source, Unit, find, units_of
from trainer.tokenizer import SMALLEST_VOCAB, load, specials_of, texts_of, train, vocab_of, with_specials
from trainer.units import Look, begin_worker, documents, encode_unit, look_at

__all__ = ["CorpusConfig", "Plan", "Watch", "build", "prepare"]

TOKENIZER_TEXT = 2**30  # bytes of text that a tokenizer is trained on at most, documents chosen by hash

Watch = Callable[[str, int, int], object]
"""Told of the step that is being worked on, how many units of it are done, and of how many."""


@dataclass(frozen=True)
class CorpusConfig:
    """source: `stdlib` (the sources and documentation of this Python's standard library), a file or folder of text,
    JSON lines or Parquet, `s3://...`, `hf:owner/name`, or the folder of a corpus that `lclab data prepare` made.
    vocab: size of the byte-level BPE, special tokens included; with `tokenizer`, rows of the embeddings at least.
    heldout: share of the documents kept out of training, chosen by a hash of their text.
    tokenizer: a tokenizer.json or the folder of one; empty trains one.
    text_field: of a record; empty takes `messages`, `conversations` or `text`.
    on_error: what cannot be read is reported and left out, or nothing is built.
    """

    source: str = "stdlib"
    vocab: int = 512
    heldout: float = 0.1
    tokenizer: str = ""
    text_field: str = ""
    on_error: Literal["skip", "refuse"] = "skip"

    def check(self) -> None:
        if self.vocab < SMALLEST_VOCAB:
            raise UsageError(f"corpus.vocab: {self.vocab} is below {SMALLEST_VOCAB} (bytes and special tokens)")
        if not 0 < self.heldout < 1:
            raise UsageError(f"corpus.heldout: {self.heldout} is not between 0 and 1")
        if self.on_error not in ("skip", "refuse"):
            raise UsageError(f"corpus.on_error: {self.on_error!r} is not one of skip, refuse")


def prepare(config: CorpusConfig, home: Path, workers: int = 2) -> Corpus:
    """The corpus of `config` under `home`, built if it is not there yet, or the one that `config.source` is.

    Raises `UsageError` when the source has no readable text; nothing is left behind then.
    """
    config.check()
    if is_corpus(given := Path(config.source).expanduser()):
        corpus = Corpus(given)
    else:
        plan = Plan.of([config.source], config)
        name = f"{plan.sources[0].name}-v{plan.config.vocab}"
        corpus = build(plan, home / f"{name}-{plan.key}", name, workers)
    if corpus.vocab > config.vocab:
        raise UsageError(
            f"corpus.vocab: {config.vocab} is below the {corpus.vocab} that the tokenizer of {config.source!r} needs"
        )
    return corpus


@dataclass(frozen=True)
class Plan:
    """What a corpus is made from. The key changes when anything does that the corpus depends on.

    tokenizer: the one given, and the hash of its file. config: `vocab` is the given tokenizer's.
    """

    config: CorpusConfig
    sources: list[Source]
    units: list[Unit]
    tokenizer: tuple[Tokenizer, str] | None

    @classmethod
    def of(cls, given: Sequence[str], config: CorpusConfig) -> "Plan":
        """Raises `UsageError` for sources or a tokenizer that cannot be read."""
        config.check()
        tokenizer = load(config.tokenizer) if config.tokenizer else None
        sources = find(given)
        if tokenizer:
            config = replace(config, vocab=vocab_of(with_specials(tokenizer[0], chat=False)))
        return cls(replace(config, source=", ".join(given)), sources, units_of(sources), tokenizer)

    @cached_property
    def key(self) -> str:
        settings = asdict(self.config) | {"source": "", "tokenizer": self.tokenizer[1] if self.tokenizer else ""}
        parts = [FORMAT, settings, [s.stamps() for s in self.sources]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def build(plan: Plan, folder: Path, name: str, workers: int = 2, watch: Watch = lambda step, done, of: None) -> Corpus:
    """The corpus of `plan` at `folder`, called `name`. One that is there and was made from the same is used; one that
    was begun is finished; one that another process is building is waited for.

    Raises `UsageError` where `folder` is something else or the sources give no corpus; nothing is left behind then.
    """
    _refuse_other(plan, folder)
    scratch = folder.with_name(f".{folder.name}.building")
    lock = scratch.with_suffix(".lock")
    with _made(folder.parent, lock), FileLock(lock):
        if not is_corpus(folder):
            _Build(plan, scratch, name, workers, watch).run()
            os.replace(scratch, folder)
        lock.unlink(missing_ok=True)  # whoever waits for it finds the corpus
    return Corpus(folder)


def _refuse_other(plan: Plan, folder: Path) -> None:
    if is_corpus(folder):
        if Corpus(folder, verify=False).manifest["key"] != plan.key:
            raise UsageError(
                f"out: {folder} is a corpus of other sources or settings; delete it or name another folder"
            )
    elif folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"out: {folder} exists and is not a corpus; name another folder")
    for source in plan.sources:
        if Path(source.given).expanduser().resolve() in folder.resolve().parents:
            raise UsageError(f"out: {folder} is inside of the source {source.given!r}; name another folder")


@contextmanager
def _made(parent: Path, lock: Path) -> Generator[None]:
    """`parent` exists; where what is done there is refused, what was made for it goes again."""
    missing = [p for p in (parent, *parent.parents) if not p.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except UsageError:
        lock.unlink(missing_ok=True)
        for made in missing:
            if any(made.iterdir()):
                break
            made.rmdir()
        raise


class _Build:
    """The steps, on a folder of their own."""

    def __init__(self, plan: Plan, scratch: Path, name: str, workers: int, watch: Watch) -> None:
        self.plan, self.scratch, self.name, self.workers, self.watch = plan, scratch, name, workers, watch
        self.work = scratch / ".work"
        self.looks, self.units = (
            [self.work / kind / f"{k:06d}" for k in range(len(plan.units))] for kind in ("looks", "units")
        )

    def run(self) -> None:
        if not self._whole():
            self._begin()
            try:
                rows = self._look()
            except UsageError:  # what follows refuses no input
                shutil.rmtree(self.scratch)
                raise
            tokenizer = self._tokenizer(rows)
            self._encode(rows)
            self._finish(rows, tokenizer)
        shutil.rmtree(self.work, ignore_errors=True)

    def _whole(self) -> bool:
        """Whether all is done but the name."""
        return is_corpus(self.scratch) and Corpus(self.scratch, verify=False).manifest["key"] == self.plan.key

    def _begin(self) -> None:
        key = self.work / "key"
        if key.exists() and key.read_text() != self.plan.key:
            raise UsageError(
                f"out: {self.scratch} holds an unfinished corpus of other sources or settings; "
                "go on with those, or delete it"
            )
        for kind in ("looks", "units"):
            (self.work / kind).mkdir(parents=True, exist_ok=True)
        for left in self.scratch.glob(".*.part"):  # by a process that was killed
            left.unlink()
        write_text(key, self.plan.key)

    def _look(self) -> Rows:
        """Steps 1 and 2. Refuses the first broken row in the order of the sources if that is wanted."""
        config = self.plan.config

        def submit(pool: ProcessPoolExecutor, k: int) -> "Future[int]":
            return pool.submit(look_at, self.plan.units[k], config.text_field, self.looks[k])

        self._each("reading", self.looks, submit)
        looks = [Look.load(file) for file in self.looks]
        rows = Rows(self.plan.sources, self.plan.units, looks, config.heldout)
        if config.on_error == "refuse":
            for place, reason, broken in rows.problems():
                if broken:
                    raise UsageError(f"corpus.source: {place}: {reason}")
        rows.check()
        least = SMALLEST_VOCAB + 2
        if rows.chat and config.vocab < least:
            raise UsageError(
                f"corpus.vocab: {config.vocab} is below {least} (bytes and special tokens, those of chats too)"
            )
        return rows

    def _each(
        self, step: str, results: list[Path], submit: "Callable[[ProcessPoolExecutor, int], Future[Any]]"
    ) -> None:
        """Have every result made that does not exist."""
        left = [k for k, file in enumerate(results) if not file.exists()]
        self.watch(step, len(results) - len(left), len(results))
        # Spawned workers would import torch again: 9 s against 0.2.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        with ProcessPoolExecutor(max(1, min(self.workers, len(left))), context, begin_worker) as pool:
            futures = [submit(pool, k) for k in left]
            try:
                for done, future in enumerate(as_completed(futures), len(results) - len(left) + 1):
                    future.result()
                    self.watch(step, done, len(results))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _tokenizer(self, rows: Rows) -> Tokenizer:
        """Step 3."""
        file = self.scratch / "tokenizer.json"
        if not file.exists():
            self.watch("tokenizer", 0, 1)
            if self.plan.tokenizer:
                tokenizer = with_specials(self.plan.tokenizer[0], rows.chat)
            else:
                tokenizer = train(self._training_texts(rows), self.plan.config.vocab, rows.chat)
            with whole(file) as scratch:
                tokenizer.save(str(scratch))
            self.watch("tokenizer", 1, 1)
        return Tokenizer.from_file(str(file))

    def _training_texts(self, rows: Rows) -> Iterator[str]:
        for unit, first, wanted in zip(self.plan.units, rows.first, rows.chosen(TOKENIZER_TEXT), strict=True):
            if wanted.any():
                for want, (*_, document) in zip(
                    wanted, documents(unit, self.plan.config.text_field, first), strict=False
                ):
                    if want and document is not None:
                        yield from texts_of(document)

    def _encode(self, rows: Rows) -> None:
        """Step 4."""

        def submit(pool: ProcessPoolExecutor, k: int) -> "Future[int]":
            known = (rows.first[k], rows.fates[k], rows.looks[k].digest)
            unit, field = self.plan.units[k], self.plan.config.text_field
            return pool.submit(encode_unit, unit, field, *known, self.scratch / "tokenizer.json", self.units[k])

        self._each("writing", self.units, submit)

    def _finish(self, rows: Rows, tokenizer: Tokenizer) -> None:
        """Step 5."""
        found = assemble(self.scratch, self.units, self.plan.sources)
        left_out = rows.write_skipped(self.scratch / "skipped.jsonl")
        files = found["files"] | {name: digest_of(self.scratch / name) for name in ("tokenizer.json", "skipped.jsonl")}
        manifest = {
            "format": FORMAT,
            "name": self.name,
            "key": self.plan.key,
            "hash": hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest(),
            "config": asdict(self.plan.config),
            "sources": found["sources"],
            "counts": found["counts"],
            "left_out": left_out,
            "tokenizer": files["tokenizer.json"],
            "vocab": vocab_of(tokenizer),
            "specials": asdict(specials_of(tokenizer)),
            "files": dict(sorted(files.items())),
        }
        write_json(self.scratch / "manifest.json", manifest, indent=1)
