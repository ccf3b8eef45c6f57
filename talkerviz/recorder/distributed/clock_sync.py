"""Clock offsets between the processes of a group.

Each rank asks rank 0 for the time, as NTP does, over the key-value store that the process group was made with: it
cannot be confused with traffic of the group itself, and the wait for a missing rank has a limit. The question with the
shortest round trip counts. Rank 0 read its clock between question and answer, so half of the round trip is the maximum
error of the offset.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

import torch.distributed as dist

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_QUESTIONS = 12  # some are delayed by the store; the fastest counts
_TIMEOUT_SECONDS = 1.0  # of a run that may wait for a rank that does not record
_SECONDS_PER_RANK = 0.01  # rank 0 answers one rank after another; some times what a rank's questions take


def exchange_clocks(
    store: Store, rank: int, world_size: int, now: Callable[[], int], seconds: float = _TIMEOUT_SECONDS
) -> tuple[int, int] | None:
    """Return the offset from this process's clock to that of rank 0, and its maximum error, both in nanoseconds.

    All ranks should call it, equally often. A rank that waits longer than `seconds`, and a little for each rank that
    may be answered before, gives up.

    Args:
        store: a store that all ranks share.
        rank: this process's rank.
        world_size: number of ranks.
        now: this process's clock, nanoseconds.
        seconds: limit of the wait for the other ranks.

    Returns:
        Offset and error, both 0 on rank 0; None if rank 0 gave no answer.
    """
    until = monotonic() + seconds + world_size * _SECONDS_PER_RANK
    try:
        # Numbered, so that a question of an earlier exchange is not taken for one of this.
        exchange = store.add(f"talkerviz/clocks/{rank}", 1)
        keys = dist.distributed_c10d.PrefixStore(f"talkerviz/clocks/{exchange}", store)
        if rank == 0:
            _answer_all(keys, world_size, now, until)
            return 0, 0
        return _ask(keys, rank, now, until)
    except RuntimeError:  # the store is gone, most likely with the process that hosts it
        return None


def _ask(store: Store, rank: int, now: Callable[[], int], until: float) -> tuple[int, int] | None:
    best: tuple[int, int] | None = None
    for question in range(_QUESTIONS):
        asked, answered = f"{rank}/{question}/asked", f"{rank}/{question}/answered"
        before = now()
        store.set(asked, "")
        if not _wait(store, answered, until):
            break
        after = now()
        rank_0_ns = int(store.get(answered))
        error = (after - before + 1) // 2
        if best is None or error < best[1]:
            best = rank_0_ns - (before + after) // 2, error
        store.delete_key(asked)
        store.delete_key(answered)
    return best


def _answer_all(store: Store, world_size: int, now: Callable[[], int], until: float) -> None:
    for rank in range(1, world_size):
        for question in range(_QUESTIONS):
            if not _wait(store, f"{rank}/{question}/asked", until):
                break
            store.set(f"{rank}/{question}/answered", str(now()))


def _wait(store: Store, key: str, until: float) -> bool:
    """Wait for a key, and return whether it came in time."""
    left = max(until - monotonic(), 0.001)  # looks at the store once more when time is up
    try:
        store.wait([key], timedelta(seconds=left))
    except (RuntimeError, ValueError):  # timeout, for which stores have different exceptions
        return False
    return True
