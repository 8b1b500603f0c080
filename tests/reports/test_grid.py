"""Numbers as people read them, and the tables that they are in."""

from math import log

import pytest

from analysis import analyse
from analysis.words import DASH, MINUS, large, number, p_value, percent, signed, span, stretches
from reports.about import About
from reports.designs import designs, each_trial
from reports.grid import change
from tests.analysis.synthetic import odd_sweeps


@pytest.mark.parametrize("name", odd_sweeps())
def test_every_sweep_has_tables(name):
    frame = odd_sweeps()[name]
    analysis = analyse(frame)
    grids = [designs(analysis), each_trial(frame, analysis.metric, About())]
    assert [len(grid.lines) for grid in grids] == [len(analysis.rows), frame["trial"].nunique()]
    for grid in grids:
        for line in grid.lines:
            assert len(line.cells) == len(grid.columns)
            assert all(cell.text and cell.text not in ("nan", "None") and cell.key == cell.key for cell in line.cells)


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
    ratios = (log(1.5), log(0.95), log(1.001), 1e9, None)
    assert [change(x) for x in ratios] == ["+50%", f"{MINUS}5.0%", "+0.10%", "+48,516,519,441%", DASH]
