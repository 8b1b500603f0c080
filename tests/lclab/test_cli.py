"""What a person types, and what they are told when it cannot be."""

import json
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from lclab.__main__ import app, main
from tests.sweeps.virtual import MINI

COMMANDS = {
    "demo": {"--home", "--help"},
    "data prepare": {
        *("--out", "--vocab", "--tokenizer", "--heldout", "--workers"),
        *("--text-field", "--on-error", "--name", "--json", "--help"),
    },
    "space": {"--json", "--help"},
    "train": {"--seed", "--ray", "--home", "--json", "--help"},
    "sweep run": {"--address", "--home", "--json", "--help"},
    "sweep submit": {
        *("--kind", "--dry-run", "--address", "--image", "--workers"),
        *("--memory", "--claim", "--secret", "--home", "--help"),
    },
    "sweep ladder": {"--top", "--design", "--seeds", "--sizes", "--workers", "--home", "--name", "--json", "--help"},
    "sweep status": {"--home", "--json", "--help"},
    "sweep stop": {"--home", "--help"},
    "report": {"--home", "--json", "--help"},
    "promote": {
        *("--design", "--as", "--encoder", "--decoder", "--encoder-weights", "--decoder-weights", "--data", "--tokens"),
        *("--batch", "--length", "--name", "--nodes", "--gpus", "--kind", "--mfu", "--measured", "--price", "--force"),
        *("--dry-run", "--home", "--json", "--help"),
    },
    "launch": {
        *("--kind", "--nodes", "--gpus", "--gpu", "--home", "--address", "--image", "--memory", "--claim", "--secret"),
        *("--time", "--partition", "--account", "--setup", "--help"),
    },
    "evaluate": {"--data", "--documents", "--length", "--spans", "--json", "--help"},
    "export": {"--ours", "--step", "--help"},
    "ui": {"--home", "--port", "--help"},
    "bench model": {"--documents", "--layers", "--width", "--pool-width", "--rounds", "--json", "--help"},
    "bench train": {"--design", "--steps", "--rounds", "--home", "--json", "--help"},
    "bench rates": {"--design", "--size", "--home", "--json", "--help"},
    "bench sweep": {
        *("--seeds", "--trials", "--table", "--record", "--engine", "--real", "--home"),
        *("--json", "--help"),
    },
}


def test_the_command_line_is_what_the_guide_says() -> None:
    """Frozen: a change here is a change for everybody who has typed it."""
    root = get_command(app)
    found: dict[str, set[str]] = {}

    def walk(command: object, name: str) -> None:
        children = getattr(command, "commands", None)
        if children is not None:
            for child, sub in children.items():
                walk(sub, f"{name} {child}".strip())
            return
        with_help = command.get_params(command.make_context(name, [], resilient_parsing=True))  # ty: ignore
        found[name] = {o for p in with_help for o in p.opts if o.startswith("--")}

    walk(root, "")
    assert found == COMMANDS


def call(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["lclab", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sweep", "run", "nothere"], ["preset", "nothere", "demo"]),
        (["sweep", "run", str(MINI), "space.windw=[4]"], ["space.windw", "Did you mean"]),
        (["sweep", "run", str(MINI), "space.window=[4,18]"], ["window", "18", "16 or 20"]),
        (["sweep", "run", str(MINI), "recipe.decay=2"], ["recipe.decay", "between 0 and 1"]),
        (["sweep", "run", str(MINI), "corpus.source=/nowhere/at/all"], ["corpus.source", "/nowhere/at/all", "stdlib"]),
        (["sweep", "run", str(MINI), "corpus.source={empty}"], ["corpus.source", "no readable"]),
        (["sweep", "status", "nothere"], ["sweep", "nothere", "none yet"]),
        (["sweep", "stop", "nothere"], ["sweep", "nothere"]),
        (["report", "nothere"], ["sweep", "nothere"]),
        (["ui"], ["home", "no sweep", "lclab demo"]),
        (["train", "mean-w5-causal-mlp-O0-n4", str(MINI)], ["window", "5"]),
        (["train", "mean-w16-causal-mlp-O0-n4-dec_d64", str(MINI)], ["embeddings", "separate"]),
        (["train", "mean-w16-causal-mlp-O0-n4", str(MINI), "parallel.devices=2"], ["parallel.strategy", "ddp or fsdp"]),
        (["train", "mean-w16-causal-mlp-O0-n4", str(MINI), "--ray"], ["parallel.strategy", "ddp or fsdp"]),
        (["sweep", "run", str(MINI), "gpus=1.5"], ["gpus", "whole number"]),
        (["sweep", "run", str(MINI), "rates=[0.5,1]"], ["rates", "not 1"]),
        (["sweep", "run", str(MINI), "gpus=0.5", "parallel.strategy=ddp"], ["gpus", "one process"]),
        (["sweep", "run", str(MINI), "study_url=postgresql://me:secret@127.0.0.1:1/x"], ["study_url", "me:***@127"]),
        (["sweep", "run", str(MINI), "study_url=nosuch://x"], ["study_url", "nosuch"]),
        (["sweep", "submit", str(MINI), "--kind", "kuberay"], ["kind", "--dry-run", "kubectl"]),
        (["sweep", "run", str(MINI), "recipe.format=published"], ["metric", "choose continue"]),
        (["demo", "trials=0"], ["trials", "at least 1"]),
        (["bench", "train", str(MINI), "--steps", "0"], ["steps", "at least 1"]),
        (["bench", "train", str(MINI), "--design", "mean-w5-causal-mlp-O0-n4"], ["window", "5"]),
        (["bench", "rates", str(MINI), "--size", "64"], ["size", "64", "128x2"]),
        (["bench", "sweep", "--seeds", "0"], ["seeds", "at least 1"]),
        (["bench", "sweep", "--table", "nothere"], ["table", "nothere", "--record"]),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    home = tmp_path / "home"
    filled = [a.format(empty=empty) for a in arguments]
    assert call(*filled, "--home", str(home), monkeypatch=monkeypatch) == 2
    said = capsys.readouterr()
    assert said.err.startswith("lclab: ") and said.err.count("\n") == 1
    for word in words:
        assert word in said.err
    assert not home.exists()


def test_space_lists_axes_and_costs(capsys: pytest.CaptureFixture[str]) -> None:
    done = CliRunner().invoke(app, ["space", str(MINI), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["axes"]["pooling"] == ["mean", "concat"]
    names = [row["design"] for row in found["designs"]]
    assert len(names) == len(set(names)) and found["baseline"] in names
    assert all(row["parameters"] > 0 and row["prefill_flops"] > 0 for row in found["designs"])
    table = CliRunner().invoke(app, ["space", str(MINI)])
    assert "where the window is wider than the ratio" in table.output and "(baseline)" in table.output
