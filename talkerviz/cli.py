"""The command line: `talkerviz trace | show | tree | render | presets`."""

from __future__ import annotations

import enum
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from talkerviz import __version__
from talkerviz.progress import frame_progress
from talkerviz.record import recording
from talkerviz.render.formats import FORMATS, Style, render
from talkerviz.render.mermaid import oversize_note
from talkerviz.render.notes import notes_on
from talkerviz.render.table import render_table
from talkerviz.render.tree import render_tree
from talkerviz.talker.config import PRESETS, default_dtype, preset
from talkerviz.talker.scenario import Scenario
from talkerviz.talker.weights import build_talker
from talkerviz.targets import function_target, talker_target
from talkerviz.trace import Trace
from talkerviz.trace.summary import summarise

_FILE_WIDTH = 200

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


class Dtype(str, enum.Enum):
    """What its weights are."""

    bfloat16 = "bfloat16"
    float32 = "float32"


class Clock(str, enum.Enum):
    """What measures a call."""

    cpu = "cpu"
    none = "none"


class By(str, enum.Enum):
    """What a row of the table stands for."""

    module = "module"
    klass = "class"
    phase = "phase"
    layer = "layer"
    frame = "frame"
    call = "call"


class Sort(str, enum.Enum):
    """What comes first."""

    self_ = "self"
    total = "total"
    calls = "calls"


TracePath = Annotated[Path, typer.Argument(metavar="TRACE", help="A file that `talkerviz trace` wrote.")]
Phase = Annotated[str | None, typer.Option(help="Only this phase, such as prefill or decode.")]
Depth = Annotated[int | None, typer.Option(min=0, help="Only calls nested at most this deep.")]


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
    clock: Annotated[Clock, typer.Option(help="none records shapes alone.")] = Clock.cpu,
    include: Annotated[
        list[str] | None, typer.Option(help="Record only modules that fit, such as '*.self_attn*'.")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Record none that fit.")] = None,
    depth: Annotated[int | None, typer.Option(min=0, help="Record only so many levels below the root.")] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="The trace; - for stdout.")] = "run.parquet",
) -> None:
    """Run a model, record every module call, and print where the time went."""
    _check_writable(output, codes)
    if target == "talker":
        scenario = Scenario(prompt_tokens, text_tokens, speaker, frames, seed)
        made = talker_target(preset_name, impl.value, _device(device), _dtype(dtype), scenario)
    elif codes:
        raise ValueError("--codes: only the talker makes codes")
    else:
        made = function_target(target)

    facts = {**made.facts, "command": shlex.join(["talkerviz", *sys.argv[1:]])}
    failure: BaseException | None = None
    with (
        frame_progress(made.frames) as on_frame,
        recording(
            made.model,
            made.name,
            made.phases,
            clock.value,
            facts,
            include or (),
            exclude or (),
            depth,
            file=None if output == "-" else output,
        ) as rec,
    ):
        try:
            produced = made.run(on_frame)
        except (Exception, KeyboardInterrupt) as error:
            failure = error  # what was recorded until now is kept

    if output == "-":
        rec.trace.save(sys.stdout.buffer)
    if isinstance(failure, KeyboardInterrupt):
        raise typer.Abort
    if failure is not None:
        reason = " ".join(f"{type(failure).__name__}: {failure}".split())
        raise ValueError(f"the run stopped with {reason}; {len(rec.trace.calls)} calls are kept in {output}")
    if codes:
        codes.write_text(json.dumps(produced.tolist()) + "\n")
    if output != "-":
        console = _console()
        for by in ("phase", "class", "module"):
            console.print(render_table(summarise(rec.trace, by), by, 10, console.width))
        _print_notes(console, rec.trace)
        console.print(f"{len(rec.trace.calls):,} calls -> {output}", highlight=False, soft_wrap=True)


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
    fmt: Annotated[str, typer.Option("-f", "--format", help=f"One of {', '.join(FORMATS)}.")],
    output: Annotated[str, typer.Option("-o", "--output", help="A file; - for stdout.")] = "-",
    style: Annotated[Style, typer.Option(help="Of Mermaid: a node a call, or the source document.")] = Style.flat,
    phase: Phase = None,
    frame: Annotated[int | None, typer.Option(min=0, help="Only this frame, from 0.")] = None,
    depth: Depth = None,
) -> None:
    """Draw a trace."""
    _check_writable(output)
    drawn = render(Trace.load(path).select(phase, frame, depth), fmt, style)
    if fmt == "mermaid" and (note := oversize_note(drawn.decode())):
        print(f"talkerviz: {output}: {note}", file=sys.stderr)
    if output == "-":
        sys.stdout.buffer.write(drawn)
    else:
        Path(output).write_bytes(drawn)


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


def _print_notes(console: Console, trace: Trace) -> None:
    for note in notes_on(trace.facts):
        console.print(Text(note, style="dim"), soft_wrap=True)


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
