"""What a terminal shows of a sweep with many designs."""

import pytest

from analysis import analyse
from lclab.console import make_console
from lclab.show import MOST, show_analysis
from tests.reports.plenty import BASELINE, rich


def test_a_long_table_is_cut_and_keeps_what_it_is_read_against(capsys: pytest.CaptureFixture[str]) -> None:
    analysis = analyse(rich(100))
    show_analysis(make_console(), analysis)
    shown = capsys.readouterr().out
    hidden = [row.design for row in analysis.rows[MOST:] if row.role == "arm"]
    assert len(hidden) > 1 and f"{len(hidden)} more designs in the report." in shown
    table = shown.split("more designs")[0]
    assert not [design for design in hidden if f" {design} " in table]
    assert all(f" {design} " in table for design in ("blind", "uncompressed", BASELINE.name, analysis.rows[0].design))
    assert "What to run next: one more seed of" in shown and analysis.learnt in shown
