"""What it costs to watch a run: talkerviz and other tools, each on the same work as the untraced run.

    pip install torchinfo==1.8.0 torchview==0.2.7 torchlens==2.36.1
    python benchmarks/overhead.py [--repeats 40] [-o reports/benchmarks/overhead.md]

A peer that is not installed, or that fails, gets a row that says so. The work is made of many small calls, so that a
tool's own cost is not hidden behind arithmetic: these are worst cases. Takes about two minutes on two cores.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import gc
import os
import platform
import random
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import talkerviz as tv
from talkerviz.recorder import recorder
from talkerviz.recorder.phases import TalkerPhases
from talkerviz.recorder.tap import PythonTap
from talkerviz.talker.cache import KVCache
from talkerviz.talker.config import TalkerConfig, preset
from talkerviz.talker.prompt import assemble_prompt
from talkerviz.talker.run import run as run_talker
from talkerviz.talker.scenario import Scenario, scenario_inputs
from talkerviz.talker.weights import build_talker

PEERS = ("torchinfo", "torchview", "torchlens")
SCENARIO = Scenario(prompt_tokens=11, text_tokens=20, frames=12)
SECONDS_A_TOOL = 25  # slow tools are repeated less often, so that they take no longer than this
FEWEST_REPEATS = 3
SEED = 0  # of the order within the rounds


@dataclass(frozen=True)
class Sample:
    """Seconds of one run under a tool: getting ready, the run itself, and what comes after it."""

    before: float
    inside: float
    after: float

    @property
    def whole(self) -> float:
        return self.before + self.inside + self.after


@dataclass(frozen=True)
class Tool:
    """`split` says whether `measure` can tell the run from what comes before and after it."""

    name: str
    records: str
    measure: Callable[[], Sample]
    split: bool = True


@dataclass(frozen=True)
class Work:
    """What is run. A baseline is the mean of `loops` runs, for work that is too short to be timed once."""

    title: str
    note: str
    run: Callable[[], object]
    calls: int
    tools: Sequence[Tool]
    loops: int = 1
    whole: bool = False  # whether the ratio is of the whole, not of the run alone


@dataclass
class Result:
    """The samples of a tool, each with the untraced time next to it; or why there are none."""

    samples: list[Sample] = field(default_factory=list)
    untraced: list[float] = field(default_factory=list)
    failure: str | None = None


# How a run is watched


def timed(enter: Callable[[], AbstractContextManager[Any]], run: Callable[[], object]) -> Sample:
    """Run inside a tool's context."""
    begin = perf_counter()
    with enter():
        start = perf_counter()
        run()
        end = perf_counter()
    return Sample(start - begin, end - start, perf_counter() - end)


def timed_call(call: Callable[[], object]) -> Sample:
    """For tools that run the model themselves."""
    start = perf_counter()
    call()
    return Sample(0.0, perf_counter() - start, 0.0)


@contextmanager
def plain_hooks(model: nn.Module) -> Iterator[list[tuple[str, int, Any]]]:
    """What one writes by hand: on each module two hooks that note the time and the shapes, named by path."""
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


def talkerviz_tool(model: nn.Module, run: Callable[[], object], clock: str, records: str) -> Tool:
    @contextmanager
    def recorded() -> Iterator[None]:
        with tv.recording(model, "talker", TalkerPhases, clock) as rec:
            yield
        assert len(rec.trace.calls)  # the finished table counts as well

    return Tool(f"talkerviz, `clock={clock!r}`".replace("'", '"'), records, lambda: timed(recorded, run))


def without_c(tool: Tool) -> Tool:
    """The same tool as it is where no C compiler built the faster part."""

    def measure() -> Sample:
        in_c, recorder.Tap = recorder.Tap, PythonTap
        try:
            return tool.measure()
        finally:
            recorder.Tap = in_c

    return replace(tool, name=f"{tool.name}, all in Python", measure=measure)


def profiler_tool(run: Callable[[], object], records: str, **options: bool) -> Tool:
    name = "torch.profiler" + "".join(f", `{option}`" for option in options)
    return Tool(name, records, lambda: timed(lambda: profile(activities=[ProfilerActivity.CPU], **options), run))


def untraced_tool(run: Callable[[], object], loops: int = 1) -> Tool:
    """The untraced run as if it were a tool: how far its ratio is from 1 is the noise of the others."""
    return Tool("untraced", "nothing", lambda: untraced(run, loops))


def untraced(run: Callable[[], object], loops: int) -> Sample:
    sample = timed(nullcontext, lambda: [run() for _ in range(loops)])
    return Sample(0.0, sample.inside / loops, 0.0)


# The work


def count_calls(model: nn.Module, run: Callable[[], object]) -> int:
    """Counted by talkerviz and by plain hooks, which must agree."""
    calls = len(tv.record(model, run, clock="none").calls)
    with plain_hooks(model) as log:
        run()
    if len(log) != 2 * calls:
        raise RuntimeError(f"talkerviz saw {calls} calls, hooks {len(log) / 2:g}")
    return calls


def scenario_work(talker: nn.Module, config: TalkerConfig) -> Work:
    def run() -> object:
        return run_talker(talker, "native", SCENARIO, config)

    every_call = "every call: path, class, nesting, phase, frame, all tensors in and out (name, shape, dtype, device)"
    every_op = "every operator: name, host time"
    tools = [
        untraced_tool(run),
        talkerviz_tool(talker, run, "cpu", f"{every_call}, host time"),
        talkerviz_tool(talker, run, "none", every_call),
        without_c(talkerviz_tool(talker, run, "cpu", "the same")),
        Tool(
            "plain forward hooks",
            "every call: path, shapes of tensors and of sequences of them, host time",
            lambda: timed(lambda: plain_hooks(talker), run),
        ),
        Tool(
            "`FlopCounterMode`",
            "floating-point operations by module, summed; no calls, no shapes",
            lambda: timed(lambda: FlopCounterMode(display=False), run),
        ),
        profiler_tool(run, f"{every_op}; no modules"),
        profiler_tool(run, f"{every_op}, input shapes; no modules", record_shapes=True),
        profiler_tool(
            run,
            f"{every_op}, input shapes, Python stack with modules by class and number",
            record_shapes=True,
            with_stack=True,
            with_modules=True,
        ),
    ]
    title = f"A whole run of the talker, {SCENARIO.frames} frames"
    return Work(title, "The ratio is of the time in the run.", run, count_calls(talker, run), tools)


def prefill_work(talker: nn.Module, config: TalkerConfig) -> Work:
    weight = talker.codec_head.weight
    thinker = scenario_inputs(SCENARIO, config, weight.device, weight.dtype)
    embeds = assemble_prompt(talker, config, thinker, config.speaker_id[SCENARIO.speaker]).inputs_embeds
    cache = KVCache(config.text, embeds.shape[1], weight.device, weight.dtype)

    def inputs() -> dict[str, Any]:
        cache.length = 0
        return {"inputs_embeds": embeds, "cache": cache}

    def run() -> object:
        return talker(**inputs())

    loops = 20
    tools = [
        untraced_tool(run, loops),
        talkerviz_tool(talker, run, "cpu", "as above"),
        torchinfo_tool(talker, inputs),
        torchview_tool(talker, inputs),
        torchlens_tool(talker, inputs),
    ]
    note = "The ratio is of the whole: these tools run the model themselves, once, and hand over a finished result."
    title = "One forward: the talker's prefill pass"
    return Work(title, note, run, count_calls(talker, run), tools, loops, whole=True)


def block_work(talker: nn.Module, config: TalkerConfig) -> Work:
    """Torchinfo's work: it takes neither the talker's cache nor its outputs, so a module that has none of these."""
    block = talker.model.layers[0].mlp
    hidden = torch.randn(1, 20, config.text.hidden_size, generator=torch.Generator().manual_seed(SEED))

    def run() -> object:
        return block(hidden)

    loops = 50
    tools = [
        untraced_tool(run, loops),
        talkerviz_tool(block, run, "cpu", "as above"),
        torchinfo_tool(block, lambda: {"hidden_states": hidden}),
    ]
    note = "For torchinfo, which cannot run the talker. The ratio is of the whole."
    title = "One forward: a mixture-of-experts block"
    return Work(title, note, run, count_calls(block, run), tools, loops, whole=True)


# The peers. Each has a model of its own: some leave things behind on it.


def torchinfo_tool(model: nn.Module, inputs: Callable[[], dict[str, Any]]) -> Tool:
    model = copy.deepcopy(model)

    def measure() -> Sample:
        import torchinfo

        return timed_call(lambda: torchinfo.summary(model, input_data=inputs(), depth=99, verbose=0))

    records = "modules: class, a shape in, a shape out, parameters, multiply-adds; no dtypes, no time"
    return Tool("`torchinfo.summary`", records, measure, split=False)


def torchview_tool(model: nn.Module, inputs: Callable[[], dict[str, Any]]) -> Tool:
    model = copy.deepcopy(model)

    def measure() -> Sample:
        import torchview

        return timed_call(lambda: torchview.draw_graph(model, input_data=inputs(), depth=99, mode="eval"))

    records = "modules and tensors as a graph with shapes; no dtypes, no time"
    return Tool("`torchview.draw_graph`", records, measure, split=False)


def torchlens_tool(model: nn.Module, inputs: Callable[[], dict[str, Any]]) -> Tool:
    model = copy.deepcopy(model)

    @contextmanager
    def wrapped() -> Iterator[None]:
        from torchlens.backends.torch.wrappers import unwrap_torch, wrap_torch

        # Left to itself it wraps torch's functions in the first call and leaves them so: all that runs later in this
        # process, the untraced run too, would take half as long again.
        wrap_torch()
        try:
            yield
        finally:
            unwrap_torch()

    def measure() -> Sample:
        import torchlens

        nothing_saved = torchlens.options.CaptureOptions(layers_to_save="none")
        return timed(wrapped, lambda: torchlens.trace(model, None, input_kwargs=inputs(), capture=nothing_saved))

    records = "every operator: shapes, dtypes, module, source line, its place in the graph; values not saved"
    return Tool("`torchlens.trace`", records, measure)


# Measuring


def measure(work: Work, repeats: int) -> dict[str, Result]:
    """Each round runs every tool once, in shuffled order, with an untraced run on either side of it."""
    results = {tool.name: Result() for tool in work.tools}
    repeats_of = {tool.name: _first_run(work, tool, results[tool.name], repeats) for tool in work.tools}
    # What is there by now, all of torch, would only be walked through again at every collection.
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
    """Let the tool load what it loads once, see whether it works, and say how often to repeat it."""
    try:
        tool.measure()
        sample = tool.measure()
    except Exception as error:
        result.failure = reason(error)
        return 0
    return min(repeats, max(FEWEST_REPEATS, int(SECONDS_A_TOOL / sample.whole)))


def reason(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"not installed: {error.name}"
    while error.__cause__ is not None:
        error = error.__cause__
    return f"fails: {type(error).__name__}: " + textwrap.shorten(str(error), 110, placeholder=" …").replace("|", "\\|")


def _baseline(work: Work) -> float:
    _settle(work)
    return untraced(work.run, work.loops).inside


def _settle(work: Work) -> None:
    """Every measurement begins alike: no garbage, and the work's code and weights in the processor's caches."""
    gc.collect()
    for _ in range(work.loops):
        work.run()


# The report


def table(work: Work, results: dict[str, Result]) -> str:
    times = ["before, ms", "in the run, ms", "after, ms", "ratio", "middle half", "µs a call"]
    lines = [["tool", "rounds", *times, "records"], ["---", *["---:"] * 7, "---"]]
    lines += [row(work, tool, results[tool.name]) for tool in work.tools]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def row(work: Work, tool: Tool, result: Result) -> list[str]:
    if result.failure is not None:
        return [tool.name, "0", *["–"] * 6, result.failure]
    samples, near = result.samples, np.array(result.untraced)
    taken = np.array([sample.whole if work.whole else sample.inside for sample in samples])
    ratios = taken / near
    low, high = np.quantile(ratios, [0.25, 0.75])
    inside = _ms([sample.inside for sample in samples])
    is_untraced = tool.name == "untraced"
    return [
        tool.name,
        str(len(samples)),
        _ms([sample.before for sample in samples]) if tool.split and not is_untraced else "–",
        inside if tool.split else f"{inside} in all",
        _ms([sample.after for sample in samples]) if tool.split and not is_untraced else "–",
        f"**{_digits(np.median(ratios))}**",
        f"{_digits(low)} to {_digits(high)}",
        "–" if is_untraced else _digits(np.median(taken - near) / work.calls * 1e6),
        tool.records,
    ]


def _ms(seconds: Sequence[float]) -> str:
    return _digits(np.median(seconds) * 1e3)


def _digits(number: float) -> str:
    return f"{number:,.2f}" if number < 10 else f"{number:,.1f}" if number < 100 else f"{number:,.0f}"


def report(works: Sequence[tuple[Work, dict[str, Result]]], repeats: int, config: TalkerConfig) -> str:
    facts = {
        "date": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}",
        "command": f"`python benchmarks/overhead.py --repeats {repeats}`",
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()}; torch used {torch.get_num_threads()} "
        "thread",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, talkerviz {tv.__version__}, "
        + ", ".join(f"{peer} {version_of(peer)}" for peer in PEERS),
        "work": f"the native talker, preset `tiny` (hidden size {config.text.hidden_size}), "
        f"{SCENARIO.prompt_tokens} prompt and {SCENARIO.text_tokens} text tokens, {SCENARIO.frames} frames, greedy, "
        "float32, no gradients",
    }
    parts = ["# What watching costs", "\n".join(f"- {name}: {fact}" for name, fact in facts.items())]
    for work, results in works:
        parts += [f"## {work.title}", f"{work.calls:,} module calls. {work.note}", table(work, results)]
    return "\n\n".join([*parts, "## How it is measured", HOW]) + "\n"


HOW = f"""\
All in one process. Each round runs every tool once, in an order shuffled with a fixed seed, and an untraced run before
and after each; garbage is collected, and the work run once unmeasured, before every measurement. `ratio` is a tool's
time over the mean of the two untraced runs next to it, so that drift of the machine cancels: the median of the rounds,
and beside it the middle half of them. `µs a call` is the difference from the same mean, over the number of module
calls. The row `untraced` is the untraced run in a tool's place: how far it is from 1 is the noise. A tool that would
take more than {SECONDS_A_TOOL} seconds has fewer rounds, {FEWEST_REPEATS} at least. Every tool ran twice before the
first round, so loading is left out.

`before` is putting the tool in place, `after` is taking it away. With talkerviz the latter includes its whole table;
with the profiler it is the stop alone, and its table (`events()`, `key_averages()`) is made when it is asked for, which
is not counted. The calls are tiny, about as small as torch's get: at a real talker's widths the same microseconds are
spread over far longer calls. torchlens wraps all of torch's functions, `before`, and unwraps them, `after`: left to
itself it keeps them wrapped, which would slow down everything measured later."""


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


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what watching a run costs.")
    parser.add_argument("--repeats", type=int, default=40, help="rounds (default: %(default)s)")
    parser.add_argument("-o", type=Path, metavar="FILE", default=Path("reports/benchmarks/overhead.md"))
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes a line at each start and stop
    torch.set_num_threads(1)
    config = preset("tiny")
    talker = build_talker(config)
    works = []
    with torch.no_grad():
        for make in (scenario_work, prefill_work, block_work):
            work = make(talker, config)
            print(f"{work.title}: {work.calls:,} calls", file=sys.stderr)
            works.append((work, measure(work, options.repeats)))
    text = report(works, options.repeats, config)
    options.o.parent.mkdir(parents=True, exist_ok=True)
    options.o.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
