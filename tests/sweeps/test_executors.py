"""One contract for everything that trains: Ray's actors, and the executor on virtual time."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from search_space.design import Design
from search_space.errors import UsageError
from sweeps.executor import Event, Executor, Failed, Finished, Job, Stopped, VirtualExecutor
from sweeps.ray_executor import RayExecutor
from tests.tiny import RECIPE, SIZE
from trainer.corpus import Corpus
from trainer.parallel import Parallel
from trainer.pretrain import pretrain
from trainer.trial import RungResult, Stalled, TrialSpec

pytestmark = pytest.mark.slow


def train_here(job: Job) -> tuple[float, RungResult | Failed]:
    """The real training, taking one unit of virtual time."""
    try:
        return 1.0, pretrain(job.spec, job.folder, job.rung, parallel=job.parallel)
    except UsageError as error:
        return 1.0, Failed(job, f"UsageError: {error}", "trial")
    except Stalled as error:
        return 1.0, Failed(job, f"Stalled: {error}", "machine")


MAKE: dict[str, Callable[[], Executor]] = {
    "virtual": lambda: VirtualExecutor(2, train_here),
    "ray": lambda: RayExecutor(2),
}


@pytest.fixture(scope="module", params=MAKE)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with closing(MAKE[request.param]()) as executor:
        yield executor


def job(corpus: Corpus, folder: Path, number: int, **recipe: int) -> Job:
    design = Design.parse("mean-w32-causal-mlp-O0-n8")
    spec = TrialSpec(design, SIZE, replace(RECIPE, **recipe), number, str(corpus.folder))
    return Job(number, 1, spec, folder / str(number))


def events(executor: Executor, count: int) -> list[Event]:
    found: list[Event] = []
    while len(found) < count:
        found += executor.poll(60)
    assert executor.poll(0) == []
    return found


def test_every_job_ends_in_one_event_and_frees_its_slot(executor: Executor, corpus: Corpus, tmp_path: Path) -> None:
    for first in (0, 2, 4):
        jobs = [job(corpus, tmp_path, first + i) for i in range(executor.slots)]
        for each in jobs:
            executor.submit(each)
        ended = events(executor, len(jobs))
        assert sorted(e.job.number for e in ended) == [j.number for j in jobs]
        for event in ended:
            assert isinstance(event, Finished)
            assert event.result == RungResult.load(RungResult.path(event.job.folder, 1))
    assert executor.progress() == {}


def test_a_fault_of_the_trial_is_told_with_its_reason(executor: Executor, corpus: Corpus, tmp_path: Path) -> None:
    executor.submit(job(corpus, tmp_path, 0, piece=6000, pieces=1))
    (event,) = events(executor, 1)
    assert isinstance(event, Failed) and event.fault == "trial"
    assert event.reason.startswith("UsageError: recipe.documents")
    assert not list((tmp_path / "0").glob("step-*")), "it was found out only after training"
    executor.submit(job(corpus, tmp_path, 1))
    assert isinstance(events(executor, 1)[0], Finished)


def test_a_stalled_loader_is_a_fault_of_the_machine(executor: Executor, corpus: Corpus, tmp_path: Path) -> None:
    executor.submit(replace(job(corpus, tmp_path, 0), parallel=Parallel(patience=1e-9)))
    (event,) = events(executor, 1)
    assert isinstance(event, Failed) and event.fault == "machine"
    assert event.reason.startswith("Stalled: the loader gave no batch")


def test_stop_ends_running_jobs_and_they_can_go_on(executor: Executor, corpus: Corpus, tmp_path: Path) -> None:
    long = job(corpus, tmp_path, 0, steps=400)
    executor.submit(long)
    executor.stop()
    (event,) = events(executor, 1)
    assert isinstance(event, Stopped) and event.job == long
