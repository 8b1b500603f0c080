"""`lclab data prepare`: text, code, JSON lines, Parquet or chats to a corpus that sweeps and plans train on."""

import json
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from lclab.commands.options import AsJson
from lclab.console import make_console
from search_space.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Generator

    from trainer.corpus import Corpus
    from trainer.prepare import Watch

__all__ = ["app", "prepare"]

SHOWN = 10  # of what was left out
VOCAB = 32_768

app = typer.Typer(no_args_is_help=True, help="Corpora: from text to tokenizer and shards.")


@app.callback()
def data() -> None:
    """Corpora: from text to tokenizer and shards."""


@app.command("prepare")
def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]SRC...",
            help="A folder of text or code, a text file, .jsonl, .jsonl.gz, .json or .parquet (text or chats), "
            "s3://bucket/prefix, hf:owner/name[:split], or stdlib. NAME is what a mixture calls it.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    vocab: Annotated[int | None, typer.Option(help=f"Size of the tokenizer to train.  [default: {VOCAB}]")] = None,
    tokenizer: Annotated[str, typer.Option(help="A tokenizer.json, or the folder of one such as Qwen3's.")] = "",
    heldout: Annotated[float, typer.Option(help="Share of documents kept out of training, by hash.")] = 0.1,
    workers: Annotated[int, typer.Option(help="Processes.", show_default="all cores")] = 0,
    text_field: Annotated[str, typer.Option(help="Of a record; else messages, conversations or text.")] = "",
    on_error: Annotated[str, typer.Option(help="skip reports and leaves out what is broken, refuse stops.")] = "skip",
    name: Annotated[str, typer.Option(help="Of the corpus, in logs.", show_default="the folder's")] = "",
    as_json: AsJson = False,
) -> None:
    """Make a corpus of sources. The same command continues one that was interrupted."""
    from trainer.prepare import CorpusConfig, Plan, build

    if vocab is not None and tokenizer:
        raise UsageError("vocab: a tokenizer that is given has its own; leave out --vocab or --tokenizer")
    if workers < 0:
        raise UsageError(f"workers: {workers} is not at least 1")
    console = make_console(stderr=as_json)
    settings: dict[str, Any] = {"heldout": heldout, "tokenizer": tokenizer, "text_field": text_field}
    config = CorpusConfig(vocab=VOCAB if vocab is None else vocab, on_error=on_error, **settings)  # ty: ignore
    try:
        with _progress(console) as watch:
            watch("finding", 0, 1)
            corpus = build(Plan.of(sources, config), out, name or out.name, workers or _cores(), watch)
    except UsageError as error:
        raise UsageError(str(error).removeprefix("corpus.")) from error
    except BrokenProcessPool:
        console.print(
            "A worker was killed, perhaps for want of memory; the same command continues, with fewer --workers."
        )
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("Interrupted; the same command continues where this one stopped.")
        raise typer.Exit(130) from None
    _show(console, corpus, as_json)


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _progress(console: Console) -> "Generator[Watch]":
    columns = (TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks: dict[str, Any] = {}

        def watch(step: str, done: int, of: int) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(step, total=of)
            progress.update(tasks[step], completed=done)

        yield watch


def _show(console: Console, corpus: "Corpus", as_json: bool) -> None:
    manifest = corpus.manifest
    if as_json:
        told = ("name", "hash", "sources", "counts", "left_out", "vocab", "tokenizer")
        print(json.dumps({"folder": str(corpus.folder)} | {key: manifest[key] for key in told}))
        return
    table = Table("source", "files")
    for header in ("documents", "tokens", "held-out documents", "held-out tokens"):
        table.add_column(header, justify="right")
    for s in manifest["sources"]:
        counts = [s[split][what] for split in ("train", "heldout") for what in ("documents", "tokens")]
        table.add_row(s["name"], f"{s['files']:,}", *(f"{count:,}" for count in counts))
    console.print(table)
    left_out = manifest["left_out"]
    console.print("Left out: " + ", ".join(f"{count:,} {kind}" for kind, count in left_out.items()))
    with (corpus.folder / "skipped.jsonl").open() as lines:
        broken = [s for s in map(json.loads, lines) if s["broken"]][:SHOWN]
    for s in broken:
        console.print(f"  {s['place']}: {s['reason']}", markup=False, highlight=False)
    if sum(left_out.values()) > len(broken):
        console.print(f"  all in {corpus.folder / 'skipped.jsonl'}")
    console.print(f"Corpus of {manifest['vocab']:,} tokens in the vocabulary: {corpus.folder}")
