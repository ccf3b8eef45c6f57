"""Cost of drawing: largest traces, and the time of other tools for the same models.

    pip install torchview==0.2.7 torchvista==0.2.13 torchlens==2.36.1
    python benchmarks/render.py [--rounds 4] [-o reports/benchmarks/render.md]

Needs the system's Graphviz (`dot`). A peer that is not installed, or that fails, gets a row that says so. Takes about
four minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import io
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from interleaved import Result, Sample, Tool, Work, measure, processor, reason, timed_call, untraced_tool, version_of
from torch import nn

import talkerviz as tv
from talkerviz.api import Trace
from talkerviz.flowchart import builder
from talkerviz.flowchart.builder import build_graph
from talkerviz.flowchart.model import Graph, View
from talkerviz.recorder import recording
from talkerviz.render.charts import graphviz
from talkerviz.render.charts.dot import render_dot
from talkerviz.render.charts.dot_flat import render_dot_flat
from talkerviz.render.charts.graphviz import lay_out
from talkerviz.render.registry import render, render_graph
from talkerviz.talker.files.build import build_talker
from talkerviz.talker.generation.scenario import Scenario
from talkerviz.talker.model.cache import KVCache
from talkerviz.talker.model.config import preset
from talkerviz.targets import talker_of, talker_target
from talkerviz.trace.join import join

MOST_SECONDS, MOST_MIB = 20, 2048  # for a million calls
NODES, MOST_SECONDS_OF_NODES = 10_000, 10  # for a flat chart
MOST_SECONDS_OF_DOT = 60
PEERS = ("torchview", "torchvista", "torchlens")
TOKENS = 32


# Scale


@dataclass(frozen=True)
class Size:
    """Trace to draw: title, function that records it, and formats."""

    what: str
    make: Callable[[], Trace]
    formats: Sequence[str] = ("svg",)  # DOT with a layout


def talker_trace(frames: int, flow: bool) -> Trace:
    target = talker_target(talker_of("tiny", "native", "cpu", None, Scenario(frames=frames)))

    def record(**how: Any) -> Trace:
        with recording(target.model, target.name, phases=target.phases, facts=target.facts, **how) as rec:
            target.run(lambda frame: None)
        return rec.trace

    trace = record()
    return join(trace, record(measure="flow", clock="none")) if flow else trace


class Different(nn.Module):
    """Tree without similar modules: each module has its own name, each call another shape."""

    def __init__(self, children: Sequence[int], number: Iterator[int], sizes: Iterator[tuple[int, int]]) -> None:
        super().__init__()
        self.sizes = sizes
        for _ in range(children[0] if children else 0):
            self.add_module(f"part{next(number)}", Different(children[1:], number, sizes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for child in self.children():
            rows, columns = next(self.sizes)
            child(x[:rows, :columns])
        return x


def different_trace(children: Sequence[int], flow: bool) -> Trace:
    def run() -> tuple[nn.Module, Callable[[], object]]:
        sizes = ((rows, columns) for rows in range(1, 401) for columns in range(1, 401))
        model = Different(children, iter(range(1_000_000)), sizes)
        return model, lambda: model(torch.empty(400, 400, device="meta"))

    trace = tv.record(*run())
    return join(trace, tv.record(*run(), measure="flow", clock="none")) if flow else trace


SIZES = {
    "million": Size("`tiny` talker, 1,750 frames", partial(talker_trace, 1750, flow=False), ("mermaid", "svg")),
    "flow": Size("`tiny` talker, 175 frames, with flow", partial(talker_trace, 175, flow=True), ("mermaid", "svg")),
    "tree": Size(
        "nothing alike: ten different modules in each, five deep, with flow",
        partial(different_trace, [10] * 5, flow=True),
    ),
    "wide": Size("nothing alike: 100,000 modules in one", partial(different_trace, [100_000], flow=False)),
}


@dataclass(frozen=True)
class Made:
    calls: int
    operations: int


@dataclass(frozen=True)
class Steps:
    """Seconds of each step, and the peak of the resident set in MiB."""

    load: float
    fold: float
    folds: int
    write: float
    lay_out: float
    resident: int
    boxes: int
    size: int

    @property
    def whole(self) -> float:
        return self.load + self.fold + self.write + self.lay_out


@dataclass(frozen=True)
class ManyNodes:
    """Seconds to draw charts of many nodes, and their sizes; `dot` is None if it timed out."""

    flat: float
    flat_size: int
    dot: float | None
    fold: float
    nested: float
    nested_size: int
    boxes: int


def make_trace(name: str, path: Path) -> Made:
    with torch.no_grad():
        trace = SIZES[name].make()
    trace.save(path)
    return Made(len(trace.calls), 0 if trace.flow is None else len(trace.flow.ops))


def draw_trace(fmt: str, path: Path) -> Steps:
    """Draw as `talkerviz render` does, and time two of its steps."""
    seconds = {"fold": 0.0, "lay_out": 0.0}
    graphs: list[Graph] = []

    def fold(trace: Trace, view: View) -> Graph:
        start = perf_counter()
        graphs.append(build_graph(trace, view))
        seconds["fold"] += perf_counter() - start
        return graphs[-1]

    def laid_out(dot: str, fmt: str) -> bytes:
        start = perf_counter()
        drawn = lay_out(dot, fmt)
        seconds["lay_out"] += perf_counter() - start
        return drawn

    builder.build_graph, graphviz.lay_out = fold, laid_out
    start = perf_counter()
    trace = Trace.load(path)
    loaded = perf_counter()
    drawn = render(trace, fmt)
    write = perf_counter() - loaded - sum(seconds.values())
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    boxes = len(graphs[-1].boxes)
    return Steps(loaded - start, seconds["fold"], len(graphs), write, seconds["lay_out"], resident, boxes, len(drawn))


def draw_many_nodes(path: Path) -> ManyNodes:
    trace = Trace.load(path)
    trace = replace(trace, calls=trace.calls[:NODES], flow=None)
    start = perf_counter()
    flat = render_dot_flat(trace).encode()
    written = perf_counter()
    graph = build_graph(trace, View(fold=False, max_nodes=NODES))
    folded = perf_counter()
    nested = render_dot(graph).encode()
    nested_written = perf_counter()
    dot: float | None
    try:
        subprocess.run(["dot", "-Tsvg"], input=flat, capture_output=True, check=True, timeout=MOST_SECONDS_OF_DOT)
        dot = perf_counter() - nested_written
    except subprocess.TimeoutExpired:
        dot = None
    return ManyNodes(
        written - start, len(flat), dot, folded - written, nested_written - folded, len(nested), len(graph.boxes)
    )


CHILDREN: dict[str, Callable[..., object]] = {"make": make_trace, "draw": draw_trace, "nodes": draw_many_nodes}


def in_child(step: str, *arguments: str) -> dict[str, Any]:
    """Run a step in a child process, which prints its result as JSON; the last argument is a path."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", step, *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, Any] = json.loads(output)
    return result


def measure_scale() -> tuple[list[tuple[Size, Made, dict[str, Steps]]], ManyNodes]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: str(Path(folder) / f"{name}.parquet") for name in SIZES}
        # Two at a time, as nothing is timed yet.
        with ThreadPoolExecutor(2) as pool:
            made = list(pool.map(lambda name: Made(**in_child("make", name, paths[name])), SIZES))
        for (name, size), of_size in zip(SIZES.items(), made, strict=True):
            print(f"{size.what}: {of_size.calls:,} calls", file=sys.stderr)
            rows.append((size, of_size, {fmt: Steps(**in_child("draw", fmt, paths[name])) for fmt in size.formats}))
        nodes = ManyNodes(**in_child("nodes", paths["million"]))
    return rows, nodes


# Peers


@dataclass(frozen=True)
class Picture:
    size: int
    boxes: int


@dataclass(frozen=True)
class Drawer:
    """Drawing tool: function that draws one run of a model on an input, and its output."""

    name: str
    draw: Callable[[nn.Module, torch.Tensor], Picture]
    draws: str
    ready: Callable[[], Callable[[], None]] = lambda: lambda: None  # sets the tool up, and returns its teardown


def svg_picture(svg: bytes) -> Picture:
    return Picture(len(svg), svg.count(b'class="node"'))


def talkerviz_draw(fmt: str, model: nn.Module, x: torch.Tensor) -> Picture:
    trace = tv.record(model, lambda: model(x))
    trace = join(trace, tv.record(model, lambda: model(x), measure="flow", clock="none"))
    graph = build_graph(trace)
    return Picture(len(render_graph(graph, fmt)), len(graph.boxes))


def torchview_draw(fmt: str, model: nn.Module, x: torch.Tensor) -> Picture:
    import torchview

    graph = torchview.draw_graph(model, input_data=x, depth=99, expand_nested=True, mode="eval").visual_graph
    svg = graph.pipe("svg") if fmt == "svg" else b""
    # Its nodes are numbered lines; the same number as in the SVG.
    nodes = sum(line.strip()[:1].isdigit() and " -> " not in line for line in graph.source.splitlines())
    return svg_picture(svg) if fmt == "svg" else Picture(len(graph.source.encode()), nodes)


def torchlens_draw(how: dict[str, Any], model: nn.Module, x: torch.Tensor) -> Picture:
    import torchlens

    nothing_saved = torchlens.options.CaptureOptions(layers_to_save="none")
    trace = torchlens.trace(model, x, capture=nothing_saved)
    with tempfile.TemporaryDirectory() as folder:
        trace.draw(vis_outpath=str(Path(folder) / "model"), vis_save_only=True, vis_fileformat="svg", **how)
        return svg_picture((Path(folder) / "model.svg").read_bytes())


def torchlens_ready() -> Callable[[], None]:
    from torchlens.backends.torch.wrappers import unwrap_torch, wrap_torch

    # Left to itself it keeps torch's functions wrapped, and all that runs later would take half as long again.
    wrap_torch()
    return unwrap_torch  # type: ignore[no-any-return]


def torchvista_draw(how: dict[str, Any], model: nn.Module, x: torch.Tensor) -> Picture:
    import torchvista

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        path = Path(folder) / "model.html"
        torchvista.trace_model(
            model, x, collapse_modules_after_depth=99, export_format="html", export_path=str(path), **how
        )
        page = path.read_text(encoding="utf-8")
    line = next(line for line in page.splitlines() if line.strip().startswith("const adj_list = "))
    nodes = json.loads(line.partition("=")[2].strip().removesuffix(";"))
    return Picture(len(page.encode()), len(nodes))


DRAWERS = (
    Drawer("talkerviz, Mermaid", partial(talkerviz_draw, "mermaid"), "modules, operations between them, time"),
    Drawer("talkerviz, DOT", partial(talkerviz_draw, "dot"), "the same"),
    Drawer("talkerviz, SVG", partial(talkerviz_draw, "svg"), "the same, laid out"),
    Drawer("torchview, DOT", partial(torchview_draw, "dot"), "modules, operations, tensors"),
    Drawer("torchview, SVG", partial(torchview_draw, "svg"), "the same, laid out"),
    Drawer("torchlens, SVG", partial(torchlens_draw, {}), "operations, in modules; laid out", torchlens_ready),
    Drawer(
        'torchlens, SVG, `collapse="auto", fold_repeats=True`',
        partial(torchlens_draw, {"collapse": "auto", "fold_repeats": True}),
        "modules, collapsed; laid out",
        torchlens_ready,
    ),
    Drawer("torchvista, HTML", partial(torchvista_draw, {}), "modules, operations; laid out by the browser later"),
    Drawer(
        "torchvista, HTML, `show_compressed_view`",
        partial(torchvista_draw, {"show_compressed_view": True}),
        "the same, compressed",
    ),
)


class Logits(nn.Module):
    """Llama with one input and one output tensor, which all tools accept."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        self.model = LlamaForCausalLM(config)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(ids, use_cache=False).logits
        return logits


class Decoder(nn.Module):
    """Decoder layers of the talker, with an empty cache."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        config = preset("tiny")
        self.config = replace(config.text, num_hidden_layers=layers)
        self.model = build_talker(replace(config, text=self.config)).model

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        cache = KVCache(self.config, embeds.device, embeds.dtype)
        states: torch.Tensor = self.model(inputs_embeds=embeds, cache=cache).last_hidden_state
        return states


@dataclass(frozen=True)
class Subject:
    """Model to draw, with any number of layers, and its input."""

    title: str
    make: Callable[[int], nn.Module]
    layers: int
    x: torch.Tensor


def subjects() -> list[Subject]:
    torch.manual_seed(0)
    ids = torch.arange(TOKENS)[None]
    embeds = torch.randn(1, TOKENS, preset("tiny").text.hidden_size)
    return [
        Subject("Llama (transformers)", Logits, 8, ids),
        Subject("The talker's decoder, mixtures of experts and all", Decoder, 5, embeds),
    ]


def tool_of(drawer: Drawer, model: nn.Module, x: torch.Tensor) -> Tool:
    model = copy.deepcopy(model)  # some leave things behind on it

    def sample() -> Sample:
        done = drawer.ready()
        try:
            return timed_call(lambda: drawer.draw(model, x))
        finally:
            done()

    return Tool(drawer.name, drawer.draws, sample, split=False)


def picture_of(drawer: Drawer, model: nn.Module, x: torch.Tensor) -> Picture | str:
    """Draw the model once; return the picture, or the reason of a failure."""
    try:
        done = drawer.ready()
        try:
            return drawer.draw(model, x)
        finally:
            done()
    except Exception as error:
        return reason(error)


def measure_peers(subject: Subject, rounds: int) -> tuple[Work, dict[str, Result], dict[str, list[Picture | str]]]:
    model = subject.make(subject.layers).eval()
    deeper = subject.make(2 * subject.layers).eval()

    def run() -> object:
        return model(subject.x)

    loops = 10
    pictures = {
        drawer.name: [picture_of(drawer, copy.deepcopy(one), subject.x) for one in (model, deeper)]
        for drawer in DRAWERS
    }
    tools = [untraced_tool(run, loops), *(tool_of(drawer, model, subject.x) for drawer in DRAWERS)]
    calls = len(tv.record(model, run, clock="none").calls)
    print(f"{subject.title}: {calls:,} calls", file=sys.stderr)
    work = Work(
        subject.title,
        f"{subject.layers} layers, {calls} module calls, input {list(subject.x.shape)}.",
        run,
        calls,
        tools,
        loops,
        True,
    )
    return work, measure(work, rounds), pictures


# The report


def scale_table(rows: Sequence[tuple[Size, Made, dict[str, Steps]]]) -> list[str]:
    names = ["load", "fold", "write", "lay out", "all, s", "peak resident set, MiB", "boxes", "bytes"]
    lines = [["trace", "calls", "operations", "as", *names], ["---", "---:", "---:", "---", *["---:"] * len(names)]]
    for size, made, drawn in rows:
        for fmt, steps in drawn.items():
            fold = f"{steps.fold:.2f}" + (f" ({steps.folds} times)" if steps.folds > 1 else "")
            times = [f"{steps.load:.2f}", fold, f"{steps.write:.2f}", f"{steps.lay_out:.2f}" if fmt == "svg" else "–"]
            first = [size.what, f"{made.calls:,}", f"{made.operations:,}" if made.operations else "–", fmt]
            last = [f"**{steps.whole:.2f}**", f"**{steps.resident:,}**", str(steps.boxes), f"{steps.size:,}"]
            lines.append([*first, *times, *last])
    return [f"| {' | '.join(cells)} |" for cells in lines]


def goals(rows: Sequence[tuple[Size, Made, dict[str, Steps]]], nodes: ManyNodes) -> str:
    million = list(rows[0][2].values())
    slowest, largest = max(steps.whole for steps in million), max(steps.resident for steps in million)
    reached = slowest < MOST_SECONDS and largest < MOST_MIB
    flat = nodes.flat < MOST_SECONDS_OF_NODES
    return (
        f"A million calls in under {MOST_SECONDS} s and {MOST_MIB:,} MiB: **{'yes' if reached else 'no'}**, "
        f"{slowest:.1f} s and {largest:,} MiB at the most. A flat DOT of {NODES:,} nodes in under "
        f"{MOST_SECONDS_OF_NODES} s: **{'yes' if flat else 'no'}**, {nodes.flat:.2f} s."
    )


def nodes_text(nodes: ManyNodes) -> list[str]:
    taken = f"{nodes.dot:.0f} s" if nodes.dot is not None else f"stopped after {MOST_SECONDS_OF_DOT} s"
    return [
        "| chart | boxes | fold, s | write DOT, s | bytes | `dot -Tsvg` |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        f"| flat | {NODES:,} | – | **{nodes.flat:.2f}** | {nodes.flat_size:,} | {taken} |",
        f"| nested, nothing folded | {nodes.boxes:,} | {nodes.fold:.2f} | **{nodes.nested:.2f}** | "
        f"{nodes.nested_size:,} | not tried |",
    ]


def peers_table(work: Work, results: dict[str, Result], pictures: dict[str, list[Picture | str]]) -> list[str]:
    names = ["ratio", "least to most", "ms", "bytes", "boxes", "with twice the layers", "repeats folded"]
    lines = [["tool", *names, "draws"], ["---", *["---:"] * (len(names) - 1), "---", "---"]]
    for tool in work.tools:
        lines.append(peer_row(tool, results[tool.name], pictures.get(tool.name)))
    return [f"| {' | '.join(cells)} |" for cells in lines]


def peer_row(tool: Tool, result: Result, pictures: list[Picture | str] | None) -> list[str]:
    if result.failure is not None:
        return [tool.name, *["–"] * 7, result.failure]
    taken = np.array([sample.whole for sample in result.samples])
    ratios = taken / np.array(result.untraced)
    cells = [f"**{ratio_text(np.median(ratios))}**", f"{ratio_text(ratios.min())} to {ratio_text(ratios.max())}"]
    cells.append(f"{np.median(taken) * 1e3:,.1f}")
    if pictures is None:
        return ["the forward alone", *cells, *["–"] * 4, tool.records]
    one, deeper = pictures
    if isinstance(one, str) or isinstance(deeper, str):
        return [tool.name, *cells, *["–"] * 4, one if isinstance(one, str) else str(deeper)]
    folded = "yes" if deeper.boxes <= one.boxes else "no" if deeper.boxes > 1.5 * one.boxes else "in part"
    return [tool.name, *cells, f"{one.size:,}", f"{one.boxes:,}", f"{deeper.boxes:,}", folded, tool.records]


def ratio_text(ratio: float) -> str:
    return f"{ratio:,.2f}" if ratio < 10 else f"{ratio:,.0f}"


def report(
    scale: Sequence[tuple[Size, Made, dict[str, Steps]]],
    nodes: ManyNodes,
    peers: Sequence[tuple[Work, dict[str, Result], dict[str, list[Picture | str]]]],
    rounds: int,
) -> str:
    dot = subprocess.run(["dot", "-V"], capture_output=True, text=True, check=True).stderr.strip()
    facts = {
        "date": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}",
        "command": f"`python benchmarks/render.py --rounds {rounds}`",
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()}; torch used {torch.get_num_threads()} "
        "thread",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, transformers "
        f"{version_of('transformers')}, talkerviz {tv.__version__}, "
        + ", ".join(f"{peer} {version_of(peer)}" for peer in PEERS)
        + f", {dot}",
    }
    parts = [
        "# What drawing costs",
        "\n".join(f"- {name}: {fact}" for name, fact in facts.items()),
        "## How large a trace can be",
        goals(scale, nodes),
        "\n".join(scale_table(scale)),
        HOW_SCALE,
        f"## {NODES:,} boxes",
        f"The first {NODES:,} calls of the million. What stands open in the nested chart is a group, not a box.",
        "\n".join(nodes_text(nodes)),
        "## Other tools",
        HOW_PEERS,
    ]
    for work, results, pictures in peers:
        parts += [f"### {work.title}", work.note, "\n".join(peers_table(work, results, pictures))]
    return "\n\n".join(parts) + "\n"


HOW_SCALE = """\
Each row is a process of its own, on a trace that another one recorded: seconds of loading the file, of folding (the
trace to the picture's boxes and arrows), of writing the text, and of laying it out with `dot`. Importing torch is not
counted in the seconds, but it is in the resident set: 360 MiB of it. Where GitHub would not draw a Mermaid chart, it is
folded again, further."""

HOW_PEERS = """\
From the model and its input to a finished picture, in one process; layers are 64 wide. For talkerviz that is two runs,
recorded with times and with the flow of tensors, the fold and the drawing. `ratio` is the time over the mean of the two
plain forwards next to it (each the mean of ten): the median of the rounds, in shuffled order, after two that are not
counted; what torchlens takes to wrap torch's functions is left out as well. Forwards this small make large ratios of
what is the same for any width. In torchview and torchvista everything is opened, as by default they show a few boxes
only; talkerviz and torchlens choose by themselves.

`bytes` is the file that is written; of torchvista's, most is the program that lays it out in a browser, which is not
timed. Boxes are the SVG's nodes or those in the page's graph, and of talkerviz those without the legend; groups around
them are not counted. `repeats folded` is `yes` where a model of twice as many layers has no more boxes, `no` where it
has half as many again or more. In a decoder with experts layers do differ: each calls those that its tokens need."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what drawing costs.")
    parser.add_argument("--rounds", type=int, default=4, help="of the peers (default: %(default)s)")
    parser.add_argument("-o", type=Path, metavar="FILE", default=Path("reports/benchmarks/render.md"))
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        step, *of, path = options.child
        print(json.dumps(asdict(CHILDREN[step](*of, Path(path)))))  # type: ignore[call-overload]
        return
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")

    warnings.simplefilter("ignore")  # the peers' own
    scale, nodes = measure_scale()
    with torch.no_grad():
        peers = [measure_peers(subject, options.rounds) for subject in subjects()]
    text = report(scale, nodes, peers, options.rounds)
    options.o.parent.mkdir(parents=True, exist_ok=True)
    options.o.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
