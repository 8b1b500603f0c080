"""Trainings on several ranks, for `torchrun -m tests.trainer.ranks CORPUS HOME`: one launch for all, as it takes long.

Each trains the tests' recipe in float32 to the last rung, in a folder of its own.
"""

import os
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

LAST = len(RECIPE.rungs)


def spec(corpus: Path) -> TrialSpec:
    design = Design.parse("mean-w32-causal-attn_mlp-O0-n8")
    return TrialSpec(design, SIZE, replace(RECIPE, precision="32-true", pieces=12), 0, str(corpus))


def main(corpus: Path, home: Path) -> None:
    torch.set_num_threads(1)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    sharded = Parallel("fsdp", devices=ranks)
    pretrain(spec(corpus), home / "sharded", LAST, parallel=sharded)
    pretrain(spec(corpus), home / "parallel", LAST, parallel=Parallel("ddp", devices=ranks, accumulate=2))
    try:  # only the first rank hears of the wish to stop
        pretrain(spec(corpus), home / "stopped", LAST, lambda step, _: rank > 0 or step < 7, sharded)
    except Interrupted as stopped:
        assert str(stopped) == "stopped at step 7"
    pretrain(spec(corpus), home / "stopped", LAST, parallel=sharded)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
