"""Training reproduces the loss curves that are kept in tests/assets/losses."""

import json
from pathlib import Path

import pytest

from tests.trainer.golden import CURVES, KEPT, corpus_of, curve, train


@pytest.fixture(scope="module")
def golden_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus_of(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("design", CURVES)
def test_the_curve_is_the_one_that_was_kept(design: str, golden_corpus: Path, tmp_path: Path) -> None:
    kept = json.loads((KEPT / f"{design}.json").read_text())
    found = curve(train(design, golden_corpus, tmp_path))
    _, tolerance = CURVES[design]
    assert found["tokens"] == kept["tokens"]
    assert found["train"] == pytest.approx(kept["train"], rel=tolerance)
    assert len(found["heldout"]) == len(kept["heldout"]) == 2
    for ours, theirs in zip(found["heldout"], kept["heldout"], strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance)


def test_every_kept_curve_is_trained() -> None:
    assert {path.stem for path in KEPT.iterdir()} == set(CURVES)
