"""From the tidy table of a sweep's trials to statements about designs, with their uncertainty.

Pure: reads the table, never the sweep's code. Reading order: `table` (what is known), `effects` (who differs
from the baseline, and how sure that is), `gains` (who differs from the controls) and `distance` (how far behind a
span), `rungs` (how much an early rung tells), `statements` and `summary` (the same for people).
"""

from analysis.distance import Profile
from analysis.effects import Comparison, Effect, Noise, compare
from analysis.gains import Gain
from analysis.overview import Analysis, analyse
from analysis.rungs import Agreement, agreement
from analysis.summary import Row

__all__ = [
    "Agreement", "Analysis", "Comparison", "Effect", "Gain", "Noise", "Profile", "Row",
    "agreement", "analyse", "compare",
]  # fmt: skip
