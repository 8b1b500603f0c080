import pytest

from analysis import analyse
from analysis.words import DASH, MINUS, large, number, p_value, percent, signed, span, stretches
from reports.text import markdown, table
from tests.analysis.synthetic import odd_sweeps


@pytest.mark.parametrize("name", odd_sweeps())
def test_every_sweep_has_a_table(name):
    analysis = analyse(odd_sweeps()[name])
    headers, rows = table(analysis)
    assert len(rows) == len(analysis.rows)
    for row in rows:
        assert len(row) == len(headers)
        assert all(cell and cell not in ("nan", "None") for cell in row)


def test_markdown_is_one_table_below_the_sentences():
    analysis = analyse(odd_sweeps()["running"])
    lines = markdown(analysis).splitlines()
    assert lines[0] == f"**{analysis.learnt}**"
    assert len({line.count(" | ") for line in lines if line.startswith("|")}) == 1
    assert "<script>" not in "\n".join(lines)


def test_numbers_read_well():
    assert [number(x) for x in (0.12345, -0.00123, 0.0, None, float("nan"))] == [
        "0.123",
        f"{MINUS}0.0012",
        "0.000",
        DASH,
        DASH,
    ]
    assert stretches([0, 1, 4]) == ["0", f"1{DASH}3", "4+"]
    assert [signed(x) for x in (0.5, -0.5)] == ["+0.500", f"{MINUS}0.500"]
    assert [large(x) for x in (12, 999.9, 1_234_567, 7.4e12)] == ["12", "1k", "1.23M", "7.4T"]
    assert [span(x) for x in (48.2, 200, 7500)] == ["48 s", "3 min 20 s", "2 h 05 min"]
    assert [percent(x) for x in (0.0, 0.018, 0.8, -0.5)] == ["0%", "1.8%", "80%", f"{MINUS}50%"]
    assert [p_value(x) for x in (1e-9, 0.04, None)] == ["< 0.001", "0.040", DASH]
