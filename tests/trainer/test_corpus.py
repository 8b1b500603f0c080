import json
import shutil
from pathlib import Path

import pytest

from search_space.errors import UsageError
from trainer.corpus import Corpus, CorpusConfig, prepare


def documents(corpus: Corpus, split: str) -> dict[str, str]:
    reader = getattr(corpus, split)
    return {reader.name(i): corpus.tokenizer.decode(list(reader[i])) for i in range(len(reader.lengths))}


def test_every_text_comes_back_whole_from_one_split(corpus: Corpus, text_folder: Path) -> None:
    train, heldout = documents(corpus, "train"), documents(corpus, "heldout")
    assert not train.keys() & heldout.keys()
    both = train | heldout
    assert both == {p.name: p.read_text() for p in text_folder.iterdir() if p.name not in corpus.manifest["left_out"]}
    for split, texts in (("train", train), ("heldout", heldout)):
        counts = corpus.manifest["counts"][split]
        assert counts["documents"] == len(texts)
        assert counts["tokens"] == sum(getattr(corpus, split).lengths)


def test_second_call_builds_nothing(corpus: Corpus, text_folder: Path, corpora: Path) -> None:
    before = (corpus.folder / "manifest.json").stat().st_mtime_ns
    again = prepare(CorpusConfig(str(text_folder), vocab=300, heldout=0.3), corpora, workers=1)
    assert again.folder == corpus.folder
    assert (again.folder / "manifest.json").stat().st_mtime_ns == before


def test_building_twice_gives_the_same_shards(text_folder: Path, tmp_path: Path) -> None:
    config = CorpusConfig(str(text_folder), vocab=300, heldout=0.3)
    one, two = (prepare(config, tmp_path / home, workers=2) for home in ("one", "two"))
    shards = [{k: v for k, v in c.manifest["files"].items() if not k.endswith("index.json")} for c in (one, two)]
    assert shards[0] == shards[1]


def test_copies_binaries_and_empty_files_are_left_out_by_name(text_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(text_folder, source)
    (source / "zz-copy.py").write_text(next(iter(sorted(text_folder.iterdir()))).read_text())
    (source / "zz-binary").write_bytes(b"\x00\x01\xff\xfe")
    (source / "zz-empty").write_text(" \n")
    corpus = prepare(CorpusConfig(str(source), vocab=300, heldout=0.3), tmp_path / "home", workers=1)
    assert {"zz-copy.py", "zz-binary", "zz-empty"} <= set(corpus.manifest["left_out"])


def test_one_file_is_cut_into_documents(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("\n\n".join(f"Paragraph {i} says {'so ' * 90}." for i in range(200)))
    corpus = prepare(CorpusConfig(str(book), vocab=300, heldout=0.3), tmp_path / "home", workers=1)
    assert corpus.manifest["counts"]["train"]["documents"] > 3


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damaged_shard_is_named(corpus: Corpus, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(corpus.folder, folder)
    shard = folder / "train" / "chunk-0-0.bin"
    data = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(data[:-7])
    else:
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    with pytest.raises(UsageError, match="chunk-0-0.bin"):
        Corpus(folder)


def test_unreadable_manifest_is_named(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(corpus.manifest)[:-20])
    with pytest.raises(UsageError, match=r"manifest\.json"):
        Corpus(tmp_path)


@pytest.mark.parametrize("case", ["absent", "empty folder", "only binaries", "one document", "vocab", "heldout"])
def test_impossible_corpus_is_refused_and_nothing_is_written(tmp_path: Path, case: str) -> None:
    source, home = tmp_path / "source", tmp_path / "home"
    config = CorpusConfig(str(source), vocab=300)
    if case != "absent":
        source.mkdir()
    if case == "only binaries":
        (source / "x.bin").write_bytes(b"\xff\xfe\x00")
    if case == "one document":
        (source / "x.txt").write_text("short")
    if case == "vocab":
        config = CorpusConfig(str(source), vocab=100)
    if case == "heldout":
        config = CorpusConfig(str(source), vocab=300, heldout=1.0)
    with pytest.raises(UsageError, match=r"^corpus\."):
        prepare(config, home)
    assert not home.exists()
