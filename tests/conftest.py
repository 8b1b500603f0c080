"""What all tests share: a small corpus of real text."""

import os
import sysconfig
from pathlib import Path

import pytest
import torch

from trainer.corpus import Corpus
from trainer.prepare import CorpusConfig, prepare

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty modules of the standard library."""
    folder = tmp_path_factory.mktemp("text")
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:40]
    for module in modules:
        (folder / module.name).write_text(module.read_text(encoding="utf-8")[:6000])
    return folder


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpora")


@pytest.fixture(scope="session")
def corpus(text_folder: Path, corpora: Path) -> Corpus:
    return prepare(CorpusConfig(str(text_folder), vocab=300, heldout=0.3), corpora, workers=1)
