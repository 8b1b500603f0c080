"""What all ranks of a training do at one time. Without other ranks it is done here alone."""

from collections.abc import Callable
from typing import TypeVar, cast

import torch.distributed as dist

__all__ = ["first", "share", "together"]

T = TypeVar("T")


def share() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def together(act: Callable[[], T]) -> list[T]:
    """What `act` returns on each rank, told to all of them. Raises on all what it raises on one."""
    told: tuple[T | None, Exception | None]
    try:
        told = act(), None
    except Exception as error:
        told = None, error
    _, ranks = share()
    found = [told] * ranks
    if ranks > 1:
        dist.all_gather_object(found, told)
    for _, error in found:
        if error is not None:
            raise error
    return [cast(T, value) for value, _ in found]


def first(act: Callable[[], T]) -> T:
    """What `act` returns on the first rank, which alone calls it, told to all. Raises on all what it raises there."""
    return cast(T, together(lambda: act() if share()[0] == 0 else None)[0])
