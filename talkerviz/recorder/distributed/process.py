"""Rank and host of this process, from torch.distributed or `torchrun`."""

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
    """One of several processes that run one program.

    Attributes:
        rank: rank of the process.
        world_size: number of processes.
        local_rank: rank on its host; None if unknown.
    """

    rank: int
    world_size: int
    local_rank: int | None


def this_process() -> Process | None:
    """Return this process, by the process group or else `torchrun`'s environment; None if it is the only one."""
    if _has_group():
        rank: int | None = dist.get_rank()
        size: int | None = dist.get_world_size()
    else:
        rank, size = _environment_number("RANK"), _environment_number("WORLD_SIZE")
    if rank is None or size is None or size < 2:
        return None
    return Process(rank, size, _environment_number("LOCAL_RANK"))


def file_of_rank(path: Path, process: Process | None) -> Path:
    """Return the path of a process's own file: `run.rank0.parquet` for `run.parquet`."""
    return path if process is None else path.with_name(f"{path.stem}.rank{process.rank}{path.suffix}")


def process_facts(process: Process, timed: bool) -> dict[str, Any]:
    """Return the fact `process`: rank, host, and the offset of its clock from that of rank 0.

    With a process group and `timed` all ranks must call it within some seconds of each other; see `exchange_clocks`.
    """
    facts: dict[str, Any] = {
        "rank": process.rank,
        "world_size": process.world_size,
        "local_rank": process.local_rank,
        "host": socket.gethostname(),
        # Processes with the same boot id share a monotonic clock.
        "boot": _BOOT.read_text().strip() if _BOOT.exists() else socket.gethostname(),
        "backend": dist.get_backend() if _has_group() else None,
    }
    if timed and _has_group():
        store = dist.distributed_c10d._get_default_store()  # torch has no public name for it
        offset = exchange_clocks(store, process.rank, process.world_size, time.perf_counter_ns)
        if offset is not None:
            facts["offset_ns"], facts["offset_error_ns"] = offset
    return facts


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _environment_number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else None
