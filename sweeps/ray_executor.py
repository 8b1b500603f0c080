"""Trials on Ray: one warm actor per slot.

An actor keeps its process, with torch imported, from job to job. It trains in one thread and answers questions about
progress in another. An actor that dies takes its job with it as a fault of the machine, and a new one takes its slot.

A job is given to an actor that has arrived, never to one that the cluster has no room for yet: where a node is gone,
the jobs that would have run there wait for the next one, and no fault is counted for waiting.

A trial of several ranks is run by Ray Train; its actor only listens, and takes no CPU.
"""

import os
import signal
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import AuthenticationError, RayError, RayTaskError, RuntimeEnvSetupError

from search_space.errors import UsageError
from sweeps.executor import Event, Failed, Finished, Job, Stopped, fault_of
from trainer.parallel import Parallel
from trainer.trial import Interrupted, RungResult

__all__ = ["CODE", "RayExecutor", "knock"]

# glibc gives large tensors back to the system after every step and faults them in again on the next; keeping them
# made a training step 1.1 to 1.2 times as fast (docs/log.md).
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
}
# Ray Train gives up on ranks that have not started by then, and begins again: for ever, on a busy machine or cluster.
PATIENCE = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1800"}
OBJECT_STORE_BYTES = 100 * 2**20  # only small results pass through it
CONNECT_SECONDS = 10.0
_ROOT = Path(__file__).parents[1]
CODE = [str(_ROOT / name) for name in ("search_space", "trainer", "analysis", "reports", "sweeps", "lclab")]
"""Folders that are sent to a cluster, so that its machines run the code that is here."""
_IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # which has sent the code already


@ray.remote(concurrency_groups={"control": 1})  # ty: ignore[no-matching-overload]  (Ray's stubs lack the option)
class _Worker:
    """The actor. `train` runs in the default thread, the other methods in the `control` group's."""

    def __init__(self, threads: int, gpus: float) -> None:
        import trainer.pretrain  # noqa: F401  (warm before the first job)

        self._threads, self._gpus = threads, gpus
        self._at: tuple[int, int] | None = None
        self._stopping = threading.Event()

    def train(self, job: Job) -> RungResult:
        import torch  # here, not above: the driver's process needs neither

        from trainer.pretrain import pretrain

        if job.parallel.strategy != "one":
            self._at = None  # until the ranks have a place to run
            from sweeps.ray_train import pretrain_on_ray

            me = ray.get_runtime_context().current_actor
            return pretrain_on_ray(job.spec, job.folder, job.rung, job.parallel, self._threads, self._gpus, me)
        self._at = (0, 0)
        torch.set_num_threads(self._threads)  # of this thread, which is not the one that made the actor
        progress: Any = self.hear  # in here a method as any other
        return pretrain(job.spec, job.folder, job.rung, progress, job.parallel)

    @ray.method(concurrency_group="control")
    def process(self) -> tuple[str, int]:
        """Where it runs: node and process id."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    @ray.method(concurrency_group="control")
    def hear(self, step: int, tokens: int) -> bool:
        """Where the job is; whether it is to go on."""
        self._at = (step, tokens)
        return not self._stopping.is_set()

    @ray.method(concurrency_group="control")
    def at(self) -> tuple[int, int] | None:
        """Where the job is; None while it waits for a place to run."""
        return self._at

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        self._stopping.set()


class RayExecutor:
    """Starts Ray here with room for `slots` trials, or uses the cluster at `address`.

    threads, gpus: of each process that trains; `parallel` says how many of them a trial has.
    address: HOST:PORT, `auto` on a machine of the cluster, or ray://HOST:PORT from anywhere.
    Raises `UsageError` where no cluster answers, or where no machine of it has so many GPUs.
    """

    def __init__(
        self, slots: int, threads: int = 1, address: str = "", gpus: float = 0.0, parallel: Parallel | None = None
    ) -> None:
        self.slots, self._threads, self._gpus = slots, threads, gpus
        self._parallel = parallel or Parallel()
        _connect(address, slots * self._parallel.ranks, threads)
        _check_gpus(gpus)
        self._here = "" if address.startswith("ray://") else ray.get_runtime_context().get_node_id()
        self._processes: dict[ActorHandle, tuple[str, int]] = {}
        self._waiting: deque[Job] = deque()
        self._stopped: list[Event] = []  # before they began
        self._arriving: dict[ray.ObjectRef, ActorHandle] = {}
        self._idle: list[ActorHandle] = []
        self._running: dict[ray.ObjectRef, tuple[Job, ActorHandle]] = {}
        self._at: dict[int, tuple[int, int]] = {}
        self._killed: dict[int, str] = {}
        for _ in range(slots):
            self._hire()

    def _hire(self) -> None:
        """Ask the cluster for an actor; it arrives when there is room for it."""
        actor_class: Any = _Worker
        one = self._parallel.strategy == "one"
        resources = {"num_cpus": self._threads, "num_gpus": self._gpus} if one else {"num_cpus": 0}
        actor = actor_class.options(**resources).remote(self._threads, self._gpus)
        self._arriving[actor.process.remote()] = actor

    def _welcome(self, ref: "ray.ObjectRef[Any]") -> None:
        """An actor has arrived, or its node has gone before it could."""
        actor = self._arriving.pop(ref)
        try:
            self._processes[actor] = ray.get(ref)
        except RayError as error:
            if isinstance(error, RuntimeEnvSetupError) or getattr(error, "actor_init_failed", False):
                raise UsageError(f"address: a worker cannot start there: {_last_line(error)}") from error
            self._hire()
        else:
            self._idle.append(actor)

    def submit(self, job: Job) -> None:
        self._waiting.append(job)
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and self._idle:
            job, actor = self._waiting.popleft(), self._idle.pop()
            self._running[actor.train.remote(job)] = (job, actor)

    def poll(self, timeout: float) -> list[Event]:
        if self._stopped or not (self._running or self._waiting):
            ended, self._stopped = self._stopped, []
            return ended
        refs = [*self._running, *self._arriving]
        if ray.wait(refs, timeout=timeout)[0]:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        else:
            ready = []
        ended = [self._end(ref) for ref in ready if ref in self._running]
        for ref in ready:
            if ref in self._arriving:
                self._welcome(ref)
        self._hand_out()
        return ended

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
            fault = "machine" if isinstance(error.cause, RayError) else fault_of(error.cause)
            return Failed(job, _reason(error), fault)
        except RayError:  # the actor, its node, or too little memory there
            self._dismiss(actor)  # should it live where it cannot be reached: two may not write to one folder
            self._processes.pop(actor)
            self._hire()
            return Failed(job, self._killed.pop(job.number, "the worker process died"), "machine")
        self._idle.append(actor)
        return Finished(job, result)

    def progress(self) -> dict[int, tuple[int, int]]:
        asked: dict[Any, int] = {actor.at.remote(): job.number for job, actor in self._running.values()}
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0.5) if asked else ([], [])
        for ref in answered:
            try:
                at = ray.get(ref)
            except RayError:  # `poll` will hear of it
                continue
            if at is not None:
                self._at[asked[ref]] = at
        return dict(self._at)

    def now(self) -> float:
        return time.monotonic()

    def kill(self, number: int, reason: str) -> None:
        self._killed[number] = reason
        for job, actor in self._running.values():
            if job.number == number:
                self._dismiss(actor)

    def _dismiss(self, actor: ActorHandle) -> None:
        """A process of this machine is killed here: Ray waits for a minute for one that stands still."""
        node, process = self._processes[actor]
        if node == self._here:
            with suppress(OSError):  # it is gone
                if b"ray::" in Path(f"/proc/{process}/cmdline").read_bytes():  # and its number is not another's yet
                    os.kill(process, signal.SIGKILL)
        ray.kill(actor)

    def stop(self) -> None:
        self._stopped += [Stopped(job) for job in self._waiting]
        self._waiting.clear()
        for _, actor in self._running.values():
            actor.stop.remote()

    def close(self) -> None:
        ray.shutdown()


def _connect(address: str, processes: int, threads: int) -> None:
    """Start Ray here with CPUs for so many processes that train, or connect to the cluster at `address`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"address": address}
    environment: dict[str, Any] = {"env_vars": KEEP_MEMORY | PATIENCE | {"OMP_NUM_THREADS": str(threads)}}
    if not address:
        options = {"address": "local", "num_cpus": processes * threads, "include_dashboard": False}
        options["object_store_memory"] = OBJECT_STORE_BYTES
    elif _IN_A_JOB not in os.environ:
        environment["py_modules"] = CODE
    options |= {"log_to_driver": False, "logging_level": "ERROR", "runtime_env": environment}
    knock(address)
    try:
        ray.init(**options)
    except (OSError, AuthenticationError, RuntimeError, ValueError) as error:
        if not address:
            raise
        raise _nobody_at(address, error) from error


def knock(address: str) -> None:
    """Raise `UsageError` where nobody listens at HOST:PORT; Ray itself tries for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise _nobody_at(address, error) from error


def _nobody_at(address: str, error: Exception) -> UsageError:
    return UsageError(f"address: no Ray cluster answers at {address!r} ({_last_line(error)})")


def _check_gpus(gpus: float) -> None:
    """Raise `UsageError` where no machine of the cluster has so many."""
    most = max((node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if gpus > most:
        ray.shutdown()
        has = f"at most {most:g} on a machine" if most else "none"
        raise UsageError(f"gpus: a worker wants {gpus:g} and this Ray cluster has {has}; lower gpus or choose another")


def _reason(error: RayTaskError) -> str:
    cause = error.cause
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"


def _last_line(error: Exception) -> str:
    """Where Ray says what went wrong."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip()[:300] if lines else type(error).__name__
