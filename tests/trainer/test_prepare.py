import json
import multiprocessing
import os
import shutil
import signal
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

from search_space.errors import UsageError
from tests.trainer.test_tokenizer import qwen_like
from trainer import prepare as module
from trainer import sources
from trainer.corpus import Corpus
from trainer.prepare import CorpusConfig, Plan, build, prepare


def documents(corpus: Corpus, split: str) -> dict[str, str]:
    reader = getattr(corpus, split)
    return {reader.name(i): corpus.tokenizer.decode(list(reader[i])) for i in range(len(reader.lengths))}


def skipped(corpus: Corpus) -> dict[str, str]:
    lines = (corpus.folder / "skipped.jsonl").read_text().splitlines()
    return {s["place"]: s["reason"] for s in map(json.loads, lines)}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def config_of(source: Path, **settings: object) -> CorpusConfig:
    return CorpusConfig(**{"source": str(source), "vocab": 300, "heldout": 0.3} | settings)  # ty: ignore


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SMALLEST_UNIT", 20_000)


def test_every_text_comes_back_whole_from_one_split(corpus: Corpus, text_folder: Path) -> None:
    train, heldout = documents(corpus, "train"), documents(corpus, "heldout")
    assert not train.keys() & heldout.keys()
    both = train | heldout
    assert both == {p.name: p.read_text() for p in text_folder.iterdir() if p.name not in skipped(corpus)}
    for split, texts in (("train", train), ("heldout", heldout)):
        assert list(texts) == sorted(texts)
        assert corpus.manifest["counts"][split] == {
            "documents": len(texts),
            "bytes": sum(len(text.encode()) for text in texts.values()),
            "tokens": getattr(corpus, split).lengths.sum(),
        }


def test_second_call_builds_nothing(corpus: Corpus, text_folder: Path, corpora: Path) -> None:
    before = (corpus.folder / "manifest.json").stat().st_mtime_ns
    again = prepare(config_of(text_folder), corpora, workers=1)
    assert again.folder == corpus.folder
    assert (again.folder / "manifest.json").stat().st_mtime_ns == before


def test_the_number_of_workers_changes_nothing(text_folder: Path, tmp_path: Path, small_units: None) -> None:
    one, two = (prepare(config_of(text_folder), tmp_path / str(workers), workers).folder for workers in (1, 3))
    assert files(one) == files(two) and len(list(one.rglob("*.bin"))) > 10


def test_more_text_moves_no_document_between_splits(corpus: Corpus, text_folder: Path, tmp_path: Path) -> None:
    """The share of a document is of its text alone, not of its name."""
    (tmp_path / "more").mkdir()
    for i, path in enumerate(sorted(text_folder.iterdir())):
        (tmp_path / "more" / f"{99 - i}.py").write_text(path.read_text())
        (tmp_path / "more" / f"new{i}.py").write_text(f"new text {i}")
    more = prepare(config_of(tmp_path / "more"), tmp_path / "home")
    for split in ("train", "heldout"):
        assert set(documents(corpus, split).values()) <= set(documents(more, split).values())


def test_copies_binaries_and_empty_files_are_left_out_by_name(text_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(text_folder, source)
    (source / "zz-copy.py").write_text(next(iter(sorted(text_folder.iterdir()))).read_text())
    (source / "zz-binary").write_bytes(b"\x00\x01\xff\xfe")
    (source / "zz-empty").write_text(" \n")
    found = prepare(config_of(source), tmp_path / "home", workers=1)
    reasons = {"zz-copy.py": "copy of an earlier document", "zz-binary": "not UTF-8 at byte 2", "zz-empty": "empty"}
    assert reasons.items() <= skipped(found).items()
    assert sum(found.manifest["left_out"].values()) == len(skipped(found))


def test_the_first_of_copies_stays_wherever_they_are(tmp_path: Path, small_units: None) -> None:
    """Over units and sources; a place is told with the line of the whole file."""
    lines = [json.dumps({"text": f"{i} " * 1000}) for i in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:40]))
    (tmp_path / "b.jsonl").write_text("\n".join(["{", *lines[20:], lines[50]]))
    given = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    found = build(Plan.of(given, CorpusConfig(vocab=300, heldout=0.3)), tmp_path / "out", "x")
    names = [split.name(i) for split in (found.train, found.heldout) for i in range(len(split))]
    assert sorted(names) == sorted(
        [f"a.jsonl:{i + 1}" for i in range(40)] + [f"b.jsonl:{i - 20 + 2}" for i in range(40, 60)]
    )
    assert list(skipped(found)) == ["b: b.jsonl:1", *(f"b: b.jsonl:{i + 2}" for i in range(20)), "b: b.jsonl:42"]
    assert found.manifest["left_out"] == {"broken": 1, "empty": 0, "copies": 21}
    assert [s["train"]["documents"] + s["heldout"]["documents"] for s in found.manifest["sources"]] == [40, 20]


def killed_at(step: str, done: int, plan: Plan, out: Path) -> None:
    def watch(now: str, finished: int, of: int) -> None:
        if (now, finished) == (step, done) or (done < 0 and (now, finished) == (step, of)):
            os.kill(os.getpid(), signal.SIGKILL)

    build(plan, out, "x", 2, watch)


@pytest.mark.parametrize(
    ("step", "done"),
    [("reading", 0), ("reading", 3), ("tokenizer", 0), ("tokenizer", 1), ("writing", 4), ("writing", -1)],
)
def test_a_killed_preparation_goes_on_and_ends_the_same(
    text_folder: Path, tmp_path: Path, small_units: None, step: str, done: int
) -> None:
    plan, out = Plan.of([str(text_folder)], config_of(text_folder)), tmp_path / "killed"
    process = multiprocessing.get_context("fork").Process(target=killed_at, args=(step, done, plan, out))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not out.exists()
    # Orphaned workers may finish a unit until they see that their parent is gone.
    made = {p.parents[1].name: p.stat().st_ino for p in tmp_path.rglob("units/0*/train/*.bin")}
    assert (len(made) >= 4) == (step == "writing")
    begun: dict[str, int] = {}  # units that each step found done
    resumed = build(plan, out, "x", 1, lambda step, done, of: begun.setdefault(step, done) and None)
    assert begun["reading"] >= {"reading": done}.get(step, len(plan.units))
    assert ("tokenizer" in begun) == (step == "reading" or (step, done) == ("tokenizer", 0))
    inodes = {f"{int(p.name.split('-')[1]):06d}": p.stat().st_ino for p in (out / "train").glob("*.bin")}
    assert made.items() <= inodes.items()
    assert files(resumed.folder) == files(build(plan, tmp_path / "undisturbed", "x", 2).folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed", "undisturbed"]


def test_a_killed_worker_is_told_and_its_unit_done_again(text_folder: Path, tmp_path: Path, small_units: None) -> None:
    plan = Plan.of([str(text_folder)], config_of(text_folder))

    def watch(step: str, done: int, of: int) -> None:
        if (step, done) == ("writing", 1):
            for worker in multiprocessing.active_children():
                worker.kill()

    with pytest.raises(BrokenProcessPool):
        build(plan, tmp_path / "out", "x", 2, watch)
    assert files(build(plan, tmp_path / "out", "x", 2).folder) == files(build(plan, tmp_path / "one", "x", 1).folder)


def test_killed_before_it_has_its_name(text_folder: Path, tmp_path: Path) -> None:
    """All is done, the manifest too."""
    plan = Plan.of([str(text_folder)], config_of(text_folder))

    def at_the_end() -> None:
        module.shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # ty: ignore
        build(plan, tmp_path / "out", "x", 1)

    process = multiprocessing.get_context("fork").Process(target=at_the_end)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (tmp_path / "out").exists()
    assert (tmp_path / ".out.building" / "manifest.json").exists()
    steps: list[str] = []
    build(plan, tmp_path / "out", "x", 1, lambda step, *_: steps.append(step))
    assert steps == []
    assert files(tmp_path / "out") == files(build(plan, tmp_path / "undisturbed", "x", 1).folder)


def test_an_unfinished_corpus_of_something_else_is_not_mixed_in(text_folder: Path, tmp_path: Path) -> None:
    plan, other = (Plan.of([str(text_folder)], config_of(text_folder, vocab=vocab)) for vocab in (300, 301))
    process = multiprocessing.get_context("fork").Process(target=killed_at, args=("writing", 0, plan, tmp_path / "out"))
    process.start()
    process.join()
    with pytest.raises(UsageError, match="unfinished corpus of other sources or settings"):
        build(other, tmp_path / "out", "x")
    assert build(plan, tmp_path / "out", "x").vocab == 300
    with pytest.raises(UsageError, match="is a corpus of other sources or settings"):
        build(other, tmp_path / "out", "x")


def test_two_processes_make_one_corpus(text_folder: Path, tmp_path: Path, small_units: None) -> None:
    context, config = multiprocessing.get_context("fork"), config_of(text_folder)
    both = [context.Process(target=prepare, args=(config, tmp_path / "home", 1)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    (made,) = (tmp_path / "home").iterdir()
    assert files(made) == files(prepare(config, tmp_path / "alone", 2).folder)


def test_text_that_changes_under_way_is_refused(text_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(text_folder, source)
    plan = Plan.of([str(source)], config_of(source))
    changed = sorted(source.iterdir())[3]
    with pytest.raises(UsageError, match=f"{changed.name} has changed since"):
        build(plan, tmp_path / "out", "x", 1, lambda step, *_: step == "writing" and changed.write_text("new") and None)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_is_given_is_used_and_extended(text_folder: Path, tmp_path: Path) -> None:
    folder = qwen_like(tmp_path / "qwen")
    found = prepare(config_of(text_folder, tokenizer=str(folder), vocab=400), tmp_path / "home")
    assert found.vocab == 308 and found.tokenizer.token_to_id("<|mask|>") == found.specials.mask == 307
    assert documents(found, "train")  # decoded by the same tokenizer
    with pytest.raises(UsageError, match="corpus.vocab: 307 is below the 308"):
        prepare(config_of(text_folder, tokenizer=str(folder), vocab=307), tmp_path / "home")
    before = found.folder
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
    assert prepare(config_of(text_folder, tokenizer=str(folder), vocab=400), tmp_path / "home").folder != before


def test_a_corpus_may_be_the_source(corpus: Corpus, tmp_path: Path) -> None:
    found = prepare(CorpusConfig(str(corpus.folder), vocab=400), tmp_path / "home")
    assert found.folder == corpus.folder and not (tmp_path / "home").exists()
    with pytest.raises(UsageError, match=r"^corpus.vocab: 299 is below the 300"):
        prepare(CorpusConfig(str(corpus.folder), vocab=299), tmp_path / "home")


def test_a_tokenizer_learns_from_a_sample_of_much_text(
    text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare(config_of(text_folder), tmp_path / "whole")
    monkeypatch.setattr(module, "TOKENIZER_TEXT", 50_000)
    part = prepare(config_of(text_folder), tmp_path / "part")
    assert part.tokenizer.get_vocab() != whole.tokenizer.get_vocab()
    assert np.array_equal(part.train.source, whole.train.source)


@pytest.mark.parametrize(
    "case",
    [
        "absent",
        "empty folder",
        "only binaries",
        "one document",
        "vocab",
        "heldout",
        "chat vocab",
        "refused",
        "tokenizer",
    ],
)
def test_impossible_corpus_is_refused_and_nothing_is_written(tmp_path: Path, case: str) -> None:
    source, home = tmp_path / "source", tmp_path / "deep" / "home"
    config, words = config_of(source), "corpus.source: "
    if case != "absent":
        source.mkdir()
    if case == "only binaries":
        (source / "x.bin").write_bytes(b"\xff\xfe\x00")
        words = "holds no readable text in its 1 files or rows; the first: x.bin: not UTF-8 at byte 0"
    if case == "one document":
        (source / "x.txt").write_text("short")
        words = "corpus.heldout: "
    if case == "vocab":
        config, words = config_of(source, vocab=100), "corpus.vocab: 100 is below 261"
    if case == "heldout":
        config, words = config_of(source, heldout=1.0), "corpus.heldout: 1.0 is not between"
    if case == "tokenizer":
        config, words = config_of(source, tokenizer="/nowhere"), "corpus.tokenizer: /nowhere cannot be read"
    if case in ("chat vocab", "refused"):
        lines = [{"messages": [{"role": "user", "content": str(i)}]} for i in range(30)] + [{"text": 3}, 4]
        (source / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        config, words = config_of(source, vocab=262), "corpus.vocab: 262 is below 263"
    if case == "refused":
        config, words = config_of(source, on_error="refuse"), "corpus.source: x.jsonl:31: 'text' is neither"
    with pytest.raises(UsageError, match=words):
        prepare(config, home)
    assert not home.parent.exists()


@pytest.mark.parametrize("out", ["inside", "taken"])
def test_an_output_that_would_harm_is_refused(text_folder: Path, tmp_path: Path, out: str) -> None:
    source = tmp_path / "source"
    shutil.copytree(text_folder, source)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("precious")
    before = files(tmp_path)
    with pytest.raises(UsageError, match="^out: .* name another folder"):
        build(
            Plan.of([str(source)], config_of(source)), source / "corpus" if out == "inside" else tmp_path / "taken", "x"
        )
    assert files(tmp_path) == before
