"""What a choice of an axis does to the loss, over all designs of a sweep; and which choices change each other's effect.

Shapes: D designs, A axes, P columns (the constant and one for each choice but the reference), K documents.

Notable choices:
- the response is the mean over seeds of the log loss of a design, at `shared_rung`; the model is additive in the
  choices, fitted by least squares over designs (each counts once, however many seeds it has). The estimate of a choice
  against the reference is then a contrast of designs: a row of the pseudo-inverse of the design matrix (Searle 1971,
  chapter 5). With one-at-a-time ablations it is arm minus baseline, in a balanced factorial the difference of marginal
  means;
- the reference is the baseline's choice, or the most frequent one where there is no baseline or the axis is idle there;
- where an axis means nothing (overlap without a wider window, depth without attention) a design has no column of it;
- an effect is told only where the row gives back that column alone (is estimable); else `reason` names the choices
  that it cannot be told apart from;
- three sources of error (`contrasts`): seeds, documents, and lack of fit, the variance tau^2 of what a design departs
  from the additive model. It is known from the residual mean square, less what seeds and documents are expected to
  add to it (method of moments, at least 0; `quantiles.with_lack`). A saturated model leaves none: the effect is
  then one of these designs only;
- an interaction is the difference of differences, the mean over all complete quadruples of designs that agree in
  every other axis (Cox 1984); what it is beyond these quadruples is not claimed, so it has no lack of fit.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import sqrt

import numpy as np
import pandas as pd

from analysis.contrasts import Means, Residual, contrast_of, means, shared_rung
from analysis.effects import ALPHA, Noise, holm, pooled_noise, seeds_needed
from analysis.table import comparable
from analysis.words import joined
from search_space import axes as space

__all__ = ["AxisEffect", "Coding", "Interaction", "axis_effects", "coding", "crossed", "fitted", "interactions"]

_AXES = [axis for axis in space.AXES if axis.name != "control"]
_SAME = 1e-8  # what rounding may leave of a zero
_NAMED = 3  # choices named in a reason


@dataclass(frozen=True)
class AxisEffect:
    """A choice of an axis against the reference, averaged over the other axes, at `rung`.

    designs: with this choice; pairs: of designs that differ in this axis alone and in these two choices.
    effect: log ratio of the loss; low, high: its 95% interval, not widened for the number of effects.
    p: two-sided; p_adjusted: Holm over all axis effects of the sweep. seeds_needed: per design, of the same designs.
    reason: why there is no effect, or no interval, else None.
    """

    axis: str
    choice: str
    reference: str
    rung: int
    designs: int
    pairs: int
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    verdict: str = "undecided"
    seeds_needed: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Interaction:
    """How much the log ratio of `first` (axis=choice, against its reference) changes with `second` for its reference.

    designs: in complete quadruples. p_adjusted: Holm over the interactions. Positive: together they are worse than
    the sum of their effects.
    """

    first: str
    second: str
    rung: int
    designs: int
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Coding:
    """The choices of designs. choices: by axis, the reference first. codes_DA: places in them, -1 where idle."""

    designs: tuple[str, ...]
    choices: dict[str, tuple[str, ...]]
    codes_DA: np.ndarray

    @property
    def columns(self) -> list[tuple[int, int]]:
        """Axis and choice of the columns of the model after the constant."""
        return [(a, c) for a, names in enumerate(self.choices.values()) for c in range(1, len(names))]

    def matrix(self) -> np.ndarray:
        """x_DP."""
        columns = [self.codes_DA[:, a] == c for a, c in self.columns]
        return np.column_stack([np.ones(len(self.designs)), *columns]).astype(float)

    def name(self, axis: int, choice: int) -> str:
        name, choices = list(self.choices.items())[axis]
        return f"{name}={choices[choice]}"


def axis_effects(frame: pd.DataFrame, metric: str) -> tuple[AxisEffect, ...]:
    """Every choice of every axis that varies among designs that are no controls, in the order of the axes."""
    known = _known(frame, metric)
    return fitted(*known) if known else ()


def fitted(coded: Coding, mean: Means, noise: Noise) -> tuple[AxisEffect, ...]:
    """`axis_effects` of designs in the order of `mean`."""
    x_DP = coded.matrix()
    pinv_PD = np.linalg.pinv(x_DP)
    residual = _residual(x_DP, pinv_PD, mean)
    estimable_PP = pinv_PD @ x_DP
    found = []
    for p, (a, c) in enumerate(coded.columns, start=1):
        axis, choices = list(coded.choices.items())[a]
        with_it = int((coded.codes_DA[:, a] == c).sum())
        blank = AxisEffect(axis, choices[c], choices[0], noise.rung, with_it, len(_pairs(coded, a, c)))
        mixed = np.abs(estimable_PP[p] - np.eye(len(pinv_PD))[p]) > _SAME
        if not with_it:
            found.append(replace(blank, reason=f"no design with it has reached rung {noise.rung}"))
        elif mixed.any():
            others = [q for q in range(1, len(mixed)) if mixed[q] and q != p]
            found.append(replace(blank, reason=_confounded([coded.name(*coded.columns[q - 1]) for q in others])))
        else:
            found.append(_effect(blank, pinv_PD[p], mean, noise, residual))
    adjusted = _holm([effect.p for effect in found])
    return tuple(replace(e, p_adjusted=p, verdict=_verdict(e.effect, p)) for e, p in zip(found, adjusted, strict=True))


def interactions(frame: pd.DataFrame, metric: str) -> tuple[Interaction, ...]:
    """Every pair of choices of two axes with a complete quadruple of designs."""
    known = _known(frame, metric)
    return crossed(*known) if known else ()


def crossed(coded: Coding, mean: Means, noise: Noise) -> tuple[Interaction, ...]:
    """`interactions` of designs in the order of `mean`."""
    found = []
    for a, b in combinations(range(len(coded.choices)), 2):
        cells = _cells(coded.codes_DA, (a, b))
        for c, d in product(range(1, coded.codes_DA[:, a].max() + 1), range(1, coded.codes_DA[:, b].max() + 1)):
            whole = [cell for cell in cells if {(0, 0), (0, d), (c, 0), (c, d)} <= cell.keys()]
            if not whole:
                continue
            weights_D = np.zeros(len(coded.designs))
            for cell, (i, j, sign) in product(whole, ((0, 0, 1), (0, d, -1), (c, 0, -1), (c, d, 1))):
                members = cell[i, j]
                weights_D[members] += sign / len(members) / len(whole)
            blank = Interaction(coded.name(a, c), coded.name(b, d), noise.rung, int(np.count_nonzero(weights_D)))
            found.append(_interaction(blank, weights_D, mean, noise))
    return tuple(replace(i, p_adjusted=p) for i, p in zip(found, _holm([i.p for i in found]), strict=True))


def coding(trials: pd.DataFrame, designs: Sequence[str]) -> Coding:
    """The choices of `designs`, in their order; the choices of an axis are those of all `trials`.

    Axes without two choices among designs where they mean something are left out.
    """
    first = trials.drop_duplicates("design").set_index("design")
    values = {axis.name: first[axis.name].astype(object).where(first[axis.name].notna(), "base") for axis in _AXES}
    table = pd.DataFrame(values)
    records = table.to_dict("index")
    baseline = next(iter(first.index[first["role"] == "baseline"]), None)
    choices, codes = {}, []
    for axis in _AXES:
        means_it = {name: not _idle(axis, record) for name, record in records.items()}
        used = table.loc[list(means_it.values()), axis.name]
        counts = used.value_counts()
        if len(counts) < 2:
            continue
        ordered = sorted(counts.index, key=lambda value: (isinstance(value, str), value))
        own = baseline is not None and means_it[baseline]
        reference = records[baseline][axis.name] if own else max(ordered, key=lambda value: counts[value])
        ordered = [reference, *(value for value in ordered if value != reference)]
        place = {value: i for i, value in enumerate(ordered)}
        choices[axis.name] = tuple(map(str, ordered))
        codes.append([place[records[name][axis.name]] if means_it[name] else -1 for name in designs])
    return Coding(tuple(designs), choices, np.array(codes, dtype=int).T.reshape(len(designs), len(codes)))


def _known(frame: pd.DataFrame, metric: str) -> tuple[Coding, Means, Noise] | None:
    """None where no rung has two designs, or no axis varies."""
    trials = frame[~frame["role"].isin(["control", "rate"])].sort_values("trial")
    rows = comparable(trials, metric)
    rung = shared_rung(rows)
    at_rung = rows[rows["rung"] == rung]
    if rung is None or at_rung["design"].nunique() < 2:
        return None
    mean = means(at_rung, metric)
    coded = coding(trials, mean.designs)
    noise = pooled_noise(rows, metric).get(rung, Noise(rung, None, 0, 0))
    return (coded, mean, noise) if coded.choices else None


def _idle(axis: space.axis.Axis, values: Mapping[str, object]) -> bool:
    try:
        return bool(axis.idle(values))
    except (KeyError, TypeError, ValueError):  # an odd table: the axis is taken at its word
        return False


def _residual(x_DP: np.ndarray, pinv_PD: np.ndarray, mean: Means) -> Residual | None:
    """None where the model is saturated, or documents are not shared."""
    df = len(x_DP) - int(np.linalg.matrix_rank(x_DP))
    if df == 0 or mean.ratios_DK is None:
        return None
    left_D = mean.log_loss_D - x_DP @ (pinv_PD @ mean.log_loss_D)
    leverage_D = np.einsum("dp,pd->d", x_DP, pinv_PD)
    left_DK = mean.ratios_DK - 1 - x_DP @ (pinv_PD @ (mean.ratios_DK - 1))
    count = left_DK.shape[1]
    return Residual(
        mean_square=float(left_D @ left_D) / df,
        df=df,
        of_sigma2=float(((1 - leverage_D) / mean.seeds_D).sum()) / df,
        of_documents=float((left_DK**2).sum()) / (count * (count - 1)) / df,
    )


def _effect(
    blank: AxisEffect, weights_D: np.ndarray, mean: Means, noise: Noise, residual: Residual | None
) -> AxisEffect:
    known = replace(blank, effect=float(weights_D @ mean.log_loss_D))
    found = contrast_of(mean, weights_D, noise, residual)
    if found is None or noise.sigma is None:
        return replace(known, reason=_unknown(noise))
    per_seed = noise.sigma * sqrt(float(weights_D @ weights_D) / 2)  # as of two designs
    needed = seeds_needed(per_seed, found.value)
    return replace(known, low=found.low, high=found.high, p=found.p, seeds_needed=needed)


def _interaction(blank: Interaction, weights_D: np.ndarray, mean: Means, noise: Noise) -> Interaction:
    known = replace(blank, effect=float(weights_D @ mean.log_loss_D))
    found = contrast_of(mean, weights_D, noise)
    if found is None:
        return replace(known, reason=_unknown(noise))
    return replace(known, low=found.low, high=found.high, p=found.p)


def _unknown(noise: Noise) -> str:
    if noise.sigma is not None:
        return "the designs share fewer than two held-out documents"
    return "repeats are identical, so the noise is unknown" if noise.df else (
        f"no design has two seeds at rung {noise.rung}, so the noise is unknown"
    )  # fmt: skip


def _cells(codes_DA: np.ndarray, axes: tuple[int, ...]) -> list[dict[tuple[int, ...], list[int]]]:
    """Designs that agree in every axis but `axes`, by their choices of these. An idle axis agrees with its reference:
    which of the two a design has follows from the others."""
    rest_DA = np.maximum(np.delete(codes_DA, axes, axis=1), 0)
    cells: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
    for d, (rest, own) in enumerate(zip(rest_DA.tolist(), codes_DA[:, list(axes)].tolist(), strict=True)):
        cells[tuple(rest)][tuple(own)].append(d)
    return [dict(cell) for cell in cells.values()]


def _pairs(coded: Coding, axis: int, choice: int) -> list[tuple[int, int]]:
    cells = _cells(coded.codes_DA, (axis,))
    return [pair for cell in cells for pair in product(cell.get((0,), ()), cell.get((choice,), ()))]


def _confounded(names: Sequence[str]) -> str:
    if not names:
        return "no two designs differ in it alone, so it cannot be told apart from the rest"
    more = len(names) - _NAMED
    named = [*names[:_NAMED], f"{more} more"] if more > 0 else list(names)
    return f"its designs do not tell it apart from {joined(named)}"


def _holm(p_values: Sequence[float | None]) -> list[float | None]:
    known = [i for i, p in enumerate(p_values) if p is not None]
    adjusted: list[float | None] = [None] * len(p_values)
    for i, p in zip(known, holm(np.array([p_values[i] for i in known], dtype=float)).tolist(), strict=True):
        adjusted[i] = p
    return adjusted


def _verdict(effect: float | None, p: float | None) -> str:
    if p is None or effect is None or p >= ALPHA:
        return "undecided"
    return "better" if effect < 0 else "worse"
