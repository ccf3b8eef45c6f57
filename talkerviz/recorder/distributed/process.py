"""Which of several processes this is, as `torchrun` and torch.distributed know it."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from talkerviz.recorder.distributed.clock_sync import exchange_clocks

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Process:
    """One of several that run one program.

    Attributes:
        rank: its number.
        world_size: how many there are.
        local_rank: its number on its host; None where nothing says so.
    """

    rank: int
    world_size: int
    local_rank: int | None


def this_process() -> Process | None:
    """By the process group, or before there is one by `torchrun`'s environment; None for one that is alone."""
    if _has_group():
        rank: int | None = dist.get_rank()
        size: int | None = dist.get_world_size()
    else:
        rank, size = _whole("RANK"), _whole("WORLD_SIZE")
    if rank is None or size is None or size < 2:
        return None
    return Process(rank, size, _whole("LOCAL_RANK"))


def file_of_rank(path: Path, process: Process | None) -> Path:
    """Where one of several processes writes what one alone writes to `path`: `run.rank0.parquet` for `run.parquet`."""
    return path if process is None else path.with_name(f"{path.stem}.rank{process.rank}{path.suffix}")


def process_facts(process: Process, timed: bool) -> dict[str, Any]:
    """What to note of it: who it is, where it runs, and how its clock stands to that of rank 0.

    With a process group and `timed` all ranks must come here within some seconds of each other; see `exchange_clocks`.
    """
    facts: dict[str, Any] = {
        "rank": process.rank,
        "world_size": process.world_size,
        "local_rank": process.local_rank,
        "host": socket.gethostname(),
        # Processes with the same one have the same monotonic clock.
        "boot": _BOOT.read_text().strip() if _BOOT.exists() else socket.gethostname(),
        "backend": dist.get_backend() if _has_group() else None,
    }
    if timed and _has_group():
        # torch has no public name for it.
        store = dist.distributed_c10d._get_default_store()
        found = exchange_clocks(store, process.rank, process.world_size, time.perf_counter_ns)
        if found is not None:
            facts["offset_ns"], facts["offset_error_ns"] = found
    return facts


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _whole(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else None
