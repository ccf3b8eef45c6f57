"""Cost of logging a collective, accuracy of the clock exchange, and time to merge and query many traces.

    python benchmarks/ranks.py [-o reports/benchmarks/ranks.md]

Collectives are in a group of one process, so that only the path to the backend and back is measured. Both clocks of the
exchange are this machine's, so the offset that it measures is its error.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import nn

import talkerviz as tv
from talkerviz.analysis.sql import query
from talkerviz.recorder.distributed.clock_sync import exchange_clocks
from talkerviz.recorder.distributed.collective_log import CollectiveLog
from talkerviz.recorder.distributed.collectives import watch_collectives
from talkerviz.recorder.python_events import Callbacks, Contexts
from talkerviz.recorder.tap import Tap, make_events
from talkerviz.recorder.tensor_signatures import TensorKinds

ROUNDS, COLLECTIVES, EXCHANGES, FILES = 15, 2_000, 20, 1_000


def events() -> Any:
    """Create the event log of collectives."""
    return make_events(
        Tap,
        None,
        {},
        TensorKinds([]),
        Callbacks(),
        Contexts(ContextVar("phase", default=-1), ContextVar("placed", default=None)),
        limit=1 << 30,
    )


def collective_rows() -> list[str]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    x = torch.ones(64)
    listener = CollectiveLog(events(), lambda _: None, lambda _: -1, [], timed=True)

    def waited_for_later() -> None:
        work = dist.all_reduce(x, async_op=True)
        assert work is not None
        work.wait()

    kinds: dict[str, Callable[[], object]] = {
        "`dist.all_reduce`": lambda: dist.all_reduce(x),
        "`dist.all_reduce(async_op=True)`, `wait`": waited_for_later,
        "functional `all_reduce`, waited for": lambda: functional.all_reduce(x, "sum", dist.group.WORLD) + 1,
    }
    rows = []
    for name, run in kinds.items():
        bare, seen = [], []
        for _ in range(ROUNDS):
            bare.append(seconds(run))
            undo: list[Callable[[], None]] = []
            watch_collectives(listener, undo)
            seen.append(seconds(run))
            for step in undo:
                step()
        rows.append(f"| {name} | {min(bare) * 1e6:.1f} | {min(seen) * 1e6:.1f} |")
    dist.destroy_process_group()
    return rows


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    for _ in range(COLLECTIVES):
        run()
    return (time.perf_counter() - began) / COLLECTIVES


def exchange_row() -> str:
    found: list[tuple[int, int]] = []
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    client = dist.TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)

    def ask() -> None:
        answer = exchange_clocks(client, 1, 2, time.perf_counter_ns)
        assert answer is not None
        found.append(answer)

    for _ in range(EXCHANGES):
        thread = threading.Thread(target=ask)
        thread.start()
        exchange_clocks(server, 0, 2, time.perf_counter_ns)
        thread.join()
    wrong, doubt = (statistics.median(values) / 1000 for values in zip(*((abs(o), e) for o, e in found), strict=True))
    return (
        f"The exchange of clocks is wrong by {wrong:.0f} µs and says by at most {doubt:.0f} µs, medians of {EXCHANGES}."
    )


def query_row() -> str:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(9)))
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "0.parquet"
        with tv.recording(model, file=first):
            for _ in range(5):
                model(torch.ones(1, 8))
        files = [first, *(Path(folder) / f"{number}.parquet" for number in range(1, FILES))]
        for file in files[1:]:
            shutil.copy(first, file)
        took = []
        for _ in range(3):
            began = time.perf_counter()
            found = query("SELECT class, sum(host_self_ns) AS self FROM calls GROUP BY class", files)
            took.append(time.perf_counter() - began)
        assert found.num_rows == 2
    return f"A sum by class over {FILES:,} traces of 50 calls takes `query` {min(took):.1f} s."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("reports/benchmarks/ranks.md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Several processes",
        "",
        f"{date.today()}, torch {torch.__version__}, Python {platform.python_version()}, a CPU; made by "
        "`python benchmarks/ranks.py`.",
        "",
        "| a group of one process | µs | recorded, µs |",
        "| --- | ---: | ---: |",
        *collective_rows(),
        "",
        exchange_row(),
        "",
        query_row(),
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
