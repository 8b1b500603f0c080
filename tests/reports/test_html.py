"""The page of every odd sweep: well-formed, verdict first, escaped, and nothing from the network."""

import re
from html.parser import HTMLParser

import pytest

from analysis import analyse
from analysis.table import save
from analysis.words import DASH
from reports.html import write
from search_space.errors import UsageError
from tests.analysis.synthetic import odd_sweeps, sweep
from tests.analysis.synthetic import write as write_sweep

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Checks that every element is closed in order; collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and data.strip():
            self.text.setdefault(self.open[-1], []).append(data.strip())


@pytest.fixture(params=odd_sweeps())
def page(request, tmp_path):
    frame = odd_sweeps()[request.param]
    path = write(write_sweep(tmp_path / "my-sweep", frame))
    assert path == (tmp_path / "my-sweep" / "report.html").resolve()
    return frame, path.read_text(encoding="utf-8")


def test_every_sweep_has_a_sound_page(page):
    frame, text = page
    parsed = Page(text)
    assert len(text) < 5_000_000
    assert parsed.text["h1"] == [analyse(frame).learnt]
    assert parsed.tags.index("h1") < min(parsed.tags.index(tag) for tag in ("h2", "pre"))
    assert "lclab sweep run my-sweep" in parsed.text["pre"]
    assert not re.search(r"https?://", text)
    assert parsed.addresses == ["data:,"]
    assert not re.search(r"@import|url\(", text)
    assert "<b>not markup</b>" not in text
    assert "&lt;b&gt;not markup" in text


def test_names_and_reasons_are_escaped(tmp_path):
    text = write(write_sweep(tmp_path / "a<b", odd_sweeps()["running"])).read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert "lclab sweep run a&lt;b" in text


def test_what_is_known_is_shown(tmp_path):
    text = write(write_sweep(tmp_path, odd_sweeps()["normal"])).read_text(encoding="utf-8")
    headings = (
        "Designs",
        "Differences to the baseline",
        "Gains over the controls",
        "Next-token loss by distance",
        "Loss curves",
        "Noise",
        "What early rungs tell",
        "Cost",
    )
    for heading in headings:
        assert f">{heading}</h2>" in text
    assert ">Failures</h2>" not in text
    assert text.count('role="img" aria-label="') == 2
    assert all(f'scope="col" class="n">{stretch}</th>' in text for stretch in ("0", f"1{DASH}3", f"64{DASH}255"))
    assert f"256{DASH}1023" not in text  # where nothing was scored
    assert "by parallel reconstruction loss" in text
    assert ">Failures</h2>" in write(write_sweep(tmp_path, odd_sweeps()["failed"])).read_text(encoding="utf-8")


def test_gains_that_cannot_be_said_say_why(tmp_path):
    frame = sweep()
    text = write(write_sweep(tmp_path, frame[frame["design"] != "blind"])).read_text(encoding="utf-8")
    assert "<small>cannot be said</small>" in text
    assert "What is missing cannot be said: no blind control has reached rung 2." in text
    assert "What is missing" not in write(write_sweep(tmp_path, frame)).read_text(encoding="utf-8")
    frame["metric"] = "continue"
    assert "by next-token loss" in write(write_sweep(tmp_path, frame)).read_text(encoding="utf-8")


def test_the_same_sweep_gives_the_same_bytes_and_leaves_nothing_else(tmp_path):
    write_sweep(tmp_path, sweep())
    before = {path.name for path in tmp_path.iterdir()}
    first = write(tmp_path).read_bytes()
    assert write(tmp_path).read_bytes() == first
    assert {path.name for path in tmp_path.iterdir()} == before | {"report.html"}


def test_curves_and_configuration_may_be_missing_but_not_the_table(tmp_path):
    save(sweep(), tmp_path / "trials.parquet")
    assert "Not recorded." in write(tmp_path).read_text(encoding="utf-8")
    (tmp_path / "trials.parquet").unlink()
    with pytest.raises(UsageError, match="no such table"):
        write(tmp_path)
    with pytest.raises(UsageError, match="no such sweep folder"):
        write(tmp_path / "absent")
