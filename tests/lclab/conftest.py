"""A plan's file, and its run that nothing happened to."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.lclab.plan_runs import STEPS, end, torchrun
from tests.trainer.staged import plan
from trainer.corpus import Corpus
from trainer.parallel import Parallel
from trainer.plan import dump


@pytest.fixture(scope="session")
def plan_file(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two FSDP ranks."""
    file = tmp_path_factory.mktemp("plan") / "plan.yaml"
    wanted = plan(corpus.folder, Parallel("fsdp", devices=2), STEPS)
    evidence = {"prediction": {"loss": 5.0, "low": 1.0, "high": 9.0}}
    file.write_text(dump(replace(wanted, tokenizer=corpus.manifest["tokenizer"], evidence=evidence)))
    return file


@pytest.fixture(scope="session")
def whole(plan_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a run by torchrun that nothing happened to."""
    home = tmp_path_factory.mktemp("whole")
    told = end(torchrun(home, plan_file))
    assert told["verdict"] == "inside" and told["low"] == 1.0
    return home
