"""One rank of a training run, for `torchrun -m tests.trainer.ranks CORPUS FOLDER STRATEGY ACCUMULATE [STOP]`.

Trains the tests' recipe in float32 to the last rung; with STOP, until that step.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from search_space.design import Design
from tests.tiny import RECIPE, SIZE
from trainer.parallel import Parallel
from trainer.pretrain import pretrain
from trainer.trial import Interrupted, TrialSpec

SPEC_RECIPE = replace(RECIPE, precision="32-true", pieces=12)


def spec(corpus: str) -> TrialSpec:
    return TrialSpec(Design.parse("mean-w32-causal-attn_mlp-O0-n8"), SIZE, SPEC_RECIPE, 0, corpus)


def main(corpus: str, folder: str, strategy: str, accumulate: str, stop: str = "0") -> None:
    import os

    torch.set_num_threads(1)
    ranks = int(os.environ["WORLD_SIZE"])
    parallel = Parallel(strategy, devices=ranks, accumulate=int(accumulate))  # ty: ignore[invalid-argument-type]

    def progress(step: int, tokens: int) -> bool:
        """Only the first rank hears of the wish to stop."""
        return int(os.environ["RANK"]) > 0 or step != int(stop)

    try:
        pretrain(spec(corpus), Path(folder), len(RECIPE.rungs), progress, parallel)
    except Interrupted:
        assert int(stop)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
