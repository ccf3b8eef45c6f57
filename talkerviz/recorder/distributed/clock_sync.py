"""How far the clocks of several processes are apart.

Each rank asks rank 0 for the time, as NTP does, over the key-value store that the process group was made with: nothing
that goes through the group itself can be taken for it, and whoever does not come is not waited for for ever. Of some
questions the one that was answered soonest counts. The answer was given between the question and its arrival, so half
of that time is the most by which the difference can be wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

import torch.distributed as dist

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_QUESTIONS = 12
_MOST_SECONDS = 10.0


def exchange_clocks(
    store: Store, rank: int, world_size: int, now: Callable[[], int], seconds: float = _MOST_SECONDS
) -> tuple[int, int] | None:
    """What to add to this process's clock to have that of rank 0, and by how much that can be wrong, in nanoseconds.

    All ranks must come here, and as often as all others. Who has to wait longer than some seconds gives up.

    Args:
        store: one that all ranks share.
        rank: this one's number.
        world_size: how many there are.
        now: this process's clock, nanoseconds.
        seconds: how long to wait for the others.

    Returns:
        The two numbers, both 0 on rank 0; None where rank 0 gave no answer.
    """
    until = monotonic() + seconds
    try:
        # A number for each time, so that no question of an earlier one is taken for this one's.
        time = store.add(f"talkerviz/clocks/{rank}", 1)
        here = dist.distributed_c10d.PrefixStore(f"talkerviz/clocks/{time}", store)
        if rank == 0:
            _answer_all(here, world_size, now, until)
            return 0, 0
        return _ask(here, rank, now, until)
    except RuntimeError:  # the store is gone, most likely with the process that held it
        return None


def _ask(store: Store, rank: int, now: Callable[[], int], until: float) -> tuple[int, int] | None:
    best: tuple[int, int] | None = None
    for question in range(_QUESTIONS):
        asked, answered = f"{rank}/{question}/asked", f"{rank}/{question}/answered"
        before = now()
        store.set(asked, "")
        if not _came(store, answered, until):
            break
        after = now()
        there = int(store.get(answered))
        error = (after - before + 1) // 2
        if best is None or error < best[1]:
            best = there - (before + after) // 2, error
        store.delete_key(asked)
        store.delete_key(answered)
    return best


def _answer_all(store: Store, world_size: int, now: Callable[[], int], until: float) -> None:
    for rank in range(1, world_size):
        for question in range(_QUESTIONS):
            if not _came(store, f"{rank}/{question}/asked", until):
                break
            store.set(f"{rank}/{question}/answered", str(now()))


def _came(store: Store, key: str, until: float) -> bool:
    left = max(until - monotonic(), 0.001)
    try:
        store.wait([key], timedelta(seconds=left))
    except (RuntimeError, ValueError):  # the time is up, for which stores have different exceptions
        return False
    return True
