"""Kernels of a frame replayed as a CUDA graph, against the time to read its weights from memory.

    PYTHONPATH=. python benchmarks/replayed_frame.py [--kind full:bfloat16] [--compile | --fused] [--frames 24]
        [-o reports/h200/replayed-frame.md]

Needs a CUDA device. Kernels are those that torch's profiler saw a graph's replays launch.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
from speaking import bytes_of_a_frame, native_talker, need_cuda, replayed
from torch.profiler import ProfilerActivity, profile

from talkerviz.recorder.instruments.device_benchmark import measure_peaks
from talkerviz.recorder.instruments.kernel_time import LAUNCHES, chrome_trace_of, run_times
from talkerviz.talker import generate_scenario
from talkerviz.talker.generation.compile import compile_talker
from talkerviz.talker.generation.scenario import Scenario
from talkerviz.talker.kernels import fuse_talker

_LAUNCH = "cudaGraphLaunch"


@dataclass(frozen=True)
class ReplayedFrame:
    """Kernels of a replayed frame, averaged over many frames.

    Attributes:
        span_us: median time from the start of the first kernel to the end of the last, in microseconds.
        kernels: name, number and total run time in microseconds of each kernel, longest first; see `run_times`.
    """

    span_us: float
    kernels: list[tuple[str, float, float]]

    @property
    def running_us(self) -> float:
        """Sum of the kernels' run times, in microseconds."""
        return sum(time for _, _, time in self.kernels)


def frame_of(seen: Mapping[str, Any]) -> ReplayedFrame:
    """Extract the kernels launched by CUDA graph replays from a profile in Chrome's trace format.

    Raises:
        ValueError: the profile has no replays.
    """
    events = seen["traceEvents"]
    launches = {
        event["args"]["correlation"]
        for event in events
        if event.get("cat") in LAUNCHES and event.get("name", "").startswith(_LAUNCH)
    }
    replays: dict[int, list[tuple[Any, float]]] = defaultdict(list)
    for event, ran in run_times(events):
        if event["args"].get("correlation") in launches:
            replays[event["args"]["correlation"]].append((event, ran))
    if not replays:
        raise ValueError("the profiler saw no kernel that a graph's replay launched")
    spans, count, time = [], defaultdict[str, int](int), defaultdict[str, float](float)
    for kernels in replays.values():
        spans.append(max(one["ts"] + one["dur"] for one, _ in kernels) - min(one["ts"] for one, _ in kernels))
        for one, ran in kernels:
            count[one["name"]] += 1
            time[one["name"]] += ran
    longest = sorted(time, key=lambda name: -time[name])
    return ReplayedFrame(
        median(spans), [(name, count[name] / len(replays), time[name] / len(replays)) for name in longest]
    )


def table(frame: ReplayedFrame, floor_us: float, rows: int = 25) -> list[str]:
    """Format the kernels, and the time of a frame above its floor."""
    lines = ["| kernel | a frame | µs a frame | of the frame |", "| --- | ---: | ---: | ---: |"]

    def row(name: str, count: float, time: float) -> str:
        short = name if len(name) <= 110 else f"{name[:109]}…"
        said = short.replace("|", "\\|").replace("`", "'")
        return f"| `{said}` | {count:,.0f} | {time:,.1f} | {time / frame.span_us:.1%} |"

    lines += [row(*kernel) for kernel in frame.kernels[:rows]]
    if rest := frame.kernels[rows:]:
        lines.append(row(f"{len(rest)} others", sum(one[1] for one in rest), sum(one[2] for one in rest)))
    idle = frame.span_us - frame.running_us
    return [
        f"A frame takes {frame.span_us:,.0f} µs, from its first kernel to the end of its last. Memory gives its "
        f"weights in {floor_us:,.0f} µs at the least: {floor_us / frame.span_us:.0%} of it. Its "
        f"{sum(one[1] for one in frame.kernels):,.0f} kernels run for {frame.running_us:,.0f} µs, of which "
        f"{frame.running_us - floor_us:,.0f} are more than that, and between them the device does nothing for "
        f"{idle:,.0f} µs.",
        "",
        *lines,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kind", default="full:bfloat16", help="PRESET:DTYPE")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--compile", action="store_true")
    ways.add_argument("--fused", action="store_true")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("-o", "--output", type=Path, default=Path("reports/h200/replayed-frame.md"))
    options = parser.parse_args()
    need_cuda()
    talker, config = native_talker(options.kind, "cuda")
    scenario = Scenario(frames=options.frames)
    if options.compile:
        compile_talker(talker)
    if options.fused:
        fuse_talker(talker)
    way = "compile" if options.compile else "fused" if options.fused else ""
    with replayed(talker):
        generate_scenario(talker, "native", scenario, config)  # libraries load, code is made
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            generate_scenario(talker, "native", scenario, config)
            torch.cuda.synchronize()
    frame = frame_of(chrome_trace_of(seen))
    peaks = measure_peaks("cuda")
    floor_us = bytes_of_a_frame(talker, config) / peaks.bandwidth * 1e6
    text = [
        "# A replayed frame, kernel by kernel",
        "",
        f"{date.today()}, torch {torch.__version__}, {peaks.device}. `{options.kind}`, one stream, "
        f"{f'`--{way}`, ' if way else ''}{options.frames} frames; copies of memory reach "
        f"{peaks.bandwidth / 1e9:,.0f} GB/s. Made by `python benchmarks/replayed_frame.py"
        f"{f' --{way}' if way else ''}`.",
        "",
        *table(frame, floor_us),
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(text) + "\n", encoding="utf-8")
    print(text[4])


if __name__ == "__main__":
    main()
