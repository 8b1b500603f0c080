"""The promotion on the page and in Markdown: nothing without one, everything of the record with one."""

import re
from dataclasses import replace
from functools import cache

import pytest

from analysis import analyse
from analysis.gate import decide
from analysis.ladder import analyse_ladder
from analysis.words import interval, number, percent
from reports.ladder import Section, ladder_section
from reports.laws import MOST_ARMS, drawn
from reports.write import write
from tests.analysis.ladders import ARM, OTHER, SIZES, TRUTHS, Truth, ladder, target
from tests.analysis.synthetic import BASELINE, sweep
from tests.analysis.synthetic import write as write_sweep
from tests.reports.test_html import Page

TITLES = ["Promotion", "The ladder to the target"]


@cache
def climbed(count=4):
    return analyse_ladder(ladder(sizes=SIZES[:count]), BASELINE, "parallel", target())


@cache
def swept():
    return sweep({BASELINE: 0.8, ARM: 0.6, OTHER: 0.9}, arm_seeds=3, sigma=0.01, document_sigma=0.02)


@cache
def decided(count=4, force=False, design=None):
    return decide(analyse(swept()), swept(), climbed(count) if count else None, design, force)


def pages(folder, ladder, decision):
    write_sweep(folder, swept())
    write(folder, None, ladder, decision)
    return tuple((folder / f"report.{end}").read_text(encoding="utf-8") for end in ("html", "md"))


def test_a_report_without_a_promotion_says_nothing_of_it(tmp_path):
    page, text = pages(tmp_path, None, None)
    assert ladder_section(None, None) is None
    assert not {"decision", "ladder"} & set(Page(page).ids)
    assert "### Promotion" not in text and "ladder" not in text
    assert 'data-figure="ladder"' not in page


def test_a_promotion_is_on_the_page_and_in_its_twin(tmp_path):
    page, text = pages(tmp_path, climbed(), decided())
    parsed = Page(page)
    assert parsed.text["h2"][:2] == TITLES and {"#decision", "#ladder"} <= set(parsed.links)
    section = ladder_section(climbed(), decided())
    assert section is not None and not section.reasons
    for said in (section.headline, *section.said, *(value for _, value in section.facts)):
        assert any(said in told for kind in ("p", "li", "dd") for told in parsed.text[kind])
        assert said.replace("_", "\\_").replace("<", "&lt;") in text
    assert 'data-figure="ladder" role="img" aria-label="Loss by compute at 1.2T' in page
    assert text.count("| mean-w8-causal-mlp-O0-n8 |") >= 5  # forecast and four levels
    assert not re.search(r"\| (nan|None) ", text) and "None" not in section.headline


def test_numbers_are_those_of_the_record():
    section, found, arm = ladder_section(climbed(), decided()), decided(), climbed().of(ARM)
    assert section is not None and arm is not None and found.prediction is not None
    assert section.headline.startswith(f"Promoted: {ARM}, {number(found.difference)} nats per token")
    assert interval(found.low, found.high) in section.headline
    facts = dict(section.facts)
    assert facts["predicted loss"].startswith(number(found.prediction.loss)) and facts["self-check"] == "passed"
    assert facts["seeds"] == "3, of the baseline 3" and facts["noise of a seed"] == percent(found.sigma)
    assert "has 100 times the compute of the largest level" in section.said[0]
    assert f"a loss of {number(arm.forecast.loss)} " in section.said[2]
    assert section.said[-1].endswith("were all inside of their intervals.")
    forecasts, levels = section.grids["forecasts"], section.grids["ladder"]
    assert [line.cells[0].text for line in forecasts.lines] == [a.design for a in climbed().arms]
    assert [line.cells[1].text for line in levels.lines[:4]] == ["3,000,000", "1,000,000", "300,000", "100,000"]
    assert [line.style for line in forecasts.lines] == ["baseline", "arm", "arm"]


def test_the_figure_has_levels_laws_and_target():
    section = ladder_section(climbed(), None)
    assert section is not None and section.figure is not None and section.headline == ""
    traces = section.figure["data"]
    assert len(traces) == 5 * len(climbed().arms)
    runs = [trace for trace in traces if trace.get("marker", {}).get("symbol") == "diamond-open"]
    assert [run["x"] for run in runs] == [[pytest.approx(target().compute)]] * 3
    own = [trace for trace in traces if trace.get("marker", {}).get("symbol") == "circle"]
    assert [len(trace["x"]) for trace in own] == [4, 4, 4]
    assert section.figure["layout"]["shapes"][0]["x0"] == pytest.approx(target().compute)
    assert list(section.legend) == [arm.design for arm in climbed().arms]


def test_a_refusal_and_its_force_name_the_reasons(tmp_path):
    refused, forced = ladder_section(None, decided(0)), ladder_section(None, decided(0, force=True))
    assert refused is not None and forced is not None
    assert refused.headline.startswith(f"Refused: {ARM}, ") and refused.style == "worse"
    assert forced.headline.startswith(f"Forced in spite of 1 reason against it: {ARM}")
    assert list(refused.reasons) == list(forced.reasons) == decided(0).reasons
    page, text = pages(tmp_path, None, decided(0))
    assert Page(page).text["h2"][0] == "Promotion" and "The ladder to the target" not in Page(page).text["h2"]
    assert f"- Against it: {decided(0).reasons[0]}." in text
    assert any(item.startswith("no ladder") for item in Page(page).text["li"])


def test_without_a_winner_there_is_nothing_to_promote():
    frame = swept()[swept()["trial"] < 0]
    section = ladder_section(None, decide(analyse(frame), frame, None))
    assert section is not None and section.headline == "Refused: there is no design to promote."


def test_three_levels_and_a_failed_check_are_said():
    three = ladder_section(climbed(3), decided(3))
    assert three is not None
    assert any("which a floor may bend" in said for said in three.said)
    assert "3 levels cannot tell the floor of a law, so the intervals allow for any." in three.said
    levels = ladder()
    last = levels[-1].frame
    last["parallel"] = last["parallel"].where(last["design"] != ARM, 1.3 * last["parallel"])
    broken = ladder_section(analyse_ladder(levels, BASELINE, "parallel", target()), None)
    assert broken is not None
    assert any(said.startswith(f"Not to be trusted is what is predicted of {ARM}: its loss") for said in broken.said)
    checks = [line.cells[-1] for line in broken.grids["forecasts"].lines]
    assert [cell.text for cell in checks].count("failed") == 1


def test_many_arms_are_drawn_in_part():
    many = {BASELINE: TRUTHS[BASELINE]} | {f"d{i}": Truth(2 + 0.05 * i, 0.08, 1.0) for i in range(8)}
    found = analyse_ladder(ladder(many, SIZES[:3], rungs=1), BASELINE, "parallel", target())
    names = [arm.design for arm in drawn(found, "d7")]
    assert names[:2] == [BASELINE, "d7"] and len(names) == MOST_ARMS
    section = ladder_section(replace(found, arms=found.arms[:1]), None)
    assert isinstance(section, Section) and len(section.legend) == 1
