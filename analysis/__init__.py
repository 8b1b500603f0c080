"""From the tidy table of a sweep's trials to statements about designs, with their uncertainty.

Pure: reads the table, never the sweep's code. Reading order: `table` (what is known), `effects` (who differs
from the baseline, and how sure that is; `quantiles` for the errors of few repeats), `contrasts` (the same for any
weighted sum of designs), `axes` (what a choice does over all designs, and which choices change each other's effect)
and `importance`, `gains` (who differs from the controls) and `distance` (how far behind a span), `pareto` (loss
against cost), `rungs` (how much an early rung tells), `noise` (which loss decides soonest), `following` (what to run
next), `rates` (what one learning rate for all costs), `statements`, `summary` and `unsaid` (the same for people).
Beyond one sweep: `powerlaw` and `ladder` (losses and gaps at a size that nobody has trained; `gapline`, `levels`), and
`gate` (whether a design may be promoted).
"""

from analysis.axes import AxisEffect, Interaction
from analysis.contrasts import Contrast, contrast
from analysis.distance import Profile
from analysis.effects import Comparison, Effect, Noise, compare
from analysis.following import Next
from analysis.gains import Gain
from analysis.importance import Importance
from analysis.noise import Signal
from analysis.overview import Analysis, analyse
from analysis.pareto import Front, Point
from analysis.rates import Sensitivity
from analysis.rungs import Agreement, agreement
from analysis.summary import Row

__all__ = [
    "Agreement", "Analysis", "AxisEffect", "Comparison", "Contrast", "Effect", "Front", "Gain", "Importance",
    "Interaction", "Next", "Noise", "Point", "Profile", "Row", "Sensitivity", "Signal",
    "agreement", "analyse", "compare", "contrast",
]  # fmt: skip
