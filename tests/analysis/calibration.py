"""Simulated sweeps with a known truth: how often intervals cover it, and how often a verdict is false.

`python -m tests.analysis.calibration [SWEEPS]` prints the table of docs/calibration.md.

Arrays instead of tables make a sweep take milliseconds: the code under test starts where `compare` and `axis_effects`
have read the table. Shapes: D designs, K documents.
"""

import sys
from dataclasses import dataclass
from itertools import product
from math import exp, sqrt

import numpy as np

from analysis.axes import Coding, crossed, fitted
from analysis.contrasts import Means
from analysis.effects import Effect, Noise, inferred, judged

__all__ = ["AXES", "EFFECTS", "Outcome", "Scene", "axes", "effects"]


@dataclass(frozen=True)
class Scene:
    """sigma: of log losses between seeds; documents, document_sigma: number and spread of the log losses per document,
    own to each design; tau: of what designs depart from the additive model; spread: of true log losses of arms."""

    name: str
    sigma: float
    documents: int
    document_sigma: float
    base_seeds: int = 3
    arm_seeds: int = 1
    arms: int = 12
    spread: float = 0.0
    tau: float = 0.0

    @property
    def df(self) -> int:
        return self.base_seeds - 1 + self.arms * (self.arm_seeds - 1)


@dataclass(frozen=True)
class Outcome:
    """coverage: of 95% intervals. better, wrong: shares of sweeps with a truly equal arm called better, or anything."""

    coverage: float
    error: float
    better: float
    wrong: float
    interactions: float = float("nan")


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
_LEVELS = (3, 2, 2, 2)


def effects(scene: Scene, sweeps: int, seed: int = 0) -> Outcome:
    """Arms against a baseline of loss 0.8."""
    random = np.random.default_rng(seed)
    covered, better, wrong = [], [], []
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
        covered.append(np.mean([e.low <= t <= e.high for e, t in zip(found, true, strict=True)]))
        verdicts = [e.verdict for e in judged(found)]
        equal = scene.spread == 0
        better.append(equal and "better" in verdicts)
        wrong.append(equal and set(verdicts) != {"undecided"})
    return Outcome(*_mean(covered), float(np.mean(better)), float(np.mean(wrong)))


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
    count = len(truth_D)
    seeds_D = np.array([scene.base_seeds, *[scene.arm_seeds] * (count - 1)])
    s = scene.document_sigma
    losses_DK = np.exp(random.normal(0, s, (count, scene.documents)) - s**2 / 2)
    of_documents_D = losses_DK.mean(axis=1)
    log_loss_D = truth_D + np.log(of_documents_D) + random.normal(0, scene.sigma / np.sqrt(seeds_D))
    sigma = scene.sigma * sqrt(random.chisquare(scene.df) / scene.df)
    ratios_DK = losses_DK / of_documents_D[:, None]
    mean = Means(tuple(map(str, range(count))), seeds_D, log_loss_D, ratios_DK)
    return mean, Noise(1, sigma, scene.df, 1), ratios_DK


def _mean(shares: list[float]) -> tuple[float, float]:
    """Mean over sweeps and its Monte-Carlo error: the intervals of one sweep share their noise."""
    return float(np.mean(shares)), float(np.std(shares, ddof=1) / sqrt(len(shares)))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def main(sweeps: int) -> None:
    for run, scenes in ((effects, EFFECTS), (axes, AXES)):
        for scene in scenes:
            o = run(scene, sweeps)
            cells = [scene.name, scene.df, f"{_percent(o.coverage)} ± {_percent(o.error)}", _percent(o.better)]
            cells += [_percent(o.wrong)] + ([_percent(o.interactions)] if run is axes else [])
            print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
