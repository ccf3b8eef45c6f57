"""Cost of talkerviz and of other tools on the talker, each on the same work as the untraced run.

    pip install torchinfo==1.8.0 torchview==0.2.7 torchlens==2.36.1
    python benchmarks/other_tools.py [--repeats 40] [-o reports/benchmarks/other-tools.md]

A tool that is not installed, or that fails, gets a row with the reason. The work consists of many small calls, so that
a tool's own cost is not hidden behind arithmetic: these are worst cases. Takes about two minutes on two cores.
`overhead.py` compares talkerviz with plain hooks and torch.profiler on many kinds of models.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleaved import (
    FEWEST_REPEATS,
    SECONDS_A_TOOL,
    Result,
    Sample,
    Tool,
    Work,
    measure,
    plain_hooks,
    processor,
    timed,
    timed_call,
    untraced_tool,
    version_of,
)
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import talkerviz as tv
from talkerviz.talker import Scenario, TalkerConfig, assemble_prompt, preset, scenario_inputs
from talkerviz.talker.model.cache import KVCache
from talkerviz.targets import Target, talker_of, talker_target

PEERS = ("torchinfo", "torchview", "torchlens")
SCENARIO = Scenario(prompt_tokens=11, text_tokens=20, frames=12)
SEED = 0  # of the inputs of a block


def talkerviz_tool(model: nn.Module, run: Callable[[], object], clock: str, records: str, phases: Any = None) -> Tool:
    @contextmanager
    def recorded() -> Iterator[None]:
        with tv.recording(model, "talker", phases, clock) as rec:
            yield
        assert len(rec.trace.calls)  # the finished table counts as well

    return Tool(f"talkerviz, `clock={clock!r}`".replace("'", '"'), records, lambda: timed(recorded, run))


def without_c(tool: Tool) -> Tool:
    """Return the same tool without its C extension, as on a machine with no C compiler: through hooks, in Python."""

    def measure() -> Sample:
        from talkerviz.recorder import tap

        # Not by name: the package has a function `recording` too.
        recorder = import_module("talkerviz.recorder.recording")

        native, recorder.Tap, tap.Tap = recorder.Tap, None, None
        try:
            return tool.measure()
        finally:
            recorder.Tap = tap.Tap = native

    return replace(tool, name=f"{tool.name}, all in Python", measure=measure)


def profiler_tool(run: Callable[[], object], records: str, **options: bool) -> Tool:
    name = "torch.profiler" + "".join(f", `{option}`" for option in options)
    return Tool(name, records, lambda: timed(lambda: profile(activities=[ProfilerActivity.CPU], **options), run))


# The work


def count_calls(model: nn.Module, run: Callable[[], object]) -> int:
    """Count a run's module calls with talkerviz and with plain hooks, which must agree."""
    calls = len(tv.record(model, run, clock="none").calls)
    with plain_hooks(model) as log:
        run()
    if len(log) != 2 * calls:
        raise RuntimeError(f"talkerviz saw {calls} calls, hooks {len(log) / 2:g}")
    return calls


def scenario_work(target: Target, config: TalkerConfig) -> Work:
    talker = target.model

    def run() -> object:
        return target.run(lambda frame: None)

    every_call = "every call: path, class, nesting, phase, frame, all tensors in and out (name, shape, dtype, device)"
    every_op = "every operator: name, host time"
    tools = [
        untraced_tool(run),
        talkerviz_tool(talker, run, "cpu", f"{every_call}, host time", target.phases),
        talkerviz_tool(talker, run, "none", every_call, target.phases),
        without_c(talkerviz_tool(talker, run, "cpu", "the same", target.phases)),
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


def prefill_work(target: Target, config: TalkerConfig) -> Work:
    talker: Any = target.model
    weight = talker.codec_head.weight
    thinker = scenario_inputs(SCENARIO, config, weight.device, weight.dtype)
    embeds = assemble_prompt(talker, config, thinker, config.speaker_id[SCENARIO.speaker]).inputs_embeds
    cache = KVCache(config.text, weight.device, weight.dtype)

    def inputs() -> dict[str, Any]:
        cache.length = 0
        return {"inputs_embeds": embeds, "cache": cache}

    def run() -> object:
        return talker(**inputs())

    loops = 20
    tools = [
        untraced_tool(run, loops),
        talkerviz_tool(talker, run, "cpu", "as above", target.phases),
        torchinfo_tool(talker, inputs),
        torchview_tool(talker, inputs),
        torchlens_tool(talker, inputs),
    ]
    note = "The ratio is of the whole: these tools run the model themselves, once, and hand over a finished result."
    title = "One forward: the talker's prefill pass"
    return Work(title, note, run, count_calls(talker, run), tools, loops, whole=True)


def block_work(target: Target, config: TalkerConfig) -> Work:
    """Run a block without caches and output objects, neither of which torchinfo takes."""
    talker: Any = target.model
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


# The peers. Each has a copy of the model, since some of them leave attributes on it.


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
        "command": f"`python benchmarks/other_tools.py --repeats {repeats}`",
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()}; torch used {torch.get_num_threads()} "
        "thread",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, talkerviz {tv.__version__}, "
        + ", ".join(f"{peer} {version_of(peer)}" for peer in PEERS),
        "work": f"the native talker, preset `tiny` (hidden size {config.text.hidden_size}), "
        f"{SCENARIO.prompt_tokens} prompt and {SCENARIO.text_tokens} text tokens, {SCENARIO.frames} frames, greedy, "
        "float32, no gradients",
    }
    parts = ["# What other tools cost", "\n".join(f"- {name}: {fact}" for name, fact in facts.items())]
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


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the cost of talkerviz and of other tools on the talker.")
    parser.add_argument("--repeats", type=int, default=40, help="rounds (default: %(default)s)")
    parser.add_argument("-o", type=Path, metavar="FILE", default=Path("reports/benchmarks/other-tools.md"))
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes a line at each start and stop
    torch.set_num_threads(1)
    config = preset("tiny")
    target = talker_target(talker_of("tiny", "native", "cpu", None, SCENARIO))
    works = []
    with torch.no_grad():
        for make in (scenario_work, prefill_work, block_work):
            work = make(target, config)
            print(f"{work.title}: {work.calls:,} calls", file=sys.stderr)
            works.append((work, measure(work, options.repeats)))
    text = report(works, options.repeats, config)
    options.o.parent.mkdir(parents=True, exist_ok=True)
    options.o.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
