"""A plan of four stages that trains in seconds, for tests and for `torchrun -m tests.trainer.staged CORPUS HOME`."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from tests.tiny import SIZE
from trainer.optim import OptimConfig
from trainer.parallel import Parallel
from trainer.plan import Plan, Rates, Stage
from trainer.stages import run_stages
from trainer.trial import Interrupted

STEPS = 6  # of a stage


def plan(corpus: Path, parallel: Parallel | None = None, steps: int = STEPS) -> Plan:
    """What is trained as published: first the adapter, then the encoder too, then all, then all anew."""

    def stage(name: str, rates: Rates, reconstruct: float = 0.2) -> Stage:
        return Stage(name, rates, steps, 2, steps * 2000, steps * 1200, 12, reconstruct)

    stages = [
        stage("adapter", Rates(adapter=3e-3)),
        stage("encoder", Rates(adapter=3e-3, encoder=1e-3)),
        stage("all", Rates(3e-3, 1e-3, 1e-3)),
        stage("sft", Rates(1e-3, 1e-3, 1e-3), reconstruct=0.5),
    ]
    return Plan(
        "staged",
        "mean-w64-causal-mlp-O0-n8",
        stages,
        str(corpus),
        batch=1200,
        length=256,
        optim=OptimConfig(kind="adamw", scaling="none"),
        lowest=1e-4,
        precision="32-true",
        documents=4,
        evaluate_every=2,
        checkpoint_every=2,
        size=replace(SIZE, positions="consecutive", phase_std=0.0, embeddings="separate"),
        parallel=parallel or Parallel(),
    )


def stop_after(steps: int) -> Callable[[int, int, int], bool]:
    """Asks to stop once so many steps of all stages are done, on the first rank alone."""
    first = int(os.environ.get("RANK", 0)) == 0
    return lambda number, step, tokens: not first or number * STEPS + step < steps


def main(corpus: Path, home: Path) -> None:
    """A run of all ranks, and one that stops in the midst of a stage and between two stages."""
    torch.set_num_threads(1)
    sharded = plan(corpus, Parallel("fsdp", devices=int(os.environ["WORLD_SIZE"])))
    run_stages(sharded, home / "whole")
    for steps in (STEPS - 3, 2 * STEPS + 1):
        try:
            run_stages(sharded, home / "stopped", stop_after(steps))
        except Interrupted as stopped:
            assert str(stopped) == f"stopped at step {steps % STEPS}"
    run_stages(sharded, home / "stopped")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
