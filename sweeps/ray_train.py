"""One trial, or a plan's stages, on several devices or nodes of a Ray cluster, by Ray Train.

A trial starts its ranks anew for every rung; a plan's ranks train all of its stages. Whoever calls starts them again
after a fault, since what a fault is worth is for the caller to say.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.train import ControllerError, RunConfig, ScalingConfig, WorkerGroupError, get_context
from ray.train.torch import TorchTrainer, get_device
from ray.util import placement_group, remove_placement_group

from search_space.errors import UsageError
from trainer.parallel import Parallel
from trainer.plan import Plan
from trainer.pretrain import pretrain
from trainer.stages import run_stages, stage_folder
from trainer.trial import Diverged, Interrupted, OutOfMemory, Progress, RungResult, Stalled, TrialSpec

__all__ = ["RankDied", "pretrain_on_ray", "run_stages_on_ray"]

_OWN = (UsageError, Diverged, OutOfMemory, Interrupted, Stalled)  # what `pretrain` raises on purpose
_SOON = 5.0  # seconds in which a cluster with room for the ranks has given it to them
_LOST_TOUCH = ("gloo", "NCCL", "Connection reset", "Connection closed")  # what the others say of a rank that ended


class RankDied(RayError):
    """A rank's process or machine went away; the fault is the machine's."""


def pretrain_on_ray(
    spec: TrialSpec,
    folder: Path,
    rung: int,
    parallel: Parallel,
    threads: int = 1,
    gpus: float | None = None,
    listener: ActorHandle | None = None,
) -> RungResult:
    """`trainer.pretrain.pretrain` with one Ray Train worker per rank, on the cluster that Ray is connected to.

    folder: one that all nodes share. parallel: of a strategy of many ranks. threads, gpus: of each rank; by default
    one GPU where this process sees any. listener: an actor whose `hear(step, tokens)` is told of steps, as many as it
    keeps up with, and says whether to go on.
    Raises what `pretrain` raises, also `Interrupted` with a checkpoint written, and `RankDied`.
    """
    config = {"spec": spec, "folder": str(folder.resolve()), "rung": rung, "listener": listener}
    _train(_rank, config, parallel, threads, gpus, f"rung-{rung}")
    return RungResult.load(RungResult.path(folder, rung))


def run_stages_on_ray(
    plan: Plan,
    folder: Path,
    threads: int = 1,
    gpus: float | None = None,
    listener: ActorHandle | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[RungResult]:
    """`trainer.stages.run_stages` with one Ray Train worker per rank of `plan.parallel`; as `pretrain_on_ray`.

    The listener is told of the steps of all stages. Where the cluster lacks room for all ranks this says so and waits
    for it, as long as it takes.
    """
    config = {"plan": plan, "folder": str(folder.resolve()), "listener": listener}
    _wait_for_room(plan.parallel.ranks, _resources(threads, gpus), say)
    _train(_stages_rank, config, plan.parallel, threads, gpus, plan.name)
    places = (stage_folder(folder, number, stage) for number, stage in enumerate(plan.stages))
    return [RungResult.load(RungResult.path(place, 1)) for place in places]


def _train(
    rank: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    parallel: Parallel,
    threads: int,
    gpus: float | None,
    name: str,
) -> None:
    """Run `rank` on every rank. Raises what it raises, and `RankDied`."""
    config |= {"parallel": asdict(parallel), "threads": threads}
    resources = _resources(threads, gpus)
    scaling: Any = ScalingConfig(num_workers=parallel.ranks, use_gpu="GPU" in resources, resources_per_worker=resources)
    run: Any = RunConfig(name=name, storage_path=f"{config['folder']}/ray")
    try:
        TorchTrainer(rank, train_loop_config=config, scaling_config=scaling, run_config=run).fit()
    except WorkerGroupError as error:
        raise _cause(list(error.worker_failures.values())) from error
    except ControllerError as error:
        raise RankDied(" ".join(str(error.controller_failure).split())) from error


def _resources(threads: int, gpus: float | None) -> dict[str, float]:
    """Of a rank, as Ray counts them."""
    gpus = float(torch.cuda.is_available()) if gpus is None else gpus
    return {"CPU": threads} | ({"GPU": gpus} if gpus else {})


def _wait_for_room(ranks: int, resources: dict[str, float], say: Callable[[str], None]) -> None:
    """Ray Train would wait in silence. What is asked for here also has an autoscaler add nodes."""
    room = placement_group([resources] * ranks)
    try:
        if not room.wait(_SOON):
            wanted = ", ".join(f"{amount:g} {kind}" for kind, amount in resources.items())
            say(f"no room for {ranks} ranks of {wanted} each; waits for nodes")
            while not room.wait(60):
                pass
    finally:
        remove_placement_group(room)


def _cause(failures: list[Exception]) -> Exception:
    """Why the ranks ended: what one of them raised, not what the others made of its end."""
    for failure in failures:
        if isinstance(failure, _OWN):
            return failure
    if any(type(failure).__module__.startswith("ray.") for failure in failures):
        return RankDied("a rank's process died")
    bugs = [f for f in failures if not any(words in str(f) for words in _LOST_TOUCH)]
    return bugs[0] if bugs else RankDied("the ranks lost touch with each other")


def _rank(config: dict[str, Any]) -> None:
    told, parallel = _prepare(config)
    pretrain(config["spec"], Path(config["folder"]), config["rung"], told, parallel, get_device())


def _stages_rank(config: dict[str, Any]) -> None:
    told, parallel = _prepare(config)
    plan = config["plan"]

    def watch(stage: int, step: int, tokens: int) -> bool:
        return told(sum(s.steps for s in plan.stages[:stage]) + step, tokens)

    run_stages(plan, Path(config["folder"]), watch, get_device(), parallel)


def _prepare(config: dict[str, Any]) -> tuple[Progress, Parallel]:
    """Of a rank's process: who is told of its steps, and how ranks share the work."""
    torch.set_num_threads(config["threads"])
    leads = get_context().get_world_rank() == 0
    told = _telling(config["listener"]) if leads and config["listener"] else lambda step, tokens: True
    return told, Parallel(**config["parallel"])


def _telling(listener: ActorHandle) -> Progress:
    """Tell `listener` of a step without waiting: its answer is looked at in a later one."""
    asked: list[ray.ObjectRef[bool]] = []
    go_on = True

    def progress(step: int, tokens: int) -> bool:
        nonlocal go_on
        if asked and not ray.wait(asked, timeout=0)[0]:
            return go_on
        go_on = not asked or ray.get(asked.pop())
        asked.append(listener.hear.remote(step, tokens))
        return go_on

    return progress
