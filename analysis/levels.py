"""What a ladder is made of, and what is said of it: plain data, filled in by `ladder`."""

from dataclasses import dataclass
from math import expm1

import pandas as pd

from analysis.effects import Effect
from analysis.powerlaw import Law
from analysis.words import MINUS, large, number

__all__ = [
    *("Arm", "Band", "Check", "Forecast", "Gap", "Ladder", "Level", "Point", "Prediction", "Reach", "SelfCheck"),
    *("Step", "Target", "gap_text", "prediction"),
]


@dataclass(frozen=True)
class Level:
    """One sweep of the ladder: its name, the parameters N of its models, and its table."""

    name: str
    parameters: int
    frame: pd.DataFrame


@dataclass(frozen=True)
class Target:
    """The run to predict: parameters N, and raw tokens D counted as the tables count them."""

    parameters: int
    tokens: float

    @property
    def compute(self) -> float:
        return 6.0 * self.parameters * self.tokens


@dataclass(frozen=True)
class Point:
    """A design at a rung of a level. loss: geometric mean over seeds; sd: of the log loss between its own seeds, None
    with one. own: the level's last rung. compute in FLOPs."""

    level: str
    parameters: int
    tokens: float
    compute: float
    rung: int
    loss: float
    sd: float | None
    seeds: int
    own: bool


@dataclass(frozen=True)
class Gap:
    """Against the baseline at the own point of a level; `effect` has it in nats per token, with its interval.

    value: log ratio of the losses. baseline_seeds: behind the other side of it.
    """

    level: str
    compute: float
    value: float
    baseline_seeds: int
    effect: Effect


@dataclass(frozen=True)
class Step:
    """A level without its table. sigma: standard deviation of the log loss between seeds, on df degrees of freedom."""

    name: str
    parameters: int
    tokens: float
    compute: float
    sigma: float
    df: int


@dataclass(frozen=True)
class Check:
    predicted: float
    low: float
    high: float
    measured: float

    @property
    def inside(self) -> bool:
        return self.low <= self.measured <= self.high


@dataclass(frozen=True)
class SelfCheck:
    """The largest level as predicted from all others, with 95% intervals: the loss in nats per token and the gap as a
    log ratio (None for the baseline)."""

    level: str
    loss: Check
    gap: Check | None

    @property
    def unmet(self) -> dict[str, str]:
        """Of `loss` and `gap` those that were outside of their interval, with a sentence that says so."""
        known = {"loss": (self.loss, number), "gap": (self.gap, gap_text)}
        return {
            name: f"its {name} at {self.level} was predicted as {shown(check.low)} to {shown(check.high)} from the "
            f"smaller levels and is {shown(check.measured)}"
            for name, (check, shown) in known.items()
            if check and not check.inside
        }


@dataclass(frozen=True)
class Reach:
    """How far the target is beyond the largest level: factor in compute, the same in tenfolds, and the tenfolds that
    the levels span. Negative tenfolds: within the ladder."""

    factor: float
    tenfolds: float
    spanned: float


@dataclass(frozen=True)
class Forecast:
    """At the target, with 95% intervals: the loss of one new run in nats per token, and the gap as a log ratio.

    better: probability that the arm is better than the baseline there. turned: that the order there is not the one
    measured at the largest level. All of the gap are None for the baseline.
    """

    loss: float
    low: float
    high: float
    gap: float | None = None
    gap_low: float | None = None
    gap_high: float | None = None
    better: float | None = None
    turned: float | None = None


@dataclass(frozen=True)
class Band:
    """The laws of a design as a curve: compute, and median and 95% interval of the loss without a run's noise."""

    compute: tuple[float, ...]
    loss: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Arm:
    """A design on the ladder. E, alpha: 95% intervals of the law's parameters over the draws.

    slope: change of the gap, a log ratio, per tenfold of compute, with its 95% interval; None for the baseline.
    """

    design: str
    role: str
    points: tuple[Point, ...]
    law: Law
    E: tuple[float, float]
    alpha: tuple[float, float]
    band: Band
    forecast: Forecast
    selfcheck: SelfCheck
    gaps: tuple[Gap, ...] = ()
    slope: float | None = None
    slope_low: float | None = None
    slope_high: float | None = None

    @property
    def untrusted(self) -> tuple[str, ...]:
        """Why its forecast is not to be trusted; empty where the self-check was passed."""
        return tuple(self.selfcheck.unmet.values())


@dataclass(frozen=True)
class Ladder:
    """arms: the baseline first, then by the predicted loss. missing: designs that are on too few levels, and why.

    notes: what limits the forecasts of all arms.
    """

    metric: str
    baseline: str
    target: Target
    levels: tuple[Step, ...]
    arms: tuple[Arm, ...]
    reach: Reach
    missing: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    def of(self, design: str | None) -> Arm | None:
        return next((arm for arm in self.arms if arm.design == design), None)


@dataclass(frozen=True)
class Prediction:
    """Of the promoted run: loss of one run in nats per token with its 95% interval, and the gap to the baseline as a
    log ratio (None for the baseline). turned, better: probabilities. slope: of the gap per tenfold of compute.

    checks: what was predicted for the largest level from the smaller ones, [low, high, measured] of loss and gap.
    """

    parameters: int
    tokens: float
    compute: float
    loss: float
    low: float
    high: float
    gap: float | None
    gap_low: float | None
    gap_high: float | None
    slope: float | None
    slope_low: float | None
    slope_high: float | None
    turned: float | None
    better: float | None
    factor: float
    tenfolds: float
    spanned: float
    levels: list[str]
    checks: dict[str, list[float]]
    trusted: bool
    limits: list[str]


def prediction(ladder: Ladder, arm: Arm) -> Prediction:
    """What is to be kept of `arm` in a record, as plain data."""
    forecast, checks = arm.forecast, {"loss": arm.selfcheck.loss, "gap": arm.selfcheck.gap}
    return Prediction(
        parameters=ladder.target.parameters,
        tokens=float(ladder.target.tokens),
        compute=ladder.target.compute,
        loss=forecast.loss,
        low=forecast.low,
        high=forecast.high,
        gap=forecast.gap,
        gap_low=forecast.gap_low,
        gap_high=forecast.gap_high,
        slope=arm.slope,
        slope_low=arm.slope_low,
        slope_high=arm.slope_high,
        turned=forecast.turned,
        better=forecast.better,
        factor=ladder.reach.factor,
        tenfolds=ladder.reach.tenfolds,
        spanned=ladder.reach.spanned,
        levels=[
            f"{step.name} ({large(step.parameters)} parameters, {large(step.tokens)} tokens)" for step in ladder.levels
        ],
        checks={name: [check.low, check.high, check.measured] for name, check in checks.items() if check},
        trusted=not arm.untrusted,
        limits=[*arm.untrusted, *ladder.notes],
    )


def gap_text(ratio: float) -> str:
    """A log ratio as a change of the loss in percent, fine enough for small gaps."""
    return f"{100 * expm1(ratio):+.2f}%".replace("-", MINUS)
