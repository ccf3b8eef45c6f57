"""`talkerviz trace`."""

from __future__ import annotations

import enum
import functools
import json
import shlex
import sys
from pathlib import Path
from time import perf_counter_ns
from typing import Annotated, Any

import torch
import typer
from torch import nn

from talkerviz.cli.app import app
from talkerviz.cli.options import Device, device_name
from talkerviz.cli.output import check_writable, console, print_headline, print_notes
from talkerviz.progress import frame_progress
from talkerviz.record import recording
from talkerviz.render.table import render_table
from talkerviz.talker.config import PRESETS
from talkerviz.talker.scenario import Scenario
from talkerviz.targets import Target, function_target, talker_target
from talkerviz.trace.join import join
from talkerviz.trace.over_runs import over_runs
from talkerviz.trace.peaks import Peaks, limits_of_run, load_peaks, peaks_of
from talkerviz.trace.summary import summarise


class Impl(str, enum.Enum):
    """Whose talker runs."""

    native = "native"
    transformers = "transformers"


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
    warmup: Annotated[int, typer.Option(min=0, help="Run so often first, and record nothing of it.")] = 0,
    repeat: Annotated[int, typer.Option(min=1, help="Record so many runs: `show --runs` tells them apart.")] = 1,
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
    check_writable(output, codes)
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
        made = talker_target(preset_name, impl.value, device_name(device), _dtype(dtype), scenario)
    elif codes:
        raise ValueError("--codes: only the talker makes codes")
    else:
        made = function_target(target)

    facts = {**made.facts, **_peaks_facts(made.model, limits), "command": shlex.join(["talkerviz", *sys.argv[1:]])}
    if repeat > 1:
        facts["repeat"] = repeat
    if warmup:
        facts["warmup_ns"] = [_warm_up(made) for _ in range(warmup)]
    record = functools.partial(
        recording, made.model, made.name, include=include or (), exclude=exclude or (), depth=depth, facts=facts
    )
    failure: BaseException | None = None
    with record(
        phases=made.phases(),
        # Nothing is computed there, so there is nothing to time, and all the time to count.
        clock="none" if on_meta else _clock(clock, made.model),
        measure="cost" if on_meta else None,
        file=None if output == "-" else output,
    ) as rec:
        try:
            for _ in range(repeat):
                with frame_progress(made.frames) as on_frame, rec.run(made.phases()):
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
            recorded = join(recorded, again.trace)
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
        terminal = console()
        for by in ("phase", "class", "module"):
            terminal.print(render_table(summarise(recorded, by), by, 10, terminal.width))
        if repeat > 1:
            over = over_runs(recorded, "phase")
            terminal.print(render_table(over, "phase", 10, terminal.width, f"Time by phase over {repeat} runs"))
        print_headline(terminal, recorded)
        print_notes(terminal, recorded)
        terminal.print(f"{len(recorded.calls):,} calls -> {output}", highlight=False, soft_wrap=True)


def _warm_up(target: Target) -> int:
    """A run that is no part of the record: what is slow but once has happened. Gives the nanoseconds that it took."""
    began = perf_counter_ns()
    try:
        with frame_progress(target.frames) as on_frame:
            target.run(on_frame)
    except KeyboardInterrupt as error:
        raise typer.Abort from error
    except Exception as error:
        raise ValueError(f"the warm-up stopped with {type(error).__name__}: {error}; nothing is recorded") from error
    return perf_counter_ns() - began


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


def _dtype(dtype: Dtype | None) -> torch.dtype | None:
    known: dict[Dtype, torch.dtype] = {Dtype.bfloat16: torch.bfloat16, Dtype.float32: torch.float32}
    return known[dtype] if dtype else None
