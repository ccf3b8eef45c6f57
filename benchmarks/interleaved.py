"""Timing of tools on the same work, each beside the untraced run, in rounds that mix all of them."""

from __future__ import annotations

import gc
import platform
import random
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

import torch
from torch import nn

SECONDS_A_TOOL = 25  # slower tools are repeated less often
FEWEST_REPEATS = 3
SEED = 0  # of the order within the rounds


@dataclass(frozen=True)
class Sample:
    """Seconds of one run under a tool: setting the tool up, the run itself, and taking the tool away."""

    before: float
    inside: float
    after: float

    @property
    def whole(self) -> float:
        return self.before + self.inside + self.after


@dataclass(frozen=True)
class Tool:
    """A tool and how to time it.

    Args:
        name: the tool's name in the report.
        records: the tool's output, in words.
        measure: times one run.
        split: whether `measure` times setup, run and teardown separately.
    """

    name: str
    records: str
    measure: Callable[[], Sample]
    split: bool = True


@dataclass(frozen=True)
class Work:
    """A run and the tools that watch it.

    Args:
        title: heading in the report.
        note: text below the heading.
        run: the untraced run.
        calls: number of module calls in a run.
        tools: the tools to time.
        loops: number of runs in an untraced sample, for runs too short to be timed alone.
        whole: divide a tool's setup, run and teardown by the untraced run, rather than the run alone.
    """

    title: str
    note: str
    run: Callable[[], object]
    calls: int
    tools: Sequence[Tool]
    loops: int = 1
    whole: bool = False


@dataclass
class Result:
    """Samples of a tool, the untraced time beside each sample, and the reason if the tool failed."""

    samples: list[Sample] = field(default_factory=list)
    untraced: list[float] = field(default_factory=list)
    failure: str | None = None


def timed(enter: Callable[[], AbstractContextManager[Any]], run: Callable[[], object]) -> Sample:
    """Time a run inside a tool's context."""
    begin = perf_counter()
    with enter():
        start = perf_counter()
        run()
        end = perf_counter()
    return Sample(start - begin, end - start, perf_counter() - end)


def timed_call(call: Callable[[], object]) -> Sample:
    """Time a tool that runs the model itself."""
    start = perf_counter()
    call()
    return Sample(0.0, perf_counter() - start, 0.0)


@contextmanager
def plain_hooks(model: nn.Module) -> Iterator[list[tuple[str, int, Any]]]:
    """Log time, path and shapes with two hooks on each module, as one would write them by hand."""
    log: list[tuple[str, int, Any]] = []

    def shapes(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.shape
        if isinstance(value, tuple | list):
            return [shapes(item) for item in value]
        return None

    def hooks_of(path: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            log.append((path, perf_counter_ns(), [shapes(args), {name: shapes(kwargs[name]) for name in kwargs}]))

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            log.append((path, perf_counter_ns(), shapes(output)))

        return before, after

    handles = []
    for path, module in model.named_modules():
        before, after = hooks_of(path)
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        yield log
    finally:
        for handle in handles:
            handle.remove()


def untraced_tool(run: Callable[[], object], loops: int = 1) -> Tool:
    """Return the untraced run as a tool; its ratio's distance from 1 is the measurement noise."""
    return Tool("untraced", "nothing", lambda: untraced(run, loops))


def untraced(run: Callable[[], object], loops: int) -> Sample:
    sample = timed(nullcontext, lambda: [run() for _ in range(loops)])
    return Sample(0.0, sample.inside / loops, 0.0)


def measure(work: Work, repeats: int) -> dict[str, Result]:
    """Run every tool once a round, in shuffled order, with an untraced run before and after each."""
    results = {tool.name: Result() for tool in work.tools}
    repeats_of = {tool.name: _first_run(work, tool, results[tool.name], repeats) for tool in work.tools}
    # Keep collections from walking through torch's own objects each time.
    gc.collect()
    gc.freeze()
    order = random.Random(SEED)
    for number in range(repeats):
        tools = [tool for tool in work.tools if number < repeats_of[tool.name]]
        order.shuffle(tools)
        earlier = _baseline(work)
        for tool in tools:
            _settle(work)
            sample = tool.measure()
            later = _baseline(work)
            results[tool.name].samples.append(sample)
            results[tool.name].untraced.append((earlier + later) / 2)
            earlier = later
    return results


def _first_run(work: Work, tool: Tool, result: Result, repeats: int) -> int:
    """Run the tool twice so that its imports are done; return the number of repeats, 0 if it fails."""
    try:
        tool.measure()
        sample = tool.measure()
    except Exception as error:
        result.failure = reason(error)
        return 0
    return min(repeats, max(FEWEST_REPEATS, int(SECONDS_A_TOOL / sample.whole)))


def reason(error: BaseException) -> str:
    """Describe a failure in a table cell."""
    if isinstance(error, ModuleNotFoundError):
        return f"not installed: {error.name}"
    while error.__cause__ is not None:
        error = error.__cause__
    return f"fails: {type(error).__name__}: " + textwrap.shorten(str(error), 110, placeholder=" …").replace("|", "\\|")


def _baseline(work: Work) -> float:
    _settle(work)
    return untraced(work.run, work.loops).inside


def _settle(work: Work) -> None:
    """Collect garbage and run the work once unmeasured, so that every measurement starts in the same state."""
    gc.collect()
    for _ in range(work.loops):
        work.run()


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
