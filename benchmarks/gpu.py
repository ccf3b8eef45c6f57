"""Recording overhead and frame profile of the talker on a CUDA device.

    PYTHONPATH=. python benchmarks/gpu.py [--presets lite full] [--repeats 7] [--overhead-only] [-o reports/h200]

Writes `overhead.md` and, for each preset, `PRESET.md` and `PRESET.parquet` into the folder.
"""

from __future__ import annotations

import argparse
import gc
import io
import random
import statistics
from collections.abc import Callable
from datetime import date
from pathlib import Path
from time import perf_counter

import torch
from rich.console import Console
from speaking import need_cuda

import talkerviz as tv
from talkerviz.analysis.summary import summarise
from talkerviz.recorder.instruments.device_peaks import published_peaks, run_peaks
from talkerviz.recorder.instruments.registry import MEASURES
from talkerviz.recorder.phases.talker import TalkerPhases
from talkerviz.recorder.tap import Tap
from talkerviz.render.notes import notes_on
from talkerviz.render.terminal.summary_table import render_table
from talkerviz.talker.files.build import build_talker
from talkerviz.talker.generation.runner import generate_scenario
from talkerviz.talker.generation.scenario import Scenario
from talkerviz.talker.model.config import default_dtype, preset
from talkerviz.trace.join import join

SCENARIO = Scenario(frames=16)  # the first four tell the device clock which of the others to stamp whole


def seconds(work: Callable[[], object]) -> float:
    """Time one run, the device's work included."""
    gc.collect()
    torch.cuda.synchronize()
    began = perf_counter()
    work()
    torch.cuda.synchronize()
    return perf_counter() - began


def recorded_seconds(model: torch.nn.Module, work: Callable[[], object], clock: str) -> float:
    with tv.recording(model, "talker", TalkerPhases, clock):
        return seconds(work)


def overhead(model: torch.nn.Module, work: Callable[[], object], repeats: int) -> dict[str, tuple[float, float]]:
    """Return each clock's median seconds, and median ratio to the untraced runs before and after."""
    times: dict[str, list[tuple[float, float]]] = {}
    order = random.Random(0)
    clocks = ["untraced", "none", "cpu", "cuda", "cuda-all"]
    for _ in range(repeats):
        order.shuffle(clocks)
        for clock in clocks:
            before = seconds(work)
            here = seconds(work) if clock == "untraced" else recorded_seconds(model, work, clock)
            after = seconds(work)
            times.setdefault(clock, []).append((here, here / ((before + after) / 2)))
    return {clock: tuple(map(statistics.median, zip(*found, strict=True))) for clock, found in times.items()}  # type: ignore[misc]


def record(model: torch.nn.Module, work: Callable[[], object], name: str) -> tv.Trace:
    """Record times, FLOP, kernel time and memory of the same calls."""
    dtype = str(default_dtype(name)).removeprefix("torch.")
    peaks = published_peaks(torch.cuda.get_device_name())
    limits = run_peaks(peaks, dtype, torch.backends.cuda.matmul.allow_tf32) if peaks else {}
    facts = {"preset": name, "impl": "native", "peaks": limits}
    trace = tv.record(model, work, "talker", TalkerPhases, "cuda-all", facts)
    for measure in MEASURES:
        other = tv.record(model, work, "talker", TalkerPhases, "none", measure=measure)
        trace = join(trace, other)
    return trace


def tables(trace: tv.Trace) -> str:
    console = Console(width=240, record=True, file=io.StringIO())
    for by in ("phase", "frame", "class", "module"):
        console.print(render_table(summarise(trace, by), by, 15, console.width))
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


def costs(head: str, rows: list[str]) -> str:
    """Format the table of recording overhead."""
    lines = [
        "# What recording costs on a GPU",
        "",
        head,
        f"{SCENARIO.frames} frames of the native talker; ratio to the untraced runs before and after.",
        "",
        "| preset | clock | ms a frame | ratio |",
        "| --- | --- | ---: | ---: |",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--presets", nargs="+", default=["lite", "full"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--overhead-only", action="store_true", help="write no traces")
    parser.add_argument("-o", "--output", type=Path, default=Path("reports/h200"))
    options = parser.parse_args()
    need_cuda()
    options.output.mkdir(parents=True, exist_ok=True)
    head = (
        f"{date.today()}, {torch.cuda.get_device_name()}, torch {torch.__version__}, recorder in "
        f"{'Python' if Tap is None else 'C'}; made by `python benchmarks/gpu.py`."
    )
    rows: list[str] = []
    for name in options.presets:
        config = preset(name)
        talker = build_talker(config, "native", "cuda", default_dtype(name), SCENARIO.seed)

        def work(talker: torch.nn.Module = talker, config: object = config) -> object:
            return generate_scenario(talker, "native", SCENARIO, config)  # type: ignore[arg-type]

        work()
        work()
        for clock, (time, ratio) in overhead(talker, work, options.repeats).items():
            rows.append(f"| {name} | {clock} | {time / SCENARIO.frames * 1e3:.2f} | {ratio:.3f} |")
        (options.output / "overhead.md").write_text(costs(head, rows), encoding="utf-8")  # whatever comes of the rest
        print("\n".join(rows), flush=True)
        if options.overhead_only:
            continue
        trace = record(talker, work, name)
        trace.save(options.output / f"{name}.parquet")
        notes = "\n".join(f"- {note}" for note in notes_on(trace.facts))
        text = f"# {name}\n\n{head}\n\n{notes}\n\n```\n{tables(trace)}\n```\n"
        (options.output / f"{name}.md").write_text(text, encoding="utf-8")
        del talker
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
