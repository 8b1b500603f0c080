import shutil
from pathlib import Path

import pytest

from lclab.reporting import make_report
from search_space.design import Design
from search_space.errors import UsageError
from sweeps.home import Home
from sweeps.ledger import Assignment
from sweeps.run import _corpus, _job, _known_as, run_sweep
from tests.sweeps.virtual import config
from trainer.corpus import Corpus


def test_a_sweep_stays_on_the_text_it_was_begun_on(text_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(text_folder, source)
    settings, home = config(f"corpus.source={source}"), Home(tmp_path / "home")
    folder = home.sweep("mini")
    begun = _corpus(settings, home, folder)
    folder.path.mkdir(parents=True)
    folder.corpus.write_text(begun.folder.name)
    (source / "later.txt").write_text("a text that came later " * 50)
    assert _corpus(settings, home, folder).folder == begun.folder
    shutil.rmtree(begun.folder)
    with pytest.raises(UsageError, match="begun on .* changed since"):
        _corpus(settings, home, folder)
    (source / "later.txt").unlink()
    assert _corpus(settings, home, folder).folder == begun.folder


def test_a_sweep_goes_on_with_a_corpus_from_elsewhere(corpus: Corpus, tmp_path: Path) -> None:
    settings, home = config(f"corpus.source={corpus.folder}"), Home(tmp_path / "home")
    folder = home.sweep("mini")
    begun = _corpus(settings, home, folder)
    folder.path.mkdir(parents=True)
    folder.corpus.write_text(_known_as(begun, home))
    assert _corpus(settings, home, folder).folder == begun.folder == corpus.folder
    assert not home.corpora.exists()


def test_a_model_larger_than_the_machine_is_refused(text_folder: Path, tmp_path: Path) -> None:
    """In one line, before anything is written."""
    settings = config(f"corpus.source={text_folder}", "size.decoder.feedforward=1000000000")
    with pytest.raises(UsageError, match=r"^size: a step of mean-\S+ needs \d+\.\d GB and a worker has") as error:
        run_sweep(settings, Home(tmp_path / "home"), make_report)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "home").exists()


def test_a_trial_at_another_rate_is_trained_at_it(corpus: Corpus, tmp_path: Path) -> None:
    settings, folder = config(), Home(tmp_path).sweep("mini")
    design = Design.parse(settings.baseline)
    own, half = (_job(settings, corpus, folder, Assignment(0, design, 0, "rate", 1, rate)) for rate in (1.0, 0.5))
    assert own.spec.recipe == settings.recipe
    assert half.spec.recipe.optim.muon_rate == 0.5 * settings.recipe.optim.muon_rate
    assert half.spec.recipe.optim.adamw_rate == 0.5 * settings.recipe.optim.adamw_rate
