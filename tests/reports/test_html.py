"""The page of every odd sweep: well-formed, verdict first, escaped, and nothing from the network."""

import re
from html.parser import HTMLParser

import pytest

from analysis import analyse
from analysis.table import save
from analysis.words import DASH
from reports.about import About
from reports.write import write
from search_space.errors import UsageError
from tests.analysis.synthetic import CONFIG, odd_sweeps, sweep
from tests.analysis.synthetic import write as write_sweep
from tests.reports.plenty import curves_of, rich

VOID = {"meta", "link", "br", "img", "hr", "input"}
ABOUT = About("my-sweep", CONFIG, "lclab sweep run runs/my-sweep/sweep.yaml", [("code", "commit 0123abc")])


class Page(HTMLParser):
    """Checks that every element is closed in order; collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []  # addresses that a browser would open by itself
        self.text: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        into = self.links if tag == "a" else self.loads
        into += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data", "poster")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and data.strip():
            self.text.setdefault(self.open[-1], []).append(data.strip())


def page_of(folder, frame, about=ABOUT):
    write(write_sweep(folder, frame), about)
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", odd_sweeps())
def test_every_sweep_has_a_sound_page(name, tmp_path):
    frame = odd_sweeps()[name]
    text = page_of(tmp_path, frame)
    parsed, analysis = Page(text), analyse(frame)
    assert len(text) < 5_000_000
    assert parsed.text["h1"] == [analysis.learnt]
    assert parsed.tags.index("h1") < min(parsed.tags.index(tag) for tag in ("h2", "pre"))
    assert ABOUT.command in parsed.text["pre"] and "commit 0123abc" in parsed.text["dd"]
    assert parsed.loads == ["data:,"]
    assert not re.search(r"@import|url\(", text)
    assert {link.removeprefix("#") for link in parsed.links} <= set(parsed.ids)
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert "<b>not markup</b>" not in text
    assert "&lt;b&gt;not markup" in text
    for reason in analysis.unsaid:
        assert any(item.startswith(reason) for item in parsed.text["li"])
    assert ("What cannot be said" in parsed.text["h2"]) == bool(analysis.unsaid)


def test_names_and_reasons_are_escaped(tmp_path):
    text = page_of(tmp_path, odd_sweeps()["running"], About("a<b", command="lclab sweep run 'a<b'"))
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert "lclab sweep run &#39;a&lt;b&#39;" in text
    assert "Not recorded." in text
    assert "<script>" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_what_is_known_is_shown(tmp_path):
    text = page_of(tmp_path, odd_sweeps()["normal"])
    titles = Page(text).text["h2"]
    assert titles[:1] == ["What cannot be said"] and titles[-2:] == ["All trials", "Continue or repeat"]
    for title in (
        *("Designs", "Differences to the baseline", "Effects of the axes", "Gains over the controls"),
        *("Next-token loss by distance", "Loss against cost", "Loss curves", "Noise", "What early rungs tell", "Cost"),
    ):
        assert title in titles
    assert "Failures" not in titles
    assert all(f'class="n"><button type="button">{stretch}<' in text for stretch in ("0", f"1{DASH}3", f"64{DASH}255"))
    assert f"256{DASH}1023" not in text  # where nothing was scored
    assert "by parallel reconstruction loss" in text


@pytest.mark.parametrize("state", ["failed", "infeasible"])
def test_trials_without_a_result_say_why(tmp_path, state):
    frame = sweep()
    frame.loc[frame["trial"] == 4, ["state", "reason"]] = [state, "OutOfMemory: step 3 <of 7>"]
    text = page_of(tmp_path, frame)
    assert ">Failures</h2>" in text
    table = text[text.index(">Failures</h2>") :].split("<tbody>")[1].split("</tbody>")[0]
    cells = Page(table).text["td"]
    assert cells[-2:] == [state, "OutOfMemory: step 3 <of 7>"]


def test_gains_that_cannot_be_said_say_why(tmp_path):
    frame = sweep()
    text = page_of(tmp_path, frame[frame["design"] != "blind"])
    assert "<small>cannot be said</small>" in text
    assert "What is missing cannot be said: no blind control has reached rung 2." in text
    assert "What is missing" not in page_of(tmp_path, frame)
    frame["metric"] = "continue"
    assert "by next-token loss" in page_of(tmp_path, frame)


def test_trials_lead_to_their_mlflow_runs(tmp_path):
    frame = sweep()
    assert not [link for link in Page(page_of(tmp_path, frame)).links if "://" in link]
    frame["mlflow_run"] = [f"{trial:032x}" for trial in frame["trial"]]
    text = page_of(tmp_path, frame, About("a", server="http://lab:5000/", experiment="7"))
    expected = {f"http://lab:5000/#/experiments/7/runs/{run}" for run in frame["mlflow_run"]}
    links = [link for link in Page(text).links if "://" in link]
    assert set(links) == expected
    assert len(links) == 2 * len(expected)  # from its design and from its own row
    assert "it serves at http://lab:5000/" in text


def test_the_same_sweep_gives_the_same_bytes_and_leaves_nothing_else(tmp_path):
    frame = odd_sweeps()["normal"]
    first = page_of(tmp_path, frame)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"trials.parquet", "curves.parquet", "sweep.yaml", "report.html", "report.md"}
    save(frame.sample(frac=1, random_state=0), tmp_path / "trials.parquet")
    write(tmp_path, ABOUT)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == first


@pytest.mark.slow
def test_a_thousand_trials_fit_into_a_page(tmp_path):
    frame = rich(1000)
    save(frame, tmp_path / "trials.parquet")
    save(curves_of(frame), tmp_path / "curves.parquet")
    write(tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
    assert (tmp_path / "report.md").stat().st_size < 65_000  # what GitHub takes as a comment


def test_curves_and_configuration_may_be_missing_but_not_the_table(tmp_path):
    save(sweep(), tmp_path / "trials.parquet")
    write(tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Not recorded." in text and f"lclab sweep run {tmp_path.name}" in text
    (tmp_path / "trials.parquet").unlink()
    with pytest.raises(UsageError, match="no such table"):
        write(tmp_path)
    with pytest.raises(UsageError, match="no such sweep folder"):
        write(tmp_path / "absent")
