"""Cost of events on a CUDA device: on the host, and as nodes of a CUDA graph.

    PYTHONPATH=. python benchmarks/device_events.py [-o reports/h200/events.md]

Needs a CUDA device and the compiled tap.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import torch
from speaking import need_cuda

from talkerviz.recorder.instruments.device_runtime import runtime_of
from talkerviz.recorder.tap import DeviceStamps

_COUNT = 2000  # events in one timing
_KERNELS = 1000  # in a graph
_ROUNDS = 9


def ns_each(work: Callable[[int], object], count: int = _COUNT) -> float:
    """Return the least host time of a call over some rounds, in nanoseconds; the device is idle before each."""
    best = float("inf")
    for _ in range(_ROUNDS):
        torch.cuda.synchronize()
        began = perf_counter_ns()
        for index in range(count):
            work(index)
        best = min(best, (perf_counter_ns() - began) / count)
    return best


def event_costs() -> dict[str, float]:
    """Return the host's nanoseconds for each thing that is done with an event."""
    make: Any = torch.cuda.Event
    events = [make(enable_timing=True) for _ in range(_COUNT)]
    for event in events:
        event.record()
    torch.cuda.synchronize()
    runtime = runtime_of("cuda")
    stamps = DeviceStamps(
        functions=runtime.functions,
        make_event=lambda: runtime.event(False),
        stream_of=runtime.stream_of,
        current=runtime.current,
        capturing=runtime.capturing,
        on_capture=lambda thread, stamp, depth: None,
        module_devices=b"\0\0",  # module 0 is on device 0
        ring=runtime.ring,
        budget=0.0,
    )
    stamps.prepare(0, runtime.stream_of(0))
    torch.cuda.synchronize()
    stamped = "by its functions" if runtime.functions is not None else "by event objects"
    return {
        "make an event": ns_each(lambda index: make(enable_timing=True)),
        "record, in Python": ns_each(lambda index: events[index].record()),
        "query, in Python": ns_each(lambda index: events[index].query()),
        "elapsed time, in Python": ns_each(lambda index: events[0].elapsed_time(events[index])),
        f"a stamp of the compiled tap, {stamped}, its reading included": ns_each(
            lambda index: stamps.stamp_call(0, index % 2 == 0, 0, 0, -1, -1, 0)
        ),
    }


def graph_of(nodes: int) -> Any:
    """Capture kernels that do nothing, with event nodes between them."""
    make: Any = torch.cuda.Event
    graph: Any = torch.cuda.CUDAGraph()
    between = [make(enable_timing=True, external=True) for _ in range(nodes * _KERNELS)]
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for kernel in range(_KERNELS):
            torch.cuda._sleep(1)
            for event in between[kernel * nodes : (kernel + 1) * nodes]:
                event.record()
    return graph, between


def us_of_replay(graph: Any) -> float:
    """Return the median time of a replay on the device, in microseconds."""
    make: Any = torch.cuda.Event
    times = []
    for _ in range(_ROUNDS):
        begin, end = make(enable_timing=True), make(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times)


def page(costs: dict[str, float], replays: Sequence[float]) -> str:
    """Format the costs."""
    lines = [
        "# Events on a GPU",
        "",
        f"{date.today()}, {torch.cuda.get_device_name()}, torch {torch.__version__}; made by "
        "`python benchmarks/device_events.py`. Host times are the least of some rounds.",
        "",
        "| on the host | ns |",
        "| --- | ---: |",
        *(f"| {name} | {ns:,.0f} |" for name, ns in costs.items()),
        "",
        f"A graph of {_KERNELS:,} kernels that do nothing, replayed:",
        "",
        "| event nodes after each kernel | µs a replay | ns a node |",
        "| ---: | ---: | ---: |",
    ]
    for nodes, us in enumerate(replays):
        each = f"{(us - replays[0]) / (nodes * _KERNELS) * 1e3:,.0f}" if nodes else ""
        lines.append(f"| {nodes} | {us:,.1f} | {each} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("reports/h200/events.md"))
    options = parser.parse_args()
    need_cuda()
    costs, replays = event_costs(), []
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for nodes in range(3):
        graph, events = graph_of(nodes)
        replays.append(us_of_replay(graph))
        del graph, events
        options.output.write_text(page(costs, replays), encoding="utf-8")
    print(options.output.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
