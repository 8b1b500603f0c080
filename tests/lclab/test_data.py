"""`lclab data prepare` as a person uses it: kinds of sources, what is said at the end, bad input, a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lclab.__main__ import app, main
from trainer.corpus import Corpus

LINES = [json.dumps({"text": f"line {i} " * 30}) for i in range(40)]
CHATS = [json.dumps({"messages": [{"role": "user", "content": f"ask {i}"}]}) for i in range(40)]


def prepare(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["data", "prepare", *arguments, "--workers", "2"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    (tmp_path / "lines.jsonl").write_text("\n".join([*LINES[:3], "{broken", *LINES[3:], LINES[0]]))
    (tmp_path / "chats.jsonl").write_text("\n".join([*CHATS, '{"messages": 3}']))
    return [f"web={tmp_path / 'lines.jsonl'}", f"talk={tmp_path / 'chats.jsonl'}"]


def test_what_was_made_and_what_was_left_out_is_said(sources: list[str], tmp_path: Path) -> None:
    out = tmp_path / "corpora" / "mixed"
    arguments = [*sources, "--out", str(out), "--vocab", "300", "--heldout", "0.3"]
    said = prepare(*arguments)
    for words in (
        "web: lines.jsonl:4: not JSON",
        "talk: chats.jsonl:41: 'messages' is neither",
        "2 broken",
        "1 copies",
    ):
        assert words in said
    assert str(out) in said.splitlines()[-1]
    corpus = Corpus(out)
    assert corpus.sources == ["web", "talk"] and corpus.manifest["name"] == "mixed" and corpus.vocab == 300
    told = json.loads(prepare(*arguments, "--json"))
    assert told["hash"] == corpus.manifest["hash"] and told["left_out"] == {"broken": 2, "empty": 0, "copies": 1}
    assert sum(split["documents"] for split in told["counts"].values()) == 80


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nowhere"], ["source", "'/nowhere'", "stdlib"]),
        (["{web}", "--vocab", "100"], ["vocab", "261"]),
        (["{web}", "--heldout", "2"], ["heldout", "between 0 and 1"]),
        (["{web}", "--tokenizer", "/nowhere"], ["tokenizer", "/nowhere"]),
        (["{web}", "--tokenizer", "x", "--vocab", "300"], ["vocab", "leave out"]),
        (["{web}", "--workers", "-1"], ["workers", "at least 1"]),
        (["{web}", "--text-field", "body"], ["source", "no readable", "has no 'body'"]),
        (["{web}", "--vocab", "300", "--on-error", "refuse"], ["lines.jsonl:4", "not JSON"]),
        (["{web}", "--on-error", "ignore"], ["on_error", "skip, refuse"]),
        (["{web}", "{web}"], ["source", "named 'web'"]),
        (["{talk}", "--vocab", "262"], ["vocab", "263"]),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(
    sources: list[str],
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "deep" / "out"
    filled = [a.format(web=sources[0], talk=sources[1]) for a in arguments]
    monkeypatch.setattr(sys, "argv", ["lclab", "data", "prepare", *filled, "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("lclab: ") and said.count("\n") == 1
    for word in words:
        assert word in said
    assert not out.parent.exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_same_command_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    """Stopped while it writes shards, with units done and units to do."""
    lines = (json.dumps({"text": f"{i} some words of line number {i} " * 200}) for i in range(1200))
    (tmp_path / "many.jsonl").write_text("\n".join(lines))
    arguments = [str(tmp_path / "many.jsonl"), "--vocab", "300"]
    command = [
        sys.executable,
        "-m",
        "lclab",
        "data",
        "prepare",
        *arguments,
        "--out",
        str(tmp_path / "out"),
        "--workers",
        "1",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    units = tmp_path / ".out.building" / ".work" / "units"
    while not list(units.glob("0*")):
        assert process.poll() is None
        time.sleep(0.01)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    said, _ = process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else -number) and not (tmp_path / "out").exists()
    assert ("the same command continues" in said) == (number == signal.SIGINT)
    prepare(*arguments, "--out", str(tmp_path / "out"))
    prepare(*arguments, "--out", str(tmp_path / "other"), "--name", "out")
    assert Corpus(tmp_path / "out").manifest == Corpus(tmp_path / "other").manifest
