"""Corpora of several sources and of chats, and a tokenizer."""

import json
from pathlib import Path

import pytest

from trainer import tokenizer
from trainer.corpus import Corpus
from trainer.prepare import CorpusConfig, Plan, build

CONFIG = CorpusConfig(vocab=300, heldout=0.3)
TEXTS = ["def export(model):\n    return model\n", "the quick brown fox jumps over the lazy dog 0123456789 " * 9]


@pytest.fixture(scope="session")
def two_sources(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """`a` is text, `b` has chats: a question about a module, the module, and an answer."""
    home = tmp_path_factory.mktemp("two")
    texts = [p.read_text() for p in sorted(text_folder.iterdir())]
    (home / "a").mkdir()
    for i, text in enumerate(texts[:25]):
        (home / "a" / f"{i}.py").write_text(text)
    with (home / "chats.jsonl").open("w") as stream:
        for text in texts[25:]:
            turns = [("system", "You read code."), ("user", text[:1500]), ("assistant", text[1500:2500])]
            stream.write(json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}) + "\n")
    return build(Plan.of([f"a={home / 'a'}", f"b={home / 'chats.jsonl'}"], CONFIG), home / "corpus", "two", workers=1)


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json with chat tokens."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.train(TEXTS, 300, chat=True).save(str(path))
    return path
