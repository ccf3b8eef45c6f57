"""Rank and host of this process, from torch.distributed or `torchrun`."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from talkerviz.recorder.distributed.clock_sync import exchange_clocks

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
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


_files_begun: Counter[Path] = Counter()  # recordings of this process, by the path they were given


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
    """Return the path of a process's own file: `run.rank0.parquet` for `run.parquet`.

    A further recording of the process to the same path has `run.2.rank0.parquet`, and one after an elastic restart
    `run.restart1.rank0.parquet`, so that none overwrites another of the same run.
    """
    if process is None:
        return path
    _files_begun[path.absolute()] += 1
    restarts, number = _environment_number("TORCHELASTIC_RESTART_COUNT"), _files_begun[path.absolute()]
    restart = f".restart{restarts}" if restarts else ""
    again = f".{number}" if number > 1 else ""
    return path.with_name(f"{path.stem}{restart}{again}.rank{process.rank}{path.suffix}")


def process_facts(process: Process, timed: bool) -> dict[str, Any]:
    """Return the fact `process`: rank, run, host, and the offset of its clock from that of rank 0.

    With a process group of several hosts and `timed` all ranks should call it within a second; see `exchange_clocks`.
    """
    facts: dict[str, Any] = {
        "rank": process.rank,
        "world_size": process.world_size,
        "local_rank": process.local_rank,
        "run_id": _run_id(),
        "host": socket.gethostname(),
        # Processes with the same boot id share a monotonic clock.
        "boot": _BOOT.read_text().strip() if _BOOT.exists() else socket.gethostname(),
        "backend": dist.get_backend() if _has_group() else None,
    }
    if timed and _has_group() and not _all_on_one_host(process):
        offset = exchange_clocks(_store(), process.rank, process.world_size, time.perf_counter_ns)
        if offset is not None:
            facts["offset_ns"], facts["offset_error_ns"] = offset
    return facts


def _run_id() -> str | None:
    """Return an identifier that all ranks of this run share, and no other run has; None where nothing gives one."""
    if _has_group():
        with suppress(RuntimeError):  # the store is gone, or cannot compare
            # Whoever comes first sets it, so that no rank waits for another.
            return str(_store().compare_set("talkerviz/run", "", uuid.uuid4().hex), "ascii")
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")  # `none` is torchrun's default
    return None if name == "none" else f"{name}/{restarts}"


def _all_on_one_host(process: Process) -> bool:
    """Return whether all ranks are known to run on this host, and so to share its clock."""
    if _environment_number("LOCAL_WORLD_SIZE") == process.world_size:
        return True
    store = _store()
    while isinstance(store, dist.distributed_c10d.PrefixStore):
        store = store.underlying_store
    # Ranks that reach each other's store by the loopback interface are on one host.
    return getattr(store, "host", None) in _LOOPBACK


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()  # torch has no public name for it


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _environment_number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else None
