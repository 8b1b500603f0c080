"""From the tidy table of a sweep's trials to statements about designs, with their uncertainty.

Pure: reads the table, never the sweep's code. Reading order: `table` (what is known), `effects` (who differs
from the baseline, and how sure that is), `rungs` (how much an early rung tells), `statements` and `summary`
(the same for people).
"""

from analysis.effects import Comparison, Effect, Noise, compare
from analysis.overview import Analysis, analyse
from analysis.rungs import Agreement, agreement
from analysis.summary import Row
from analysis.table import METRIC

__all__ = ["METRIC", "Agreement", "Analysis", "Comparison", "Effect", "Noise", "Row", "agreement", "analyse", "compare"]
