"""Batches come in order whatever asks for them, and a loader that hangs is told from one that ends."""

import multiprocessing
import threading
import time
from collections.abc import Iterator

import pytest
from torch.utils.data import DataLoader, IterableDataset

from trainer.patient import Patient
from trainer.trial import Stalled


class Numbers(IterableDataset[int]):
    """Counts to `end`; at `hang_at` it waits as for a disk that does not answer."""

    def __init__(self, end: int, hang_at: int = -1) -> None:
        self.end, self.hang_at = end, hang_at

    def __iter__(self) -> Iterator[int]:
        for i in range(self.end):
            if i == self.hang_at:
                time.sleep(10**6)
            yield i


def test_batches_come_in_order_and_end() -> None:
    assert list(Patient(range(50), 10)) == list(range(50))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_of_torch_goes_through(workers: int) -> None:
    loader = DataLoader(Numbers(9), batch_size=None, num_workers=workers)
    patient = Patient(loader, 60)
    assert list(patient) == list(range(9))
    patient.close()


def test_an_error_of_the_loader_comes_out() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("no such shard")

    batches = iter(Patient(broken(), 10))
    assert next(batches) == 1
    with pytest.raises(OSError, match="no such shard"):
        next(batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_hangs_is_a_stall(workers: int) -> None:
    patient = Patient(DataLoader(Numbers(9, hang_at=3), batch_size=None, num_workers=workers), 1.5)
    with pytest.raises(Stalled, match=r"^the loader gave no batch for 1\.5 s$"):
        list(patient)
    patient.close()
    assert not multiprocessing.active_children()


def test_who_stops_reading_leaves_no_thread_behind() -> None:
    def threads() -> int:
        return sum(t.name == "batches" for t in threading.enumerate())

    before = threads()
    patient = Patient(range(10**9), 10)
    assert next(iter(patient)) == 0 and threads() == before + 1
    patient.close()
    assert threads() == before
