"""Cost of recording: talkerviz, plain hooks and torch.profiler beside the untraced run, on many kinds of models.

    pip install transformers==5.24.0 timm==1.0.31 diffusers==0.42.1 torchvision
    python benchmarks/overhead.py [--rows 'lm-*' ...] [--rounds 21] [-o reports/benchmarks/overhead.md]

`--list` names the rows; `growth` is the cost a token as the cache grows, drawn as an SVG beside the report. A row that
fails, or whose library is not installed, says so in the report. All rows take about fifteen minutes on a quiet machine.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import multiprocessing
import os
import platform
import random
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from math import ceil
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from interleaved import plain_hooks, processor, reason, version_of
from plot import line_plot
from torch.profiler import ProfilerActivity, profile
from workloads import ROWS, Workload, generator, import_torchvision, qwen3

import talkerviz as tv

GROWTH = "growth"
GOAL_RATIO, GOAL_US, GOAL_GROWTH = 1.10, 1.5, 1.10
SAMPLE_SECONDS = 0.35  # of CPU time: shorter runs are repeated within a sample
ROW_SECONDS = 25  # of wall time, after which a row has no further round
FEWEST_ROUNDS = 3
OTHERS_EVERY = 3  # rounds: the more of talkerviz and untraced there are, the less is their median that of the noise
LIMIT_SECONDS = 900  # of wall time, after which a row has failed
PROFILER_EVERY = 6  # rounds
PROFILER_PART = 0.25  # of the runs of a sample, since stopping it takes longer than the run
PROFILER_SECONDS = 8  # after which a row has no further sample of it
SEED = 0  # of the order within the rounds

PLAIN, AGAIN, OURS, HOOKS, VIA_HOOKS, PROFILER = (
    "untraced",
    "untraced again",
    "talkerviz",
    "plain hooks",
    "talkerviz via hooks",
    "torch.profiler",
)

Enter = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Sample:
    """Seconds of several runs under a tool, and CPU seconds of taking the tool away, all recordings together."""

    runs: int
    cpu: float
    wall: float
    after: float


@dataclass
class Measured:
    """Samples of a row by round and tool, and the reasons of tools that failed."""

    calls: int = 0  # of a run
    rounds: list[dict[str, Sample]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def per_run(self, tool: str, clock: str) -> np.ndarray:
        """Return the seconds a run in each round; NaN in rounds without this tool."""
        samples = [samples.get(tool) for samples in self.rounds]
        return np.array([getattr(sample, clock) / sample.runs if sample else np.nan for sample in samples])

    def untraced(self, clock: str) -> np.ndarray:
        return (self.per_run(PLAIN, clock) + self.per_run(AGAIN, clock)) / 2

    def ratios(self, tool: str, clock: str = "cpu") -> np.ndarray:
        """Return the tool's time over the untraced time of the same round, for rounds with this tool."""
        ratios = self.per_run(tool, clock) / self.untraced(clock)
        return ratios[~np.isnan(ratios)]

    def ratio(self, tool: str, clock: str = "cpu") -> float:
        ratios = self.ratios(tool, clock)
        return float(np.median(ratios)) if len(ratios) else np.nan

    def microseconds_a_call(self, tool: str) -> float:
        more = self.per_run(tool, "cpu") - self.untraced("cpu")
        return float(np.nanmedian(more)) / self.calls * 1e6 if len(self.ratios(tool)) else np.nan

    def misses(self) -> list[str]:
        """List the goals that the row misses."""
        ratio, cost, hooks = self.ratio(OURS), self.microseconds_a_call(OURS), self.ratio(HOOKS)
        checks = {
            f"{digits(ratio)} times": ratio > GOAL_RATIO,
            f"{digits(cost)} µs a call": cost > GOAL_US,
            f"plain hooks cost {digits(hooks)} times": ratio >= hooks,
        }
        return [goal for goal, missed in checks.items() if missed]


# Rows


class Tools:
    """Context managers that watch a workload, by name; `calls` is the number that talkerviz or hooks saw last."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.calls: dict[str, int] = {}
        self.enter: dict[str, Enter] = {PLAIN: nullcontext, AGAIN: nullcontext, OURS: partial(self.recorded, OURS)}
        self.enter[VIA_HOOKS] = partial(self.recorded, VIA_HOOKS, via="hooks")
        self.enter[HOOKS] = self.hooks
        self.enter[PROFILER] = partial(profile, activities=[ProfilerActivity.CPU])

    @contextmanager
    def recorded(self, tool: str, **options: Any) -> Iterator[None]:
        with tv.recording(self.workload.model, **self.workload.options, **options) as rec:
            yield
        self.calls[tool] = len(rec.trace.calls)  # so that the finished table counts

    @contextmanager
    def hooks(self) -> Iterator[None]:
        with plain_hooks(self.workload.model) as log:
            yield
        self.calls[HOOKS] = len(log) // 2


def take_sample(enter: Enter, run: Callable[[], object], runs: int = 1, recordings: int = 1) -> Sample:
    """Time a number of runs in each of a number of recordings, or in the tool's equivalent of a recording."""
    cpu = wall = after = 0.0
    for _ in range(recordings):
        gc.collect()
        with enter():
            started_wall, started = perf_counter(), process_time()
            for _ in range(runs):
                run()
            ended, ended_wall = process_time(), perf_counter()
        after += process_time() - ended
        cpu += ended - started
        wall += ended_wall - started_wall
    return Sample(runs * recordings, cpu, wall, after)


def measure_row(name: str, rounds: int) -> Measured:
    """Take samples in rounds of shuffled order until rounds or time are used up."""
    began = perf_counter()
    workload = ROWS[name].build()
    tools, measured = Tools(workload), Measured()
    warm_up = workload.warm_up or workload.run
    warm_up()
    if not ROWS[name].profiled:
        del tools.enter[PROFILER]
    for tool, enter in list(tools.enter.items()):
        try:
            take_sample(enter, warm_up)
        except Exception as error:
            measured.failures[tool] = reason(error)
            del tools.enter[tool]
    repeats = ceil(SAMPLE_SECONDS / take_sample(nullcontext, workload.run).cpu)
    runs, recordings = (1, repeats) if workload.anew else (repeats, 1)
    order, profiler_seconds = random.Random(SEED), 0.0
    for number in range(rounds):
        started = perf_counter()
        if number >= FEWEST_ROUNDS and started - began > ROW_SECONDS:
            break
        samples = {}
        chosen = list(tools.enter)
        if number % OTHERS_EVERY:
            chosen = [tool for tool in chosen if tool in (PLAIN, AGAIN, OURS)]
        if number % PROFILER_EVERY or profiler_seconds > PROFILER_SECONDS:
            chosen = [tool for tool in chosen if tool != PROFILER]
        order.shuffle(chosen)
        for tool in chosen:
            started = perf_counter()
            part = PROFILER_PART if tool == PROFILER else 1
            sizes = ceil(runs * part), ceil(recordings * part)
            samples[tool] = take_sample(tools.enter[tool], workload.run, *sizes)
            profiler_seconds += perf_counter() - started if tool == PROFILER else 0.0
        measured.rounds.append(samples)
    measured.calls = tools.calls.get(OURS, tools.calls[HOOKS]) // runs
    if len(set(tools.calls.values())) > 1:
        counted = ", ".join(f"{tool} {count:,}" for tool, count in tools.calls.items())
        measured.notes.append(f"calls seen in {runs} run{'s' if runs > 1 else ''} differ: {counted}")
    return measured


def in_child(function: Callable[..., Any], *args: Any) -> Any:
    """Call the function in a forked process, so that rows do not share a heap; raise if it fails or hangs."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_reply, args=(theirs, function, args))
    process.start()
    theirs.close()
    try:
        if not ours.poll(LIMIT_SECONDS):
            raise TimeoutError(f"took more than {LIMIT_SECONDS} s")
        result = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the process ended with {process.exitcode}") from None
    finally:
        process.join(5)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
    if isinstance(result, str):
        raise RuntimeError(result)
    return result


def _reply(pipe: Connection, function: Callable[..., Any], args: Sequence[Any]) -> None:
    os.setpgid(0, 0)  # so that it is killed with its own children
    try:
        pipe.send(function(*args))
    except Exception as error:
        pipe.send(reason(error))


# Growth with tokens


TOKENS, WINDOW, TURN = 1_056, 64, 8
GROWTH_ROUNDS = 3
POSITIONS = np.arange(WINDOW, TOKENS, WINDOW)  # the middle of each window; the first tokens and the prefill are in none


@dataclass
class Growth:
    """CPU seconds a token by tool, [rounds, windows], and module calls a token."""

    seconds: dict[str, np.ndarray]
    calls: float

    def cost(self, tool: str) -> np.ndarray:
        """Return the microseconds a token more than untraced, [rounds, windows]."""
        return (self.seconds[tool] - self.seconds[PLAIN]) * 1e6

    def ends(self, tool: str) -> tuple[float, float]:
        """Return the cost at the first and the last position, on the straight line through all rounds."""
        return _ends_of_line(self.cost(tool))

    def ends_by_round(self, tool: str) -> list[tuple[float, float]]:
        return [_ends_of_line(cost) for cost in self.cost(tool)]


def _ends_of_line(cost: np.ndarray) -> tuple[float, float]:
    slope, offset = np.polyfit(np.tile(POSITIONS, cost.size // len(POSITIONS)), cost.ravel(), 1)
    return float(offset + slope * POSITIONS[0]), float(offset + slope * POSITIONS[-1])


def measure_growth(rounds: int) -> Growth:
    """Generate with each tool at once, in processes that take turns of a few tokens.

    A process keeps what its recorder has gathered, and tools are compared within a second of each other.
    """
    workload = qwen3(TOKENS)
    warm_up = workload.warm_up
    assert warm_up is not None
    warm_up()
    tools = [PLAIN, OURS, HOOKS, VIA_HOOKS]
    seconds: dict[str, list[np.ndarray]] = {tool: [] for tool in tools}
    calls = 0
    context = multiprocessing.get_context("fork")
    order = random.Random(SEED)
    for _ in range(rounds):
        pipes, processes = {}, []
        for tool in tools:
            pipes[tool], theirs = context.Pipe()
            processes.append(context.Process(target=_generate_in_turns, args=(theirs, workload, tool)))
            processes[-1].start()
            theirs.close()
        replies: dict[str, Any] = {tool: pipe.recv() for tool, pipe in pipes.items()}
        for _ in range(0, TOKENS, TURN):
            order.shuffle(tools)
            for tool in tools:
                pipes[tool].send("go on")
                replies[tool] = pipes[tool].recv()
        for process in processes:
            process.join()
        for tool, (spent, seen) in replies.items():
            windows = [spent[middle - WINDOW // 2 : middle + WINDOW // 2] for middle in POSITIONS]
            seconds[tool].append(np.array(windows).mean(axis=1))
            calls = max(calls, seen)
    return Growth({tool: np.array(rows) for tool, rows in seconds.items()}, calls / TOKENS)


def _generate_in_turns(pipe: Connection, workload: Workload, tool: str) -> None:
    spent: list[float] = []
    tools = Tools(workload)
    enter = tools.enter[tool]

    def note_token(tokens: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal started
        spent.append(process_time() - started)
        if len(spent) % TURN == 0 and len(spent) < TOKENS:
            pipe.send(None)
            pipe.recv()
        started = process_time()
        return torch.zeros(len(tokens), dtype=torch.bool)

    assert workload.warm_up is not None
    take_sample(enter, workload.warm_up)
    gc.collect()
    pipe.send(None)
    pipe.recv()
    with enter():
        run = generator(workload.model, TOKENS, stopping_criteria=[note_token])
        started = process_time()
        run()
    pipe.send((spent, tools.calls.get(tool, 0)))


# The report


def digits(number: float) -> str:
    if np.isnan(number):
        return "–"
    return f"{number:,.2f}" if abs(number) < 10 else f"{number:,.1f}" if abs(number) < 100 else f"{number:,.0f}"


def quartiles(ratios: np.ndarray) -> str:
    return " to ".join(digits(quartile) for quartile in np.quantile(ratios, [0.25, 0.75])) if len(ratios) else "–"


COLUMNS = {
    "row": "---",
    "calls": "---:",
    "untraced CPU, ms": "---:",
    "untraced wall, ms": "---:",
    "**talkerviz, CPU**": "---:",
    "middle half": "---:",
    "wall": "---:",
    "µs a call": "---:",
    "after, ms": "---:",
    "plain hooks, CPU": "---:",
    "hooks' µs a call": "---:",
    "talkerviz via hooks, CPU": "---:",
    "torch.profiler, CPU": "---:",
    "untraced twice": "---:",
    "runs × rounds": "---:",
    "model": "---",
}


def table_row(name: str, measured: Measured | str) -> list[str]:
    row = ROWS[name]
    if isinstance(measured, str):
        return [row.title, *["–"] * (len(COLUMNS) - 2), f"{row.model}; {measured}"]
    again = measured.per_run(AGAIN, "cpu") / measured.per_run(PLAIN, "cpu")
    runs = measured.rounds[0][PLAIN].runs
    return [
        row.title,
        f"{measured.calls * runs:,}",
        digits(float(np.median(measured.untraced("cpu"))) * runs * 1e3),
        digits(float(np.median(measured.untraced("wall"))) * runs * 1e3),
        f"**{digits(measured.ratio(OURS))}**",
        quartiles(measured.ratios(OURS)),
        digits(measured.ratio(OURS, "wall")),
        digits(measured.microseconds_a_call(OURS)),
        digits(
            float(np.nanmedian(measured.per_run(OURS, "after"))) * runs * 1e3 if OURS in measured.rounds[0] else np.nan
        ),
        digits(measured.ratio(HOOKS)),
        digits(measured.microseconds_a_call(HOOKS)),
        digits(measured.ratio(VIA_HOOKS)),
        digits(measured.ratio(PROFILER)),
        quartiles(again),
        f"{runs} × {len(measured.rounds)}",
        row.model,
    ]


def badness(measured: Measured | str) -> float:
    """Sort key: the ratio, failed rows last."""
    ratio = -1.0 if isinstance(measured, str) else measured.ratio(OURS)
    return -1.0 if np.isnan(ratio) else ratio


def verdict(rows: Sequence[tuple[str, Measured | str]]) -> str:
    """Name the worst row, and every row that misses a goal."""
    fine = [(name, row) for name, row in rows if not isinstance(row, str) and OURS not in row.failures]
    parts = []
    if fine:
        name, worst = fine[0]
        parts.append(
            f"**The worst row is “{ROWS[name].title}”: {digits(worst.ratio(OURS))} times the CPU time of the untraced "
            f"run, {digits(worst.microseconds_a_call(OURS))} µs a call** (plain hooks: {digits(worst.ratio(HOOKS))} "
            "times)."
        )
    missed = {name: misses for name, row in fine if (misses := row.misses())}
    goals = f"at most {GOAL_RATIO:.2f} times, at most {GOAL_US} µs a call, and less than plain hooks"
    parts.append(f"All three goals are met by {len(fine) - len(missed)} of {len(fine)} measured rows: {goals}.")
    if missed:
        listed = "; ".join(f"{ROWS[name].title} ({', '.join(misses)})" for name, misses in missed.items())
        parts.append(f"Missed by: {listed}.")
    if len(fine) < len(rows):
        parts.append(f"{len(rows) - len(fine)} of {len(rows)} rows could not be measured.")
    return " ".join(parts)


def growth_text(growth: Growth, image: str) -> list[str]:
    first, last = POSITIONS[0], POSITIONS[-1]
    heads = [
        "tool",
        f"µs a token at {first}",
        f"at {last:,}",
        f"µs a call at {first}",
        f"at {last:,}",
        "growth",
        "by round",
    ]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for tool in growth.seconds:
        if tool == PLAIN:
            continue
        ends, by_round = growth.ends(tool), [end / start for start, end in growth.ends_by_round(tool)]
        cells = [digits(end) for end in ends] + [digits(end / growth.calls) for end in ends]
        lines.append([tool, *cells, digits(ends[1] / ends[0]), f"{digits(min(by_round))} to {digits(max(by_round))}"])
    plain = np.median(growth.seconds[PLAIN], axis=0) * 1e3
    ends = growth.ends(OURS)
    met = "within" if ends[1] / ends[0] <= GOAL_GROWTH else "beyond"
    rounds = len(growth.seconds[PLAIN])
    return [
        "## Cost a token as the cache grows",
        f"**At token {last:,} a token costs {digits(ends[1] / ends[0])} times as much as at token {first}**, {met} the "
        f"goal of {GOAL_GROWTH:.2f}. The cost is the CPU time of the recorded run less that of the untraced run, on "
        f"the causal LM with {growth.calls:,.0f} calls a token; the untraced run takes {digits(plain[0])} ms a token "
        f"at {first} and {digits(plain[-1])} ms at {last:,}.",
        f"![Cost a token over the token's position]({image})",
        "\n".join(f"| {' | '.join(cells)} |" for cells in lines),
        f"Points are medians of {rounds} round{'s' if rounds > 1 else ''}, each the mean of {WINDOW} tokens; the table "
        "is read off straight lines through all windows of all rounds, its last column off those of one round each. "
        f"Each tool generates in a process of its own, forked from one parent; processes take turns of {TURN} tokens, "
        "so that tools are compared within a second or so.",
    ]


def growth_plot(growth: Growth) -> str:
    curves = {tool: np.median(growth.cost(tool), axis=0).tolist() for tool in growth.seconds if tool != PLAIN}
    title = "Cost a token: CPU time of the recorded run less that of the untraced one"
    return line_plot(title, "token", "µs a token", POSITIONS.tolist(), curves)


HOW = f"""\
Each row is a process of its own, with torch on one thread. A round takes one sample of talkerviz and two of the
untraced run, every {OTHERS_EVERY}rd one of each other tool too, in shuffled order; garbage is collected before each
sample, and the garbage collector is on during it,
over all objects of the process. A sample repeats runs of less than {SAMPLE_SECONDS} s of CPU time: in one recording,
or, where shapes grow from call to call, each in a recording of its own that has seen none of them before. `calls`, the
untraced times and `after` are of the whole sample. A ratio is a tool's time over the mean of the two untraced samples
of its round: the median of the rounds, and beside talkerviz's the middle half of them. `µs a call` is the median
difference over the number of calls. `untraced twice` is one untraced sample over the other, the middle half: the noise
of a single sample. A row ends after {ROW_SECONDS} s or the given number of rounds, but not before round
{FEWEST_ROUNDS}.

The ratio is of the time inside the `with` block. `after` is the CPU time from its end to a finished trace with its
table. `plain hooks` are two hooks on each module that log the time, the path and the shapes of tensors and of
sequences of tensors. `talkerviz via hooks` is `recording(..., via="hooks")`. torch.profiler records operators, without
shapes and modules; its time after the run is longer than the run and not counted. It is sampled in every
{PROFILER_EVERY}th round, and not at all in the two longest rows, where it would hold millions of events. Models have
random weights and width 64: at the widths of real models the same microseconds are spread over far longer calls."""


def report(rows: Sequence[tuple[str, Measured | str]], growth: Growth | str | None, command: str, image: str) -> str:
    libraries = ", ".join(f"{name} {version_of(name)}" for name in ("transformers", "timm", "diffusers"))
    facts = {
        "date": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}",
        "command": f"`{command}`",
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()}; torch used 1 thread",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, talkerviz {tv.__version__}, "
        + libraries,
    }
    parts = ["# What recording costs"]
    if rows:
        lines = [list(COLUMNS), list(COLUMNS.values()), *(table_row(name, measured) for name, measured in rows)]
        parts += [verdict(rows), "\n".join(f"- {name}: {fact}" for name, fact in facts.items())]
        parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
        notes = [
            f"- {ROWS[name].title}: {note}"
            for name, row in rows
            if not isinstance(row, str)
            for note in [*(f"{tool} {failure}" for tool, failure in row.failures.items()), *row.notes]
        ]
        parts += ["\n".join(notes)] if notes else []
    else:
        parts.append("\n".join(f"- {name}: {fact}" for name, fact in facts.items()))
    if isinstance(growth, Growth):
        parts += growth_text(growth, image)
    elif growth is not None:
        parts += ["## Cost a token as the cache grows", growth]
    return "\n\n".join([*parts, "## How it is measured", HOW]) + "\n"


def selected(patterns: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    names = [*ROWS, GROWTH]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            parser.error(f"--rows: no row fits {pattern!r}: choose from {', '.join(names)}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the cost of recording on many kinds of models.")
    parser.add_argument("--rows", nargs="+", metavar="GLOB", default=["*"], help="rows to measure (default: all)")
    parser.add_argument("--rounds", type=int, default=21, help="most rounds of a row (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="name the rows and exit")
    parser.add_argument("-o", type=Path, metavar="FILE", default=Path("reports/benchmarks/overhead.md"))
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name:20} {row.title}; {row.model}" for name, row in ROWS.items()))
        print(f"{GROWTH:20} cost a token as the cache grows")
        return
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    names = selected(options.rows, parser)

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes a line at each start and stop
    torch.set_num_threads(1)
    import_torchvision()
    # Imported once: children are forked from this process.
    import transformers.generation
    import transformers.modeling_utils

    transformers.utils.logging.set_verbosity_error()
    rows: list[tuple[str, Measured | str]] = []
    growth: Growth | str | None = None
    for name in names:
        started = perf_counter()
        try:
            if name == GROWTH:
                growth = in_child(measure_growth, min(GROWTH_ROUNDS, options.rounds))
                said = "measured"
            else:
                rows.append((name, in_child(measure_row, name, options.rounds)))
                said = " ".join(table_row(*rows[-1])[4:8])
        except Exception as error:
            said = str(error)
            if name == GROWTH:
                growth = said
            else:
                rows.append((name, said))
        print(f"{name}: {said} ({perf_counter() - started:.0f} s)", file=sys.stderr, flush=True)
    rows.sort(key=lambda row: badness(row[1]), reverse=True)
    image = options.o.with_name(f"{options.o.stem}-tokens.svg")
    command = shlex.join(["python", "benchmarks/overhead.py", *sys.argv[1:]])
    text = report(rows, growth, command, image.name)
    options.o.parent.mkdir(parents=True, exist_ok=True)
    options.o.write_text(text, encoding="utf-8")
    if isinstance(growth, Growth):
        image.write_text(growth_plot(growth), encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
