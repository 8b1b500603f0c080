"""The page as a person sees it, in Chromium: on a laptop and a phone, light and dark."""

import pytest

from reports.write import write
from tests.analysis.synthetic import odd_sweeps
from tests.analysis.synthetic import write as write_sweep
from tests.chromium import browser, needs_chromium
from tests.reports.plenty import rich

pytestmark = needs_chromium
SWEEPS = {**odd_sweeps(), "rich": rich(60)}
LOOKS = [(1280, 800, False), (390, 844, False), (390, 844, True), (1280, 800, True)]
DRAWN = "place => place.querySelectorAll('.main-svg .trace path').length > 0"
INKED = "place => place.querySelector('.xtitle').style.fill === getComputedStyle(document.body).color"
PLACES = "[...document.querySelectorAll('[data-figure]')]"


@pytest.fixture(scope="module")
def tab():
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


def opened(tab, folder, name):
    """The page of a sweep, written at most once."""
    page = folder / name / "report.html"
    if not page.exists():
        write(write_sweep(folder / name, SWEEPS[name]))
    tab.look(*LOOKS[0])
    tab.goto(page.as_uri())
    tab.wait_until(f"{PLACES}.every({DRAWN})")


@pytest.mark.parametrize("name", ["empty", "failed", "running", "single seed", "rich"])
def test_a_page_reads_well_everywhere(tab, folder, name):
    opened(tab, folder, name)
    backgrounds = set()
    for width, height, dark in LOOKS:
        tab.look(width, height, dark)
        tab.wait_until(f"{PLACES}.every(place => place.querySelector('.main-svg').clientWidth <= place.clientWidth)")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        backgrounds.add((dark, tab.evaluate("getComputedStyle(document.body).backgroundColor")))
        tab.wait_until(f"{PLACES}.every({INKED})")
        tab.wait_until(f"{PLACES}.every({DRAWN})")
    assert len(backgrounds) == 2
    assert tab.evaluate(f"{PLACES}.length > 0") == (name in ("running", "single seed", "rich"))
    assert tab.errors == []
    assert {address.split(":")[0] for address in tab.requests} <= {"file", "data", "blob"}
    missing = "[...document.querySelectorAll('img, svg.picture, [role=img]')].filter(e => !(e.alt || e.ariaLabel))"
    assert tab.evaluate(f"{missing}.length") == 0
    assert tab.evaluate(f"{PLACES}.every(place => place.getAttribute('role') === 'img')")


def test_a_click_on_a_header_sorts(tab, folder):
    opened(tab, folder, "rich")
    column = "#designs ~ .scroll .designs"
    header = f"{column} th:nth-child(8) button"
    read = f"[...document.querySelectorAll('{column} tbody tr')].map(row => row.cells[7].dataset.key)"
    for click, sign in (("ascending", 1), ("descending", -1)):
        tab.click(header)
        assert tab.evaluate(f"document.querySelector('{column} th:nth-child(8)').getAttribute('aria-sort')") == click
        keys = tab.evaluate(read)
        known = [sign * float(key) for key in keys if key]
        assert len(known) > 5 and known == sorted(known)
        assert all(keys[: len(known)]) and not any(keys[len(known) :])
    tab.click(f"{column} th:first-child button")
    names = tab.evaluate(f"[...document.querySelectorAll('{column} tbody th')].map(cell => cell.textContent)")
    assert names == tab.evaluate("names => names.toSorted((a, b) => a.localeCompare(b))", names) and len(names) > 5


def test_the_words_stand_in_where_a_browser_cannot_unpack(tab, folder):
    opened(tab, folder, "normal")
    broken = "() => { for (const place of document.querySelectorAll('[data-figure]')) place.replaceChildren() }"
    tab.evaluate(broken)
    tab.page.add_init_script("delete window.DecompressionStream")
    tab.page.reload()
    tab.wait_until(f"{PLACES}.every(place => place.textContent === place.getAttribute('aria-label'))")
