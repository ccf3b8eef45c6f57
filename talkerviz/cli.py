"""The command line: `talkerviz trace | show | tree | render | diff | presets | doctor`."""

from __future__ import annotations

import enum
import functools
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from talkerviz import __version__
from talkerviz.doctor import diagnose
from talkerviz.graph.diff import changes, diff_graph, without_what_is_same
from talkerviz.graph.pages import FIRST, pages_of
from talkerviz.graph.view import MOST_BOXES, View
from talkerviz.progress import frame_progress
from talkerviz.record import recording
from talkerviz.record.clocks import MEASURED_COLUMNS
from talkerviz.record.measure import measure_peaks
from talkerviz.render.changes import render_changes
from talkerviz.render.formats import FORMATS, Style, render, render_graph
from talkerviz.render.github import over_github_limits
from talkerviz.render.layout import LayoutError
from talkerviz.render.markdown import render_page
from talkerviz.render.notes import notes_on
from talkerviz.render.table import render_table
from talkerviz.render.text import amount_text
from talkerviz.render.tree import render_tree
from talkerviz.talker.config import PRESETS, default_dtype, preset
from talkerviz.talker.scenario import Scenario
from talkerviz.talker.weights import build_talker
from talkerviz.targets import function_target, talker_target
from talkerviz.trace import Trace
from talkerviz.trace.join import join
from talkerviz.trace.peaks import Peaks, limits_of_run, load_peaks, peaks_of, save_peaks
from talkerviz.trace.summary import summarise

_FILE_WIDTH = 240

app = typer.Typer(
    name="talkerviz",
    help="Run a speech talker, or any torch model, and see every module call.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Impl(str, enum.Enum):
    """Whose talker runs."""

    native = "native"
    transformers = "transformers"


class Device(str, enum.Enum):
    """Where it runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    meta = "meta"


class Dtype(str, enum.Enum):
    """What its weights are."""

    bfloat16 = "bfloat16"
    float32 = "float32"


class Clock(str, enum.Enum):
    """What measures a call."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    none = "none"


class By(str, enum.Enum):
    """What a row of the table stands for."""

    module = "module"
    klass = "class"
    phase = "phase"
    layer = "layer"
    frame = "frame"
    call = "call"


class Edges(str, enum.Enum):
    """What an arrow is."""

    flow = "flow"
    calls = "calls"


class Sort(str, enum.Enum):
    """What comes first."""

    self_ = "self"
    total = "total"
    calls = "calls"


TracePath = Annotated[Path, typer.Argument(metavar="TRACE", help="A file that `talkerviz trace` wrote.")]
Phase = Annotated[str | None, typer.Option(help="Only this phase, such as prefill or decode.")]
Depth = Annotated[int | None, typer.Option(min=0, help="Only calls nested at most this deep.")]
Format = typer.Option("-f", "--format", help=f"One of {', '.join(FORMATS)}.")
ArrowsAre = Annotated[
    Edges | None, typer.Option("--edges", help="Where tensors go, or call order; by default flow if it was recorded.")
]
MaxNodes = Annotated[
    int | None, typer.Option(min=1, help=f"No more boxes: what does not fit is folded; {MOST_BOXES} by default.")
]


@app.command()
def trace(
    target: Annotated[str, typer.Argument(help="`talker`, or `package.module:function`.")] = "talker",
    preset_name: Annotated[str, typer.Option("--preset", help=f"One of {', '.join(PRESETS)}.")] = "lite",
    impl: Annotated[Impl, typer.Option(help="Our talker, or transformers'.")] = Impl.native,
    device: Annotated[Device, typer.Option(help="auto takes CUDA where there is one.")] = Device.auto,
    dtype: Annotated[Dtype | None, typer.Option(help="By default bfloat16 for full, else float32.")] = None,
    codes: Annotated[Path | None, typer.Option(help="Write the greedy codes there, as JSON.")] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of the user's prompt.")] = 11,
    text_tokens: Annotated[int, typer.Option(help="Tokens of the text to speak, with its 3 role tokens.")] = 20,
    frames: Annotated[int, typer.Option(help="Frames of 80 ms to speak.")] = 8,
    speaker: Annotated[str, typer.Option(help="A voice of the checkpoint.")] = "ethan",
    seed: Annotated[int, typer.Option(help="Draws the weights and the thinker's outputs.")] = 0,
    clock: Annotated[Clock, typer.Option(help="auto takes cuda on CUDA; none records shapes alone.")] = Clock.auto,
    include: Annotated[
        list[str] | None, typer.Option(help="Record only modules that fit, such as '*.self_attn*'.")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Record none that fit.")] = None,
    depth: Annotated[int | None, typer.Option(min=0, help="Record only so many levels below the root.")] = None,
    flow: Annotated[bool, typer.Option("--flow/--no-flow", help="Run once more, to see where tensors go.")] = True,
    cost: Annotated[bool, typer.Option("--cost", help="Run once more, and count FLOP and bytes of each call.")] = False,
    memory: Annotated[bool, typer.Option("--memory", help="Run once more, for each call's CUDA memory.")] = False,
    busy: Annotated[bool, typer.Option("--busy", help="Run once more, for how long CUDA kernels run.")] = False,
    peaks: Annotated[Path | None, typer.Option(help="What the device can do, from `doctor --measure -o`.")] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="The trace; - for stdout.")] = "run.parquet",
) -> None:
    """Run a model, record every module call, and print where the time went."""
    _check_writable(output, codes)
    limits = load_peaks(peaks) if peaks else None
    if (busy or memory) and not torch.cuda.is_available():
        raise ValueError(f"--{'busy' if busy else 'memory'}: torch sees no CUDA device, and nothing else can tell")
    on_meta = target == "talker" and device is Device.meta
    if on_meta and impl is Impl.transformers:
        raise ValueError("--device meta: transformers' talker reads values, which are not there; use --impl native")
    if on_meta and codes:
        raise ValueError("--codes: the meta device computes no codes")
    if target == "talker":
        scenario = Scenario(prompt_tokens, text_tokens, speaker, frames, seed)
        made = talker_target(preset_name, impl.value, _device(device), _dtype(dtype), scenario)
    elif codes:
        raise ValueError("--codes: only the talker makes codes")
    else:
        made = function_target(target)

    facts = {**made.facts, **_peaks_facts(made.model, limits), "command": shlex.join(["talkerviz", *sys.argv[1:]])}
    record = functools.partial(
        recording, made.model, made.name, include=include or (), exclude=exclude or (), depth=depth, facts=facts
    )
    failure: BaseException | None = None
    with (
        frame_progress(made.frames) as on_frame,
        record(
            phases=made.phases(),
            # Nothing is computed there, so there is nothing to time, and all the time to count.
            clock="none" if on_meta else _clock(clock, made.model),
            measure="cost" if on_meta else None,
            file=None if output == "-" else output,
        ) as rec,
    ):
        try:
            produced = made.run(on_frame)
        except (Exception, KeyboardInterrupt) as error:
            failure = error  # what was recorded until now is kept

    if isinstance(failure, KeyboardInterrupt):
        if output == "-":
            rec.trace.save(sys.stdout.buffer)
        raise typer.Abort
    recorded = rec.trace
    wanted = {"flow": flow, "cost": cost and not on_meta, "memory": memory, "busy": busy}
    for measure in [name for name, asked in wanted.items() if asked and failure is None]:
        try:
            with (
                frame_progress(made.frames) as on_frame,
                record(phases=made.phases(), clock="none", measure=measure) as again,
            ):
                made.run(on_frame)
            recorded = join(recorded, again.trace, MEASURED_COLUMNS[measure])
        except Exception as error:  # the first run's trace is good all the same
            reason = " ".join(f"{error or type(error).__name__}".split())
            print(f"talkerviz: --{measure}: {reason}; what it measured is left out", file=sys.stderr)
    if output == "-":
        recorded.save(sys.stdout.buffer)
    elif recorded is not rec.trace:
        recorded.save(output)
    if failure is not None:
        reason = " ".join(f"{type(failure).__name__}: {failure}".split())
        raise ValueError(f"the run stopped with {reason}; {len(recorded.calls)} calls are kept in {output}")
    if codes:
        codes.write_text(json.dumps(produced.tolist()) + "\n")
    if output != "-":
        console = _console()
        for by in ("phase", "class", "module"):
            console.print(render_table(summarise(recorded, by), by, 10, console.width))
        _print_notes(console, recorded)
        console.print(f"{len(recorded.calls):,} calls -> {output}", highlight=False, soft_wrap=True)


@app.command()
def show(
    path: TracePath,
    by: Annotated[By, typer.Option(help="What a row stands for.")] = By.module,
    phase: Phase = None,
    sort: Annotated[Sort | None, typer.Option(help="By default self, but the run's order by phase and frame.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Only the first rows.")] = None,
) -> None:
    """Print a latency table."""
    chosen = Trace.load(path).select(phase=phase)
    console = _console()
    console.print(render_table(summarise(chosen, by.value, sort.value if sort else None), by.value, top, console.width))
    _print_notes(console, chosen)


@app.command()
def tree(path: TracePath, phase: Phase = None, depth: Depth = None) -> None:
    """Print the call tree, what repeats folded."""
    _console().print(render_tree(Trace.load(path).select(phase=phase), depth=depth))


@app.command("render")
def render_command(
    path: TracePath,
    fmt: Annotated[str, Format],
    output: Annotated[str, typer.Option("-o", "--output", help="A file, with --pages a folder; - for stdout.")] = "-",
    style: Annotated[
        Style, typer.Option(help="Nested and folded, a box a call, or the source document.")
    ] = Style.nested,
    phase: Phase = None,
    frame: Annotated[int | None, typer.Option(min=0, help="Only this frame, from 0.")] = None,
    module: Annotated[str | None, typer.Option(metavar="GLOB", help="Only these modules and what is in them.")] = None,
    depth: Depth = None,
    open_: Annotated[
        list[str] | None, typer.Option("--open", metavar="GLOB", help="Draw the inside of these, however deep.")
    ] = None,
    close: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Do not draw the inside of these.")] = None,
    edges: ArrowsAre = None,
    fold: Annotated[bool, typer.Option("--fold/--no-fold", help="Draw once what repeats.")] = True,
    max_nodes: MaxNodes = None,
    pages: Annotated[bool, typer.Option("--pages", help="A page for the inside of each closed box as well.")] = False,
) -> None:
    """Draw a trace."""
    _check_format(fmt)
    nested = style is Style.nested
    given = {"--open": open_, "--close": close, "--edges": edges, "--max-nodes": max_nodes, "--pages": pages}
    for option, value in {**given, "--no-fold": not fold}.items():
        if value and not nested:
            raise ValueError(f"{option}: only --style nested has it, not {style.value}")
    if pages and output == "-":
        raise ValueError("--pages: name a folder with -o")
    _check_writable(output)
    chosen = Trace.load(path).select(phase, frame, None if nested else depth, module)
    view = View(depth, tuple(open_ or ()), tuple(close or ()), max_nodes, edges.value if edges else None, fold)
    if pages:
        _write_pages(chosen, view, fmt, Path(output))
        return
    _write(output, lambda: render(chosen, fmt, style, view))
    if fmt == "mermaid" and output != "-" and (note := over_github_limits(Path(output).read_text())):
        print(f"talkerviz: {output}: {note}", file=sys.stderr)


@app.command()
def diff(
    before: TracePath,
    after: Annotated[Path, typer.Argument(metavar="TRACE", help="Another one.")],
    fmt: Annotated[str | None, Format] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="The drawing; - for stdout.")] = "-",
    edges: ArrowsAre = None,
    max_nodes: MaxNodes = None,
) -> None:
    """Say which modules two runs differ in, or draw both as one with -f."""
    if fmt is None and output != "-":
        raise ValueError("-o: only a drawing is written; name its format with -f")
    if fmt is not None:
        _check_format(fmt)
    _check_writable(output)
    graph = diff_graph(Trace.load(before), Trace.load(after), edges.value if edges else None)
    if fmt is not None:
        drawn = without_what_is_same(graph, max_nodes or MOST_BOXES)
        _write(output, lambda: render_graph(drawn, fmt))
        return
    console = _console()
    console.print(render_changes(changes(graph)))
    for note in graph.notes:
        console.print(Text(note, style="dim"), soft_wrap=True)


@app.command()
def presets() -> None:
    """List the talkers that can be built."""
    table = Table(box=None, header_style="bold")
    for column in ("preset", "parameters", "dtype", "weights", "layers", "hidden", "experts", "expert width"):
        table.add_column(column, justify="left" if column in ("preset", "dtype") else "right")
    for name in PRESETS:
        config, dtype = preset(name), default_dtype(name)
        parameters = sum(p.numel() for p in build_talker(config, device="meta").parameters())
        table.add_row(
            name,
            f"{parameters:,}",
            str(dtype).removeprefix("torch."),
            f"{parameters * dtype.itemsize / 1e9:.2f} GB",
            f"{config.text.num_hidden_layers} + {config.code_predictor.num_hidden_layers}",
            str(config.text.hidden_size),
            f"{config.text.num_experts_per_tok} of {config.text.num_experts}",
            str(config.text.moe_intermediate_size),
        )
    _console().print(table)


@app.command()
def doctor(
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure matrix products and copies, some seconds.")
    ] = False,
    device: Annotated[Device, typer.Option(help="auto takes CUDA where there is one.")] = Device.auto,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write what was measured, for --peaks.")] = None,
) -> None:
    """Say what can run here, and how fast the device is."""
    _check_writable(output)
    if output and not measure:
        raise ValueError("-o: only what --measure finds is written")
    table = Table(box=None, show_header=False)
    for what, found in diagnose():
        table.add_row(Text(what, style="bold"), Text(found))
    if measure:
        if device is Device.meta:
            raise ValueError("--device meta: nothing is computed there")
        found_peaks = measure_peaks(_device(device))
        for name, rate in found_peaks.flops.items():
            table.add_row(Text(f"matrix products, {name}", style="bold"), Text(f"{amount_text(rate)}FLOP/s"))
        table.add_row(Text("copies", style="bold"), Text(f"{amount_text(found_peaks.bandwidth)}B/s"))
        if output:
            save_peaks(found_peaks, output)
    _console().print(table)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; anything the user can mend is one line on stderr and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        _fail("stopped; the calls recorded until then are kept", 130)
    except (ValueError, OSError) as error:
        _fail(str(error), 2)
    except Exception as error:
        # A usage error. Its class is click's or typer's own copy of it, by typer's version.
        if not hasattr(error, "format_message"):
            raise
        _fail(str(error.format_message()), 2)
    sys.exit(code)


def _fail(message: str, code: int) -> NoReturn:
    print(f"talkerviz: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _console() -> Console:
    # rich takes 80 columns for a file or a pipe, too few for a table.
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=_FILE_WIDTH)


def _peaks_facts(model: nn.Module, given: Peaks | None) -> dict[str, Any]:
    parameter = next(model.parameters(), None)
    known = given
    if known is None and parameter is not None and parameter.is_cuda:
        known = peaks_of(torch.cuda.get_device_name(parameter.device))
    if known is None or parameter is None:
        return {}
    dtype = str(parameter.dtype).removeprefix("torch.")
    limits = limits_of_run(known, dtype, torch.backends.cuda.matmul.allow_tf32)
    if given is not None and not limits:
        raise ValueError(f"--peaks: no figure for {dtype}, only for {', '.join(given.flops)}")
    return {"peaks": limits} if limits else {}


def _clock(clock: Clock, model: nn.Module) -> str:
    if clock is Clock.auto:
        return "cuda" if any(parameter.is_cuda for parameter in model.parameters()) else "cpu"
    return str(clock.value)


def _print_notes(console: Console, trace: Trace) -> None:
    for note in notes_on(trace.facts):
        console.print(Text(note, style="dim"), soft_wrap=True)


def _check_format(fmt: str) -> None:
    if fmt not in FORMATS:
        raise ValueError(f"unknown format {fmt!r}: choose from {', '.join(FORMATS)}")


def _write(output: str, draw: Callable[[], bytes]) -> None:
    """Write a drawing; where it cannot be laid out, what was to be laid out."""
    try:
        drawn = draw()
    except LayoutError as error:
        if output == "-":
            raise
        instead = Path(output).with_suffix(".dot")
        instead.write_text(error.dot, encoding="utf-8")
        raise ValueError(f"{error}; the DOT is in {instead}") from error
    if output == "-":
        sys.stdout.buffer.write(drawn)
    else:
        Path(output).write_bytes(drawn)


def _write_pages(trace: Trace, view: View, fmt: str, folder: Path) -> None:
    suffix = ".md" if fmt == "mermaid" else f".{fmt}"
    folder.mkdir(exist_ok=True)
    count = 0
    for page in pages_of(trace, view, suffix):
        file = str(folder / f"{page.name}{suffix}")
        _write(file, lambda page=page: render_page(page) if fmt == "mermaid" else render_graph(page.graph, fmt))  # type: ignore[misc]
        count += 1
    _console().print(f"{count:,} pages -> {folder / FIRST}{suffix}", highlight=False, soft_wrap=True)


def _device(device: Device) -> str:
    if device is Device.auto:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device is Device.cuda and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA device; use --device cpu")
    return str(device.value)


def _dtype(dtype: Dtype | None) -> torch.dtype | None:
    known: dict[Dtype, torch.dtype] = {Dtype.bfloat16: torch.bfloat16, Dtype.float32: torch.float32}
    return known[dtype] if dtype else None


def _check_writable(*outputs: str | Path | None) -> None:
    """Say so before a long run if its result could not be kept."""
    for output in outputs:
        if output is not None and output != "-" and not Path(output).absolute().parent.is_dir():
            raise ValueError(f"{output}: no such folder {Path(output).absolute().parent}")
