"""Ranks of one start meet, whatever others have left in the store that torchrun keeps for all starts."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from trainer.meeting import agreed_name, meeting_place


def client(store: dist.TCPStore, seconds: float = 30) -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", store.port, is_master=False, timeout=timedelta(seconds=seconds))


@pytest.fixture
def store() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.mark.parametrize("gone", [[], [1], [2], [1, 2]])
def test_all_ranks_of_a_start_and_no_others_have_its_name(store: dist.TCPStore, gone: list[int]) -> None:
    """Also after starts that were complete, and after one whose first rank never came."""
    names: list[str] = []
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            for rank in gone:
                with pytest.raises(dist.DistStoreError):
                    agreed_name(client(store, 0.1), rank, 3)
            told = list(pool.map(lambda rank: agreed_name(client(store), rank, 3), range(3)))
            assert len(set(told)) == 1
            names.append(told[0])
    assert len(set(names)) == 3


def test_a_launcher_that_makes_a_new_store_each_time_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert meeting_place() is None
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert meeting_place() is None
