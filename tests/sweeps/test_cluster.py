"""Sweeps on a cluster of several nodes, all on this machine: nodes that go and come, Ray Client, GPUs, ranks."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import optuna
import pytest
import ray
from mlflow import MlflowClient
from optuna.trial import FrozenTrial, TrialState
from ray.cluster_utils import Cluster

from search_space.design import Design
from search_space.errors import UsageError
from sweeps.executor import Event, Failed, Finished, Job, Stopped
from sweeps.home import Home
from sweeps.ray_executor import CODE, RayExecutor
from tests.processes import descendants, free_port, wait_for
from tests.ray_nodes import add_node, bare_cluster
from tests.sweeps.virtual import MINI
from tests.test_architecture import MAY_IMPORT
from tests.tiny import RECIPE, SIZE
from trainer.corpus import Corpus
from trainer.parallel import Parallel
from trainer.trial import RungResult, TrialSpec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def client_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def cluster(client_port: int) -> Iterator[Cluster]:
    with bare_cluster(ray_client_server_port=client_port) as cluster:
        yield cluster


@pytest.fixture
def nodes(cluster: Cluster) -> Iterator[Callable[..., object]]:
    """Adds a node; those that are left go after the test."""
    before = list(cluster.list_all_nodes())
    yield partial(add_node, cluster)
    for node in cluster.list_all_nodes():
        if node not in before:
            cluster.remove_node(node)


def start(home: Path, text_folder: Path, *overrides: str) -> "subprocess.Popen[str]":
    sweep = ["sweep", "run", str(MINI), f"corpus.source={text_folder}", "pruner=none", *overrides, "--home", str(home)]
    command = [sys.executable, "-m", "lclab", *sweep]
    return subprocess.Popen(command, stdout=-1, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def trials(home: Path) -> list[FrozenTrial]:
    try:
        return optuna.load_study(study_name="mini", storage=Home(home).study_url).get_trials()
    except KeyError:
        return []


def ended(home: Path) -> int:
    return sum(t.state.is_finished() for t in trials(home))


def job(corpus: Corpus, folder: Path, number: int, parallel: Parallel | None = None, **recipe: int) -> Job:
    spec = TrialSpec(Design.parse("mean-w32-causal-mlp-O0-n8"), SIZE, replace(RECIPE, **recipe), number, "")
    spec = replace(spec, corpus=str(corpus.folder))
    return Job(number, 1, spec, folder / str(number), parallel or Parallel())


def events(executor: RayExecutor, count: int) -> list[Event]:
    found: list[Event] = []
    while len(found) < count:
        found += executor.poll(60)
    return found


def test_a_sweep_loses_a_node_and_gets_another(
    cluster: Cluster, nodes: Callable[..., object], tmp_path: Path, text_folder: Path
) -> None:
    first, _ = nodes(), nodes()
    address = f"address={cluster.address}"
    driver = start(tmp_path, text_folder, address, "trials=6", "recipe.steps=60")
    folder = Home(tmp_path).sweep("mini").path
    wait_for(lambda: len({p.parent for p in folder.glob("trials/*/step-?????????")}) >= 2, driver)
    cluster.remove_node(first)
    wait_for(lambda: any("faults" in t.user_attrs for t in trials(tmp_path)), driver)
    done = ended(tmp_path)
    assert done < 4, "too late to show anything"
    wait_for(lambda: ended(tmp_path) > done, driver)  # those on the other node go on meanwhile
    nodes()
    said, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, said
    found = trials(tmp_path)
    assert [t.state for t in found] == [TrialState.COMPLETE] * 6
    assert len({(t.user_attrs["design"], t.user_attrs["seed"]) for t in found}) == 6
    assert [f for t in found for f in t.user_attrs.get("faults", [])] == ["the worker process died"]
    client = MlflowClient(tracking_uri=Home(tmp_path).tracking_url)
    experiment = client.get_experiment_by_name("mini")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(r.data.tags.get("lclab.trial", "") for r in runs) == ["", *map(str, range(6))]


def test_a_sweep_by_ray_client(
    client_port: int, nodes: Callable[..., object], tmp_path: Path, text_folder: Path
) -> None:
    nodes(2)
    driver = start(tmp_path, text_folder, f"address=ray://127.0.0.1:{client_port}", "trials=3")
    said, _ = driver.communicate(timeout=400)
    assert driver.returncode == 0, said
    assert [t.state for t in trials(tmp_path)] == [TrialState.COMPLETE] * 3


def test_the_cluster_runs_the_code_that_is_here(cluster: Cluster, nodes: Callable[..., object]) -> None:
    assert sorted(Path(folder).name for folder in CODE) == sorted(MAY_IMPORT)
    nodes()
    with closing(RayExecutor(1, address=cluster.address)):

        @ray.remote(num_cpus=0)
        def sent() -> set[str]:
            """What this driver's machine has in its own path counts here only because it is this machine."""
            return {name for path in sys.path if "runtime_resources" in path for name in os.listdir(path)}

        assert set(MAY_IMPORT) <= ray.get(sent.remote())


def test_no_cluster_and_no_gpu_are_told_in_one_line(
    cluster: Cluster, nodes: Callable[..., object], tmp_path: Path, text_folder: Path
) -> None:
    with pytest.raises(UsageError, match="address: no Ray cluster answers at '127.0.0.1:1'"):
        RayExecutor(1, address="127.0.0.1:1")
    nodes()
    driver = start(tmp_path, text_folder, f"address={cluster.address}", "gpus=0.5")
    said, _ = driver.communicate()
    assert driver.returncode == 2
    assert said.splitlines()[-1].startswith("lclab: gpus: a worker wants 0.5 and this Ray cluster has none")
    assert not (tmp_path / "mini").exists()


def test_two_trials_share_a_gpu_and_what_has_no_room_waits(
    cluster: Cluster, nodes: Callable[..., object], corpus: Corpus, tmp_path: Path
) -> None:
    nodes(3, gpus=1)
    with closing(RayExecutor(3, address=cluster.address, gpus=0.5)) as executor:
        for number in range(3):
            executor.submit(job(corpus, tmp_path, number, steps=3000))
        while sum(step > 0 for step, _ in executor.progress().values()) < 2:
            assert not executor.poll(0.1)
        assert len(executor.progress()) == 2
        executor.stop()
        assert {type(event) for event in events(executor, 3)} == {Stopped}
    assert not (tmp_path / "2").exists()


RANKS = Parallel(strategy="ddp", devices=2)


def test_a_sweep_whose_trials_have_two_ranks(tmp_path: Path, text_folder: Path) -> None:
    ranks = ("parallel.strategy=ddp", "parallel.devices=2", "recipe.pieces=6", "recipe.rungs=[1.0]")
    driver = start(tmp_path, text_folder, *ranks, "trials=1", "workers=1")
    said, _ = driver.communicate(timeout=400)
    assert driver.returncode == 0, said
    assert [t.state for t in trials(tmp_path)] == [TrialState.COMPLETE]


@pytest.fixture(scope="module")
def ranks() -> Iterator[RayExecutor]:
    with closing(RayExecutor(1, parallel=RANKS)) as executor:
        yield executor


def test_a_fault_of_ranks_is_told_with_its_own_reason(ranks: RayExecutor, corpus: Corpus, tmp_path: Path) -> None:
    ranks.submit(job(corpus, tmp_path, 0, RANKS, piece=6000, pieces=2))
    (event,) = events(ranks, 1)
    assert isinstance(event, Failed) and event.fault == "trial"
    assert event.reason.startswith("UsageError: recipe.documents")


def test_a_dead_rank_is_a_fault_of_the_machine(ranks: RayExecutor, corpus: Corpus, tmp_path: Path) -> None:
    long = job(corpus, tmp_path, 0, RANKS, pieces=4, steps=4000)
    ranks.submit(long)
    while ranks.progress().get(0, (0, 0))[0] < 2:
        assert not ranks.poll(0.1)
    first, *_ = [pid for pid, args in descendants(os.getpid()) if args.startswith("ray::RayTrainWorker")]
    os.kill(first, signal.SIGKILL)
    (event,) = events(ranks, 1)
    assert isinstance(event, Failed) and event.fault == "machine", event
    assert event.reason.startswith("RankDied")
    short = replace(long, spec=replace(long.spec, recipe=replace(long.spec.recipe, steps=12)), folder=tmp_path / "s")
    ranks.submit(short)
    (event,) = events(ranks, 1)
    assert isinstance(event, Finished)
    assert event.result == RungResult.load(RungResult.path(short.folder, 1))


def test_ranks_stop_with_a_checkpoint(ranks: RayExecutor, corpus: Corpus, tmp_path: Path) -> None:
    """The last one on this executor."""
    ranks.submit(job(corpus, tmp_path, 0, RANKS, pieces=4, steps=4000, checkpoint_every=4000))
    while ranks.progress().get(0, (0, 0))[0] < 2:
        assert not ranks.poll(0.1)
    ranks.stop()
    (event,) = events(ranks, 1)
    assert isinstance(event, Stopped)
    assert len(list((tmp_path / "0").glob("step-*"))) == 1
