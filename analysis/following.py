"""What to run next: by how much one more seed of a design is expected to lower the loss of the design finally chosen.

The knowledge gradient for ranking and selection with normal beliefs (Frazier, Powell and Dayanik 2008, section 3), of
log losses, where less is better. Prior: the true mean of every design is normal with the mean of all designs and the
variance tau^2 of their spread (`noise.spread`). Seeds have the pooled standard deviation sigma, taken as known. After
n_d seeds the belief of design d has
    precision  b_d = 1 / tau^2 + n_d / sigma^2
    mean       m_d = (prior mean / tau^2 + n_d mean_d / sigma^2) / b_d
One more seed will move the mean by a normal amount of standard deviation
    s_d = sqrt(1 / b_d - 1 / (b_d + 1 / sigma^2)),
and lowers the least mean, in expectation, by
    worth_d = s_d f(-|m_d - min over others of m| / s_d),   f(z) = z Phi(z) + phi(z),
which times the least loss is in nats per token. The loss is the one on the held-out documents of the sweep: seeds
cannot tell anything about other documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special, stats

from analysis.contrasts import means, shared_rung
from analysis.effects import pooled_noise
from analysis.noise import spread
from analysis.summary import Row
from analysis.table import comparable
from analysis.words import count, percent

__all__ = ["Next", "chances_best", "following", "knowledge_gradient"]

MOST = 5
LEAST = 1e-6  # of the loss: a seed that is worth less is worth nothing


@dataclass(frozen=True)
class Next:
    """One more seed of a design. seeds: it has now; worth: nats per token; chance_best: that its true loss is least."""

    design: str
    role: str
    seeds: int
    worth: float
    chance_best: float
    reason: str


def following(frame: pd.DataFrame, metric: str, rows: Sequence[Row]) -> tuple[Next, ...]:
    """The baseline and arms of `rows` whose next seed is worth most, best first, at most `MOST`.

    Nothing where noise or spread are unknown, designs do not differ beyond noise, or no seed is worth it. Designs that
    were pruned before `shared_rung` are left out: what they lack is budget.
    """
    roles = {row.design: row.role for row in rows if row.role in ("baseline", "arm")}
    usable = comparable(frame[frame["role"] != "rate"], metric)
    usable = usable[usable["design"].isin(list(roles))]
    rung = shared_rung(usable)
    if rung is None:
        return ()
    mean = means(usable[usable["rung"] == rung], metric)
    noise = pooled_noise(usable, metric)[rung]
    tau = spread(mean, noise)
    if noise.sigma is None or not tau:
        return ()
    precision_D = 1 / tau**2 + mean.seeds_D / noise.sigma**2
    own_D = mean.seeds_D / noise.sigma**2 / precision_D
    mean_D = own_D * mean.log_loss_D + (1 - own_D) * mean.log_loss_D.mean()
    share_D = knowledge_gradient(mean_D, precision_D, noise.sigma)
    chance_D = chances_best(mean_D, precision_D**-0.5)
    worthy = [d for d in range(len(share_D)) if share_D[d] > LEAST]
    order = sorted(worthy, key=lambda d: (-share_D[d], mean.designs[d]))[:MOST]
    best = int(np.argmin(mean_D))
    return tuple(
        Next(
            design=mean.designs[d],
            role=roles[mean.designs[d]],
            seeds=int(mean.seeds_D[d]),
            worth=float(share_D[d] * np.exp(mean_D[best])),
            chance_best=float(chance_D[d]),
            reason=_reason(d == best, int(mean.seeds_D[d]), float(chance_D[d])),
        )
        for d in order
    )


def knowledge_gradient(mean_D: np.ndarray, precision_D: np.ndarray, sigma: float) -> np.ndarray:
    """Expected fall of the least mean by one more sample of each, (D,) of at least two designs."""
    moved_D = np.sqrt(1 / precision_D - 1 / (precision_D + 1 / sigma**2))
    least, second = np.partition(mean_D, 1)[:2]
    others_D = np.where(np.arange(len(mean_D)) == np.argmin(mean_D), second, least)
    z_D = -np.abs(mean_D - others_D) / moved_D
    return moved_D * np.maximum(z_D * special.ndtr(z_D) + stats.norm.pdf(z_D), 0.0)


def chances_best(mean_D: np.ndarray, sd_D: np.ndarray) -> np.ndarray:
    """The chance of each of independent normal beliefs to be the least, (D,): integral of its density times the
    chance that all others are larger, by the trapezoidal rule."""
    low = (mean_D - 8 * sd_D).min()
    high = (mean_D + 8 * sd_D).min()  # beyond it the design that has it is less
    x_X = np.linspace(low, high, 2001)
    z_XD = (x_X[:, None] - mean_D) / sd_D
    larger_XD = special.log_ndtr(-z_XD)
    density_XD = np.exp(larger_XD.sum(axis=1, keepdims=True) - larger_XD - z_XD**2 / 2) / sd_D
    chance_D = density_XD.sum(axis=0)
    return chance_D / chance_D.sum()


def _reason(best: bool, seeds: int, chance: float) -> str:
    so_far = count(seeds, "seed")
    likely = percent(chance) if chance >= 0.01 else "under 1%"
    if best:
        return f"the best so far, on {so_far}: a worse one could change the choice"
    return f"the best with a chance of {likely}, on {so_far}: a better one could change the choice"
