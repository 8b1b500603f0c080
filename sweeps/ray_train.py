"""One trial on several devices or nodes of a Ray cluster, by Ray Train."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device

from trainer.parallel import Parallel
from trainer.pretrain import pretrain
from trainer.trial import RungResult, TrialSpec

__all__ = ["pretrain_on_ray"]


def pretrain_on_ray(spec: TrialSpec, folder: Path, rung: int, parallel: Parallel) -> RungResult:
    """`trainer.pretrain.pretrain` with one Ray Train worker per rank, on the cluster that Ray is connected to.

    `folder` must be one that all nodes share, and the strategy one of many ranks. Raises Ray's error around what
    `pretrain` raises.
    """
    gpu = torch.cuda.is_available()
    config = {"spec": spec, "folder": str(folder.resolve()), "rung": rung, "parallel": asdict(parallel)}
    scaling: Any = ScalingConfig(num_workers=parallel.ranks, use_gpu=gpu, resources_per_worker={"CPU": 1})
    run: Any = RunConfig(name=f"rung-{rung}", storage_path=str(folder.resolve() / "ray"))
    TorchTrainer(_rank, train_loop_config=config, scaling_config=scaling, run_config=run).fit()
    return RungResult.load(RungResult.path(folder, rung))


def _rank(config: dict[str, Any]) -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    parallel = Parallel(**config["parallel"])
    pretrain(config["spec"], Path(config["folder"]), config["rung"], parallel=parallel, device=get_device())
