"""Memory of a recording as it grows, the size of its files, and the time to read them: `generate` of a causal LM.

    python benchmarks/memory.py [--calls 100000] [-o reports/benchmarks/memory.md]

Each run is a process of its own: Qwen3 of transformers with 28 layers of width 64 generates until there are that many
calls, and ten times as many, in ten runs of `generate` and in one. `ru_maxrss` is read when the run is over and when
the file is finished; the same run without a recording gives the floor. Takes about six minutes on a quiet machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from time import process_time
from typing import Any

GOAL_GROWTH_MIB, GOAL_PARTIAL, GOAL_READING = 64, 3.0, 1.0
READINGS = 3


@dataclass(frozen=True)
class Job:
    """Work of a child process: `generate` calls with `tokens` new tokens each, or `frames` of the talker."""

    title: str
    tokens: int = 0
    generates: int = 1
    frames: int = 0


@dataclass(frozen=True)
class Run:
    """Peaks of the resident set in MiB, CPU seconds, and sizes in bytes of the recording's files."""

    in_the_run: int
    finished: int
    run_seconds: float
    after_seconds: float
    partial: int
    file: int


@dataclass(frozen=True)
class Reading:
    """CPU microseconds a call of each step, and the number of calls."""

    calls: int
    load: float
    table: float
    chart: float


# In children


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def workload_of(job: Job, on_step: Callable[[], None]) -> Any:
    """Build the model and its run; `on_step` is called after each token or frame."""
    import torch
    from workloads import Workload, generator, qwen3

    torch.set_num_threads(1)
    if job.frames:
        from talkerviz.talker import Scenario
        from talkerviz.targets import talker_of, talker_target

        target = talker_target(talker_of("tiny", "native", "cpu", None, Scenario(frames=job.frames)))
        options = {"name": target.name, "phases": target.phases}
        return Workload(target.model, lambda: target.run(lambda frame: on_step()), options=options)

    def step(tokens: Any, scores: Any, **kwargs: Any) -> Any:
        on_step()
        return torch.zeros(len(tokens), dtype=torch.bool)

    model = qwen3(job.tokens).model
    generate = generator(model, job.tokens, stopping_criteria=[step])
    return Workload(model, lambda: [generate() for _ in range(job.generates)].clear())


def run_job(job: Job, path: Path | None) -> Run:
    """Run the job, recorded if a path is given."""
    import talkerviz as tv

    largest = 0

    def partial_files() -> list[Path]:
        return [] if path is None else list(path.parent.glob(f"{path.name}.partial*"))

    def measure_partial() -> None:
        nonlocal largest
        largest = max(largest, sum(file.stat().st_size for file in partial_files()))

    workload = workload_of(job, measure_partial)
    recorded = nullcontext() if path is None else tv.recording(workload.model, file=path, **workload.options)
    with recorded:
        began = process_time()
        workload.run()
        run_seconds = process_time() - began
        measure_partial()
        in_the_run = peak_mib()
        # A second name each, since what the recording writes as it ends would be deleted with the first one.
        links = [file.with_name(f"link.{number}") for number, file in enumerate(partial_files())]
        for link, file in zip(links, partial_files(), strict=True):
            link.hardlink_to(file)
        ended = process_time()
    after_seconds, finished = process_time() - ended, peak_mib()
    largest = max(largest, sum(link.stat().st_size for link in links))
    for link in links:
        link.unlink()
    return Run(in_the_run, finished, run_seconds, after_seconds, largest, path.stat().st_size if path else 0)


def read_trace(path: Path) -> Reading:
    """Load the trace, and make its table and its chart, in medians of several times."""
    import talkerviz as tv

    times: dict[str, list[float]] = {"load": [], "table": [], "chart": []}

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        began = process_time()
        yield
        times[step].append(process_time() - began)

    for _ in range(READINGS):
        with timed("load"):
            trace = tv.Trace.load(path)
        with timed("table"):
            trace.table("module")
        with timed("chart"):
            trace.render("mermaid")
    calls = len(trace.calls)
    return Reading(calls, **{step: statistics.median(taken) / calls * 1e6 for step, taken in times.items()})


def count_calls(job: Job) -> int:
    """Count the module calls of the job's run with a hook of torch's own."""
    import torch

    calls = 0

    def count(*args: Any) -> None:
        nonlocal calls
        calls += 1

    workload = workload_of(job, lambda: None)
    handle = torch.nn.modules.module.register_module_forward_hook(count)
    workload.run()
    handle.remove()
    return calls


def child(step: str, job: Job, path: Path | None) -> Any:
    if step == "count":
        return count_calls(job)
    if step == "run":
        return asdict(run_job(job, path))
    assert path is not None
    return asdict(read_trace(path))


def in_child(step: str, job: Job, path: Path | None = None) -> Any:
    """Run a step in a new process; this one stays small, since a child's peak begins at its parent's."""
    command = [sys.executable, __file__, "--child", step, json.dumps(asdict(job)), str(path or "")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"benchmarks/memory.py: {step} of {job.title} failed")
    result = done.stdout.splitlines()[-1]
    print(f"{step}, {job.title}{', recorded' if path else ''}: {result}", file=sys.stderr, flush=True)
    return json.loads(result)


# The report


@dataclass
class Measured:
    """Measurements of a job: unrecorded, recorded, and read from its file."""

    job: Job
    bare: Run
    recorded: Run
    reading: Reading


def measure(job: Job, folder: Path) -> Measured:
    path = folder / "run.parquet"
    bare, recorded = Run(**in_child("run", job)), Run(**in_child("run", job, path))
    reading = Reading(**in_child("read", job, path))
    path.unlink()
    return Measured(job, bare, recorded, reading)


def jobs(calls: int) -> list[Job]:
    tokens = round(calls / in_child("count", Job("one token", tokens=1)))
    frames = round(calls / in_child("count", Job("one frame", frames=1)))
    return [
        Job(f"one `generate` of {tokens:,} tokens", tokens),
        Job(f"ten `generate` of {tokens:,} tokens", tokens, 10),
        Job(f"one `generate` of {10 * tokens:,} tokens", 10 * tokens),
        Job(f"our talker, {frames:,} frames", frames=frames),
    ]


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f}"


def verdict(short: Measured, long: list[Measured], talker: Measured) -> str:
    """State each goal with its worst figure."""
    growth = max(one.recorded.finished - short.recorded.finished for one in long)
    bare = max(one.bare.finished - short.bare.finished for one in long)
    partial = max(one.recorded.partial / one.recorded.file for one in [short, *long])
    slower = {
        step: max(getattr(one.reading, step) / getattr(talker.reading, step) for one in [short, *long])
        for step in ("load", "table", "chart")
    }
    step, times = max(slower.items(), key=lambda pair: pair[1])
    names = {"load": "Loading", "table": "The table", "chart": "The chart"}
    sentences = [
        f"**From {short.reading.calls:,} to {min(one.reading.calls for one in long):,} recorded calls the resident set "
        f"grows by {growth} MiB** (without a recording by {bare} MiB), {within(growth, GOAL_GROWTH_MIB)} the goal of "
        f"{GOAL_GROWTH_MIB} MiB.",
        f"`.partial` is at most {partial:.2f} times the finished file, {within(partial, GOAL_PARTIAL)} the goal of "
        f"{GOAL_PARTIAL:.0f}.",
        f"{names[step]} of such a trace takes at most {times:.2f} times as long a call as of the talker's, "
        f"{within(times, GOAL_READING)} the goal of {GOAL_READING:.0f}.",
    ]
    return " ".join(sentences)


def within(figure: float, goal: float) -> str:
    return "within" if figure <= goal else "beyond"


def report(measured: list[Measured], calls: int) -> str:
    short, *long, talker = measured
    resident = [
        [
            one.job.title,
            f"{one.reading.calls:,}",
            what,
            f"{run.in_the_run:,}",
            f"{run.finished:,}",
            f"{run.run_seconds:,.1f}",
        ]
        for one in measured
        for what, run in (("bare", one.bare), ("recorded", one.recorded))
    ]
    files = [
        [
            one.job.title,
            mebibytes(one.recorded.partial),
            mebibytes(one.recorded.file),
            f"{one.recorded.partial / one.recorded.file:.2f}",
            f"{one.recorded.file / one.reading.calls:.1f}",
            f"{one.recorded.after_seconds / one.reading.calls * 1e6:.2f}",
        ]
        for one in measured
    ]
    readings = [
        [one.job.title, f"{one.reading.calls:,}"]
        + [f"{getattr(one.reading, step):.2f}" for step in ("load", "table", "chart")]
        for one in measured
    ]
    made = "python benchmarks/memory.py" + (f" --calls {calls}" if calls != 100_000 else "")
    parts = [
        "# Memory of a recording",
        verdict(short, long, talker),
        f"{datetime.date.today()}, torch {version('torch')}, transformers {version('transformers')}, Python "
        f"{platform.python_version()}; made by `{made}`. Qwen3 of transformers, 28 layers of width 64 with a "
        "DynamicCache; the talker is the preset `tiny`. Each run is a process of its own, recorded to a file.",
        "## Peak resident set, MiB",
        table(["run", "calls", "", "when the run is over", "when the file is finished", "CPU s of the run"], resident),
        "## Files",
        table(["run", "`.partial`, MiB", "file, MiB", "times", "bytes a call", "finishing, µs a call"], files),
        "`.partial` is its largest size until the file is finished.",
        "## Reading, CPU µs a call",
        table(["run", "calls", "`Trace.load`", '`table("module")`', '`render("mermaid")`'], readings),
        f"Medians of {READINGS} times, each with a trace loaded anew.",
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the memory of a recording, and the time to read its file.")
    parser.add_argument("--calls", type=int, default=100_000, help="of the short run (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, default=Path("reports/benchmarks/memory.md"))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        step, fields, path = options.child
        print(json.dumps(child(step, Job(**json.loads(fields)), Path(path) if path else None)))
        return
    if options.calls < 1_000:
        parser.error("--calls must be at least 1000")
    with tempfile.TemporaryDirectory() as folder:
        text = report([measure(job, Path(folder)) for job in jobs(options.calls)], options.calls)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
