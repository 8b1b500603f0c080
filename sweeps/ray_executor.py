"""Trials on Ray: one warm actor per slot.

An actor keeps its process, with torch imported, from job to job. It trains in one thread and answers questions about
progress in another. An actor that dies takes its job with it as a fault of the machine, and a new one takes its slot.
"""

import os
import threading
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from search_space.errors import UsageError
from sweeps.executor import Event, Failed, Finished, Job, Stopped
from trainer.trial import Interrupted, RungResult, Stalled

__all__ = ["RayExecutor"]

# glibc gives large tensors back to the system after every step and faults them in again on the next; keeping them
# made a training step 1.1 to 1.2 times as fast (docs/log.md).
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
}
OBJECT_STORE_BYTES = 100 * 2**20  # only small results pass through it


@ray.remote(concurrency_groups={"control": 1})  # ty: ignore[no-matching-overload]  (Ray's stubs lack the option)
class _Worker:
    """The actor. `train` runs in the default thread, the other methods in the `control` group's."""

    def __init__(self, threads: int) -> None:
        import trainer.pretrain  # noqa: F401  (warm before the first job)

        self._threads = threads
        self._at: tuple[int, int] = (0, 0)
        self._stopping = threading.Event()

    def train(self, job: Job) -> RungResult:
        import torch  # here, not above: the driver's process needs neither

        from trainer.pretrain import pretrain

        torch.set_num_threads(self._threads)  # of this thread, which is not the one that made the actor
        self._at = (0, 0)

        def progress(step: int, tokens: int) -> bool:
            self._at = (step, tokens)
            return not self._stopping.is_set()

        return pretrain(job.spec, job.folder, job.rung, progress, job.parallel)

    @ray.method(concurrency_group="control")
    def at(self) -> tuple[int, int]:
        return self._at

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        self._stopping.set()


class RayExecutor:
    """Starts Ray here with `slots` CPUs' worth of workers, or uses the cluster at `address`."""

    def __init__(self, slots: int, threads: int = 1, address: str = "") -> None:
        self.slots, self._threads = slots, threads
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options: dict[str, Any] = {"address": address}
        if not address:
            options = {"address": "local", "num_cpus": slots * threads, "include_dashboard": False}
            options["object_store_memory"] = OBJECT_STORE_BYTES
        environment: dict[str, Any] = {"env_vars": KEEP_MEMORY | {"OMP_NUM_THREADS": str(threads)}}
        options |= {"log_to_driver": False, "logging_level": "ERROR", "runtime_env": environment}
        try:
            ray.init(**options)
        except ConnectionError as error:
            raise UsageError(f"address: no Ray cluster answers at {address!r} ({error})") from error
        self._idle: list[ActorHandle] = [self._hire() for _ in range(slots)]
        self._running: dict[ray.ObjectRef, tuple[Job, ActorHandle]] = {}
        self._at: dict[int, tuple[int, int]] = {}

    def _hire(self) -> ActorHandle:
        actor_class: Any = _Worker
        return actor_class.options(num_cpus=self._threads).remote(self._threads)

    def submit(self, job: Job) -> None:
        actor = self._idle.pop()
        self._running[actor.train.remote(job)] = (job, actor)

    def poll(self, timeout: float) -> list[Event]:
        if not self._running:
            return []
        done, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=timeout)
        return [self._end(ref) for ref in done]

    def _end(self, ref: "ray.ObjectRef[RungResult]") -> Event:
        job, actor = self._running.pop(ref)
        self._at.pop(job.number, None)
        try:
            result = ray.get(ref)
        except RayTaskError as error:
            self._idle.append(actor)
            if isinstance(error.cause, Interrupted):
                return Stopped(job)
            job.folder.mkdir(parents=True, exist_ok=True)
            (job.folder / "error.txt").write_text(str(error))
            return Failed(job, _reason(error), machine=isinstance(error.cause, Stalled))
        except RayError:  # the actor, its node, or too little memory there
            self._idle.append(self._hire())
            return Failed(job, "the worker process died", machine=True)
        self._idle.append(actor)
        return Finished(job, result)

    def progress(self) -> dict[int, tuple[int, int]]:
        asked: dict[Any, int] = {actor.at.remote(): job.number for job, actor in self._running.values()}
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0.5) if asked else ([], [])
        for ref in answered:
            try:
                self._at[asked[ref]] = ray.get(ref)
            except RayError:  # `poll` will hear of it
                continue
        return dict(self._at)

    def stop(self) -> None:
        for _, actor in self._running.values():
            actor.stop.remote()

    def close(self) -> None:
        ray.shutdown()


def _reason(error: RayTaskError) -> str:
    cause = error.cause
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"
