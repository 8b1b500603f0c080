"""Simulated sweeps with a known truth: how often intervals cover it, and how often a verdict is false.

`python -m tests.analysis.calibration [SWEEPS [TABLE...]]` prints the tables of docs/calibration.md: `effects`, `axes`,
`pruned`, `unequal`.

Arrays instead of tables make a sweep take milliseconds: the code under test starts where `compare` and `axis_effects`
have read the table. Sweeps with pruning are tables, since what is judged of them, and at which rung, is read there.
Shapes: D designs, K documents, T trials.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import exp, isnan, sqrt

import numpy as np
import pandas as pd

from analysis.axes import Coding, crossed, fitted
from analysis.contrasts import Means
from analysis.effects import Effect, Noise, compare, inferred, judged
from sweeps.pruning import Cutoff, Halving, Pruner, Reached, Standings, Unpruned

__all__ = ["AXES", "EFFECTS", "PRUNED", "UNEQUAL", "Outcome", "Scene", "axes", "effects", "pruned"]


@dataclass(frozen=True)
class Scene:
    """sigma: of log losses between seeds; documents, document_sigma: number and spread of the log losses per document,
    own to each design; tau: of what designs depart from the additive model; spread: of true log losses of arms;
    noisier: sigma of every second arm, in that of the others; carried: correlation of a seed's noise at the two rungs
    of a sweep with a pruner."""

    name: str
    sigma: float
    documents: int
    document_sigma: float
    base_seeds: int = 3
    arm_seeds: int = 1
    arms: int = 12
    spread: float = 0.0
    tau: float = 0.0
    noisier: float = 1.0
    pruner: Pruner = field(default_factory=Unpruned)
    carried: float = 0.0

    @property
    def df(self) -> int:
        return self.base_seeds - 1 + self.arms * (self.arm_seeds - 1)

    @property
    def seeds_D(self) -> np.ndarray:
        return np.array([self.base_seeds, *[self.arm_seeds] * self.arms])

    @property
    def sigma_D(self) -> np.ndarray:
        return np.r_[self.sigma, self.sigma * np.where(np.arange(self.arms) % 2, self.noisier, 1)]


@dataclass(frozen=True)
class Outcome:
    """coverage: of 95% intervals. better, wrong: shares of sweeps with a truly equal arm called better, or anything.

    part: coverage of the noisier arms; with a pruner, of the arms judged at the last rung, a share `last` of all."""

    coverage: float
    error: float
    better: float
    wrong: float
    interactions: float = float("nan")
    part: float = float("nan")
    part_error: float = float("nan")
    last: float = float("nan")


EFFECTS = [
    Scene("seeds only", 0.05, 48, 0.001),
    Scene("seeds more than documents", 0.15, 48, 0.2),
    Scene("as much", 0.03, 48, 0.2),
    Scene("documents more than seeds", 0.005, 48, 0.2),
    Scene("documents only", 0.0002, 48, 0.2),
    Scene("as much, five seeds of the baseline", 0.03, 48, 0.2, base_seeds=5),
    Scene("as much, three seeds of all", 0.05, 48, 0.2, arm_seeds=3),
    Scene("arms far apart", 0.15, 48, 0.2, spread=0.7),
    Scene("30 equal arms, seeds", 0.05, 48, 0.05, arms=30),
    Scene("30 equal arms, documents", 0.005, 48, 0.2, arms=30),
]
AXES = [
    Scene("additive, seeds", 0.05, 48, 0.02, arms=15),
    Scene("additive, documents", 0.005, 48, 0.2, arms=15),
    Scene("lack of fit as seeds", 0.05, 48, 0.02, arms=15, tau=0.05),
    Scene("lack of fit, five seeds of the baseline", 0.03, 48, 0.1, arms=15, base_seeds=5, tau=0.1),
    Scene("little lack of fit, two seeds of all", 0.05, 48, 0.1, arms=15, base_seeds=2, arm_seeds=2, tau=0.02),
]
PRUNED = [
    Scene("halving, noise is new", 0.05, 48, 0.05, pruner=Halving(2), carried=0.1),
    Scene("halving, noise is carried", 0.05, 48, 0.05, pruner=Halving(2), carried=0.9),
    Scene("cut-off, noise is carried", 0.05, 48, 0.05, pruner=Cutoff(4), carried=0.9),
    Scene("halving, three seeds of all", 0.05, 48, 0.05, arm_seeds=3, pruner=Halving(2), carried=0.9),
    Scene("cut-off, three seeds of all", 0.05, 48, 0.05, arm_seeds=3, pruner=Cutoff(20), carried=0.9),
    Scene("halving, three seeds of all, arms apart", 0.05, 48, 0.05, 3, 3, spread=0.1, pruner=Halving(2), carried=0.9),
    Scene("30 equal arms, halving", 0.05, 48, 0.05, arms=30, pruner=Halving(2), carried=0.9),
    Scene("30 equal arms, cut-off", 0.05, 48, 0.05, arms=30, pruner=Cutoff(8), carried=0.9),
]
UNEQUAL = [
    Scene("half with 2 sigma", 0.05, 48, 0.05, noisier=2),
    Scene("half with 4 sigma", 0.05, 48, 0.05, noisier=4),
    Scene("half with a quarter of sigma", 0.05, 48, 0.05, noisier=0.25),
    Scene("half with 2 sigma, three seeds of all", 0.05, 48, 0.05, arm_seeds=3, noisier=2),
    Scene("half with 4 sigma, three seeds of all", 0.05, 48, 0.05, arm_seeds=3, noisier=4),
    Scene("30 equal arms, half with 2 sigma", 0.05, 48, 0.05, arms=30, noisier=2),
    Scene("30 equal arms, half with 4 sigma", 0.05, 48, 0.05, arms=30, noisier=4),
]
_LEVELS = (3, 2, 2, 2)
_RUNGS = (1.2, 0.8)
"""Loss of the baseline at the rungs of a sweep with a pruner."""


def effects(scene: Scene, sweeps: int, seed: int = 0) -> Outcome:
    """Arms against a baseline of loss 0.8."""
    random = np.random.default_rng(seed)
    covered, noisier, better, wrong = [], [], [], []
    for _ in range(sweeps):
        truth_D = np.r_[0.0, random.normal(0, scene.spread, scene.arms)]
        mean, noise, losses_DK = _measured(truth_D, scene, random)
        assert noise.sigma is not None
        found = []
        for d in range(1, scene.arms + 1):
            loss, other = (0.8 * exp(mean.log_loss_D[i]) for i in (d, 0))
            blank = Effect(str(d), "arm", 1, scene.arm_seeds, loss, other, loss - other)
            a, b = (0.8 * losses_DK[i] * exp(mean.log_loss_D[i]) for i in (d, 0))
            found.append(inferred(blank, scene.base_seeds, noise.sigma, noise.df, a, b))
        true = 0.8 * np.expm1(truth_D[1:])
        holds = [e.low <= t <= e.high for e, t in zip(found, true, strict=True)]
        covered.append(np.mean(holds))
        noisier.append(np.mean(holds[1::2]))
        verdicts = [e.verdict for e in judged(found)]
        equal = scene.spread == 0
        better.append(equal and "better" in verdicts)
        wrong.append(equal and set(verdicts) != {"undecided"})
    part, error = _mean(noisier) if scene.noisier != 1 else (float("nan"), float("nan"))
    return Outcome(*_mean(covered), float(np.mean(better)), float(np.mean(wrong)), part=part, part_error=error)


def pruned(scene: Scene, sweeps: int, seed: int = 0) -> Outcome:
    """As `effects`, of tables of two rungs; arms are pruned by their loss at the first."""
    random = np.random.default_rng(seed)
    held, last, better, wrong = [], [], [], []
    for _ in range(sweeps):
        truth_D = np.r_[0.0, random.normal(0, scene.spread, scene.arms)]
        found = compare(_table(truth_D, scene, random)).effects
        true = [_RUNGS[e.rung - 1] * np.expm1(truth_D[int(e.design)]) for e in found]
        held.append([e.low <= t <= e.high for e, t in zip(found, true, strict=True)])
        last.append([e.rung == len(_RUNGS) for e in found])
        verdicts = {e.verdict for e in found}
        better.append(scene.spread == 0 and "better" in verdicts)
        wrong.append(scene.spread == 0 and verdicts != {"undecided"})
    held_SA, last_SA = np.array(held), np.array(last)  # sweeps, arms
    share = last_SA.mean()
    part = (held_SA & last_SA).mean() / share
    error = _mean(list((held_SA & last_SA).mean(axis=1) - part * last_SA.mean(axis=1)))[1] / share  # of a ratio
    outcome = Outcome(*_mean(list(held_SA.mean(axis=1))), float(np.mean(better)), float(np.mean(wrong)))
    return replace(outcome, part=float(part), part_error=error, last=float(share))


def _table(truth_D: np.ndarray, scene: Scene, random: np.random.Generator) -> pd.DataFrame:
    """Of a sweep with pruning, what `compare` reads. Seeds of a design follow one another, the baseline's first."""
    ratios_DK, of_documents_D = _documents(len(truth_D), scene, random)
    design_T = np.repeat(np.arange(len(truth_D)), scene.seeds_D)
    first_T, new_T = random.normal(0, scene.sigma_D[design_T], (2, len(design_T)))
    noise_RT = np.stack([first_T, scene.carried * first_T + sqrt(1 - scene.carried**2) * new_T])
    losses_RT = np.array(_RUNGS)[:, None] * np.exp((truth_D + np.log(of_documents_D))[design_T] + noise_RT)
    stops_T = _stops(losses_RT[0], design_T > 0, scene.pruner)
    rows = [
        {
            "trial": t, "design": str(d), "role": "arm" if d else "baseline", "seed": t, "rung": rung,
            "state": "pruned" if stops_T[t] else "complete",
            "parallel": losses_RT[rung - 1, t], "parallel_documents": losses_RT[rung - 1, t] * ratios_DK[d],
        }
        for t, d in enumerate(design_T)
        for rung in ((1,) if stops_T[t] else (1, 2))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _stops(losses_T: np.ndarray, arm_T: np.ndarray, pruner: Pruner) -> np.ndarray:
    """Which trials are pruned where they come in their order; only arms are asked for, as in a sweep."""
    standings, waiting, stops_T = Standings(), [], np.zeros(len(losses_T), bool)
    for t, loss in enumerate(losses_T.tolist()):
        standings.add(Reached(t, loss, [], complete=False))
        waiting += [t] if arm_T[t] else []
        said = {i: pruner.decide(i, 1, standings, len(losses_T) - 1 - t) for i in waiting}
        stops_T[[i for i in waiting if said[i] == "prune"]] = True
        waiting = [i for i in waiting if said[i] == "wait"]
    return stops_T


def axes(scene: Scene, sweeps: int, seed: int = 0) -> Outcome:
    """Sixteen designs of a space of 24; half of the choices do nothing."""
    random = np.random.default_rng(seed)
    every = list(product(*map(range, _LEVELS)))
    choices = {f"axis{i}": tuple(map(str, range(n))) for i, n in enumerate(_LEVELS)}
    covered, crossings, better, wrong = [], [], [], []
    for _ in range(sweeps):
        picked = [0, *(1 + random.permutation(len(every) - 1)[: scene.arms])]
        coded = Coding(tuple(map(str, picked)), choices, np.array(every)[picked])
        names = [(f"axis{a}", str(c)) for a, c in coded.columns]
        main = dict(zip(names, (0.2, 0.0, -0.1, 0.0, 0.0), strict=True))
        truth_D = coded.matrix()[:, 1:] @ np.array(list(main.values())) + random.normal(0, scene.tau, len(picked))
        mean, noise, _ = _measured(truth_D, scene, random)
        told = [e for e in fitted(coded, mean, noise) if e.low is not None]
        covered.append(np.mean([e.low <= main[e.axis, e.choice] <= e.high for e in told]))  # ty: ignore
        null = [e.verdict for e in told if main[e.axis, e.choice] == 0]
        better.append("better" in null)
        wrong.append(set(null) != {"undecided"})
        exact = crossed(coded, Means(mean.designs, mean.seeds_D, truth_D, None), noise)
        both = zip(crossed(coded, mean, noise), exact, strict=True)
        if exact:
            crossings.append(np.mean([i.low <= t.effect <= i.high for i, t in both]))  # ty: ignore
    return Outcome(*_mean(covered), float(np.mean(better)), float(np.mean(wrong)), float(np.mean(crossings)))


def _measured(truth_D: np.ndarray, scene: Scene, random: np.random.Generator) -> tuple[Means, Noise, np.ndarray]:
    """What a sweep finds of true log losses; the first design is the baseline."""
    ratios_DK, of_documents_D = _documents(len(truth_D), scene, random)
    seeds_D, sigma_D = scene.seeds_D, scene.sigma_D
    log_loss_D = truth_D + np.log(of_documents_D) + random.normal(0, sigma_D / np.sqrt(seeds_D))
    sizes = {size: int((seeds_D - 1)[sigma_D == size].sum()) for size in np.unique(sigma_D)}
    squares = sum(size**2 * random.chisquare(df) for size, df in sizes.items() if df)
    mean = Means(tuple(map(str, range(len(truth_D)))), seeds_D, log_loss_D, ratios_DK)
    return mean, Noise(1, sqrt(squares / scene.df), scene.df, 1), ratios_DK


def _documents(count: int, scene: Scene, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Losses of documents over their mean, (D, K), and the means, (D,)."""
    s = scene.document_sigma
    losses_DK = np.exp(random.normal(0, s, (count, scene.documents)) - s**2 / 2)
    of_documents_D = losses_DK.mean(axis=1)
    return losses_DK / of_documents_D[:, None], of_documents_D


def _mean(shares: list[float]) -> tuple[float, float]:
    """Mean over sweeps and its Monte-Carlo error: the intervals of one sweep share their noise."""
    return float(np.mean(shares)), float(np.std(shares, ddof=1) / sqrt(len(shares)))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def main(sweeps: int, names: Sequence[str]) -> None:
    tables = {
        "effects": (effects, EFFECTS),
        "axes": (axes, AXES),
        "pruned": (pruned, PRUNED),
        "unequal": (effects, UNEQUAL),
    }
    for name in names or tables:
        run, scenes = tables[name]
        for scene in scenes:
            o = run(scene, sweeps)
            cells = [scene.name, scene.df, f"{_percent(o.coverage)} ± {_percent(o.error)}"]
            cells += [] if isnan(o.part) else [f"{_percent(o.part)} ± {_percent(o.part_error)}"]
            cells += [_percent(share) for share in (o.last, o.better, o.wrong, o.interactions) if not isnan(share)]
            print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000, sys.argv[2:])
