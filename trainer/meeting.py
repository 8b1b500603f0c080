"""How ranks that torchrun has started find each other."""

import os
import time
from uuid import uuid4

import torch.distributed as dist

__all__ = ["agreed_name", "meeting_place"]

_POLL = 0.05  # seconds


def meeting_place() -> dist.Store | None:
    """Where the ranks of this start, and none before them, meet; None where their launcher has made such a place.

    torchrun keeps one store for all its starts, with the addresses of processes that are gone. Its count of starts does
    not tell them apart: where a rank dies, one node may count a restart and another none.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    return dist.PrefixStore(agreed_name(store, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])), store)


def agreed_name(store: dist.Store, rank: int, ranks: int) -> str:
    """A new name that all ranks of one start return, whatever ranks of other starts have left in `store`.

    Each says who it is; the first rank answers whoever has said so until all of this start have heard it: an answer to
    one that is gone is never confirmed. Raises `torch.distributed.DistStoreError` where no answer comes in the store's
    time.
    """
    me = uuid4().hex
    if rank:
        store.set(f"rank/{rank}", me)
        name = store.get(f"answer/{me}").decode()
        store.set(f"heard/{name}/{rank}", "")
        return name
    missing = set(range(1, ranks))
    while missing := {r for r in missing if not store.check([f"heard/{me}/{r}"])}:
        for r in missing:
            if store.check([f"rank/{r}"]):
                store.set(f"answer/{store.get(f'rank/{r}').decode()}", me)
        time.sleep(_POLL)
    return me
