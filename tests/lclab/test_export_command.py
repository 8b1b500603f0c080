"""`lclab export` of what was trained: a trial, a `lclab train` and a stage of a plan; the export scores as they did."""

import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lclab.__main__ import app, main
from search_space.compressor import Compressor
from search_space.design import Design
from search_space.errors import UsageError
from sweeps.config import dump as dump_sweep
from sweeps.home import Home
from sweeps.ledger import Ledger
from tests.sweeps.virtual import config
from tests.tiny import RECIPE, SIZE
from tests.trainer.staged import plan
from tests.trainer.test_pretrain import cut_short
from trainer import checkpoint
from trainer.corpus import Corpus
from trainer.evaluate import score
from trainer.exported import import_
from trainer.heldout import heldout_batches
from trainer.plan import dump
from trainer.pretrain import pretrain
from trainer.recipe import Recipe
from trainer.stages import run_stages
from trainer.trial import RungResult, TrialSpec

EXACT = replace(RECIPE, precision="32-true")
PUBLISHED = replace(SIZE, positions="consecutive", phase_std=0.0, embeddings="separate")


def documents(model: Compressor, corpus: Corpus, recipe: Recipe) -> dict[str, list[float]]:
    """Held-out losses of a compressor that was read from a folder."""
    return score(model, heldout_batches(corpus, recipe, model.design, model.size)).documents


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `lclab train` leaves it."""
    folder = tmp_path_factory.mktemp("train") / "name"
    folder.mkdir()
    design = Design.parse("mean-w16-causal-mlp-O0-n4")
    spec = TrialSpec(design, replace(PUBLISHED, vocab=corpus.vocab), EXACT, 0, str(corpus.folder))
    (folder / "spec.json").write_text(json.dumps(asdict(spec)))
    pretrain(spec, folder, len(EXACT.rungs))
    return folder


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["export", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.output


def test_exports_what_lclab_train_left(trained: Path, corpus: Corpus, tmp_path: Path) -> None:
    assert "step-000000012" in run(trained, tmp_path / "out") and not (tmp_path / "out/lclab.json").exists()
    result = RungResult.load_all(trained)[-1]
    assert documents(import_(tmp_path / "out"), corpus, EXACT) == result.heldout.documents
    assert (tmp_path / "out/decoder/tokenizer.json").read_bytes() == (corpus.folder / "tokenizer.json").read_bytes()


def test_exports_a_step(trained: Path, tmp_path: Path) -> None:
    older, newest = checkpoint.steps(trained)
    run(trained, tmp_path / "older", "--step", older)
    run(trained, tmp_path / "newest", "--step", newest)
    run(trained, tmp_path / "usual")
    older_, newest_, usual = (
        (tmp_path / name / "decoder/model.safetensors").read_bytes() for name in ("older", "newest", "usual")
    )
    assert older_ != newest_ == usual


def test_passes_over_a_damaged_checkpoint(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    older, newest = checkpoint.steps(tmp_path / "run")
    cut_short(checkpoint.path_of(tmp_path / "run", newest))
    said = run(tmp_path / "run", tmp_path / "out")
    assert checkpoint.path_of(tmp_path, older).name in said and "Passed over" in said


def test_exports_a_stage_of_a_plan(corpus: Corpus, tmp_path: Path) -> None:
    """Every stage; what the last one has learnt is what its export scores."""
    wanted = plan(corpus.folder)
    wanted = replace(wanted, stages=wanted.stages[:2], tokenizer=corpus.manifest["tokenizer"])
    home = tmp_path / "plans/staged"
    home.mkdir(parents=True)
    (home / "plan.yaml").write_text(dump(wanted))
    results = run_stages(wanted, home)
    for stage, result, folder in zip(wanted.stages, results, sorted((home / "stages").iterdir()), strict=True):
        run(folder, tmp_path / stage.name)
        model = import_(tmp_path / stage.name)
        assert documents(model, corpus, wanted.recipe(stage)) == result.heldout.documents


def test_exports_a_trial_of_a_sweep(corpus: Corpus, text_folder: Path, tmp_path: Path) -> None:
    """Whose small-model aids published loaders do not have."""
    settings = config(f"corpus.source={text_folder}", "recipe.precision=32-true")
    home = Home(tmp_path)
    sweep = home.sweep(settings.name)
    sweep.path.mkdir()
    sweep.config.write_text(dump_sweep(settings))
    sweep.corpus.write_text(str(corpus.folder))
    trial = Ledger(settings, home.study_url).next()
    assert trial is not None
    spec = TrialSpec(trial.design, settings.model_size(), settings.recipe, trial.seed, str(corpus.folder))
    result = pretrain(spec, sweep.trial(trial.number), 1)
    refused = CliRunner().invoke(app, ["export", str(sweep.trial(trial.number)), str(tmp_path / "out")])
    assert "positions spread" in str(refused.exception) and not (tmp_path / "out").exists()
    run(sweep.trial(trial.number), tmp_path / "out", "--ours")
    model = import_(tmp_path / "out")
    assert (model.design, model.size) == (trial.design, spec.size)
    assert documents(model, corpus, settings.recipe) == result.heldout.documents


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        ("", ["{home}", "{out}"], ["FOLDER", "SWEEP/trials/0007", "train/NAME"]),
        ("", ["{run}/nowhere", "{out}"], ["FOLDER", "nowhere"]),
        ("", ["{run}", "{home}"], ["OUT", "exists"]),
        ("", ["{run}", "{out}", "--step", "3"], ["--step", "3", "12"]),
        ("rm step-*", ["{run}", "{out}"], ["FOLDER", "no checkpoint"]),
        ("cut step-*", ["{run}", "{out}"], ["FOLDER", "no checkpoint can be read"]),
        ("cut step-000000012*", ["{run}", "{out}", "--step", "12"], ["no checkpoint can be read", "000012"]),
        ("spec {}", ["{run}", "{out}"], ["spec.json", "design"]),
        ("spec [", ["{run}", "{out}"], ["spec.json", "cannot be read"]),
        ("spec wide", ["{run}", "{out}"], ["checkpoint", "embed_tokens", "at this size"]),
        ("spec corpus", ["{run}", "{out}"], ["tokenizer", "/nowhere/at/all"]),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    change: str,
    arguments: list[str],
    words: list[str],
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_ = tmp_path / "home/run"
    shutil.copytree(trained, run_)
    kind, _, what = change.partition(" ")
    if kind == "spec":
        spec = json.loads((run_ / "spec.json").read_text())
        spec["size"]["decoder"]["width"] *= 2 if what == "wide" else 1
        spec["corpus"] = "/nowhere/at/all" if what == "corpus" else spec["corpus"]
        (run_ / "spec.json").write_text(what if what in ("{}", "[") else json.dumps(spec))
    for path in run_.glob(what) if kind in ("rm", "cut") else ():
        shutil.rmtree(path) if kind == "rm" else cut_short(path)
    places = {"run": run_, "home": tmp_path / "home", "out": tmp_path / "out"}
    monkeypatch.setattr(sys, "argv", ["lclab", "export", *(a.format(**places) for a in arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("lclab: ") and said.count("\n") == 1
    assert all(word in said for word in words), said
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_refuses_the_tokenizer_of_another_corpus(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = tmp_path / "stages/0-adapter"
    stage.mkdir(parents=True)
    (tmp_path / "plan.yaml").write_text(dump(replace(plan(corpus.folder), tokenizer="0" * 64)))
    done = CliRunner().invoke(app, ["export", str(stage), str(tmp_path / "out")])
    assert "is not the one that" in str(done.exception)


def test_evaluates_what_it_exported(trained: Path, corpus: Corpus, tmp_path: Path) -> None:
    run(trained, tmp_path / "out")
    settings = ["--documents", str(EXACT.documents), "--length", str(EXACT.piece), "--spans"]
    command = ["evaluate", str(tmp_path / "out"), "--data", str(corpus.folder), *settings]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    found, kept = json.loads(done.stdout.splitlines()[-1]), RungResult.load_all(trained)[-1].heldout
    for task, losses in kept.documents.items():
        assert found["documents"][task] == pytest.approx(losses, rel=1e-5)  # in other batches
    assert "reconstruct" in CliRunner().invoke(app, command).output
    tokenizer = tmp_path / "out/decoder/tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    with pytest.raises(UsageError, match=r"^--data: .* is not of the tokenizer of"):
        CliRunner().invoke(app, command, catch_exceptions=False)
