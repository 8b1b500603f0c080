import re

import pytest

from analysis import analyse
from reports.grid import Grid, Line, heading, word
from reports.markdown import MOST, markdown, table
from tests.analysis.synthetic import odd_sweeps


@pytest.mark.parametrize("name", odd_sweeps())
def test_every_sweep_has_its_markdown(name):
    analysis = analyse(odd_sweeps()[name])
    text = markdown(analysis, "a_b")
    lines = text.splitlines()
    assert lines[0] == "## Sweep a\\_b" and lines[2].replace("\\", "") == f"**{analysis.learnt}**"
    assert ("### Designs" in lines) == bool(analysis.rows)
    assert ("### What cannot be said" in lines) == bool(analysis.unsaid)
    assert "<script>" not in text and not re.search(r"\| (nan|None) ", text)
    rows = [line for line in lines if line.startswith("|")]
    for row in analysis.rows:
        assert any(line.startswith(f"| {row.design}".replace("_", "\\_").replace("<", "&lt;")) for line in rows)


def test_a_table_is_cut_and_says_so():
    lines = tuple(Line((word(f"d{i}"), word("a|b\nc"))) for i in range(MOST + 2))
    text = table(Grid("x", heading("design", "value"), lines))
    rows = text.splitlines()
    assert rows[:3] == ["| design | value |", "| --- | ---: |", "| d0 | a\\|b c |"]
    assert rows[-1] == "2 more in report.html." and len(rows) == 2 + MOST + 2
