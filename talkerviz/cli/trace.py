"""`talkerviz trace`."""

from __future__ import annotations

import enum
import functools
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter_ns
from typing import Annotated, Any

import torch
import typer
from torch import nn

from talkerviz.analysis.run_stats import run_stats
from talkerviz.analysis.summary import summarise
from talkerviz.api import Trace, recording
from talkerviz.atomic_file import descriptor_of, is_special
from talkerviz.cli.model_options import (
    Checkpoint,
    Compile,
    Device,
    Fused,
    Graphs,
    Inputs,
    Preset,
    WeightsDtype,
    device_name,
    option_of,
    torch_dtype,
)
from talkerviz.cli.options import app
from talkerviz.cli.output import check_no_terminal, check_writable, console, print_headline, print_notes
from talkerviz.cli.streams import print_message
from talkerviz.progress import byte_progress, frame_progress
from talkerviz.recorder.distributed.process import this_process
from talkerviz.recorder.instruments.device_peaks import Peaks, load_peaks, published_peaks, run_peaks
from talkerviz.recorder.instruments.registry import clock_for
from talkerviz.recorder.record import measure_again
from talkerviz.recorder.tap import choose_way
from talkerviz.render.terminal.summary_table import render_table
from talkerviz.talker.acceleration import Acceleration
from talkerviz.talker.files.codes_file import write_codes
from talkerviz.talker.generation.scenario import Scenario
from talkerviz.targets import (
    Target,
    code2wav_target,
    config_target,
    function_target,
    is_config,
    talker_of,
    talker_target,
)
from talkerviz.trace.labels import format_count
from talkerviz.trace.parquet import check_name
from talkerviz.user_errors import cause_of


class Impl(str, enum.Enum):
    """Whose talker runs."""

    native = "native"
    transformers = "transformers"


class Via(str, enum.Enum):
    """How calls are seen."""

    auto = "auto"
    tap = "tap"
    hooks = "hooks"


class Clock(str, enum.Enum):
    """What measures a call."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    none = "none"


_SPEAKER = "ethan"


@app.command()
def trace(
    target: Annotated[
        str,
        typer.Argument(help="`talker`, `code2wav`, a folder or file with a config, or `package.module:function`."),
    ] = "talker",
    preset_name: Preset = None,
    checkpoint: Checkpoint = None,
    impl: Annotated[Impl, typer.Option(help="Our talker, or transformers'.")] = Impl.native,
    device: Annotated[Device, typer.Option(help="auto takes CUDA where there is one.")] = Device.auto,
    dtype: WeightsDtype = None,
    compile_layers: Compile = False,
    fused: Fused = False,
    graphs: Graphs = False,
    codes: Annotated[
        Path | None, typer.Option(help="Write the greedy codes there, as JSON; for code2wav, read them.")
    ] = None,
    inputs: Inputs = None,
    prompt_tokens: Annotated[int | None, typer.Option(help="Tokens of the user's prompt; 11 by default.")] = None,
    text_tokens: Annotated[
        int | None, typer.Option(help="Tokens of the text to speak, with its 3 role tokens; 20 by default.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="Frames of 80 ms to speak, or tokens to generate; 8 by default.")
    ] = None,
    speaker: Annotated[str, typer.Option(help="A voice of the talker.")] = _SPEAKER,
    seed: Annotated[
        int | None, typer.Option(help="Draws what is random: a preset's weights, a thinker's outputs; 0 by default.")
    ] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Run so often first, and record nothing of it.")] = 0,
    repeat: Annotated[int, typer.Option(min=1, help="Record so many runs: `show --runs` tells them apart.")] = 1,
    clock: Annotated[Clock, typer.Option(help="auto takes cuda on CUDA; none records shapes alone.")] = Clock.auto,
    via: Annotated[
        Via, typer.Option(help="See calls at nn.Module.__call__ (tap), or through forward hooks; auto takes the tap.")
    ] = Via.auto,
    include: Annotated[
        list[str] | None, typer.Option(help="Record only modules that fit, such as '*.self_attn*'.")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Record none that fit.")] = None,
    depth: Annotated[int | None, typer.Option(min=0, help="Record only so many levels below the root.")] = None,
    flow: Annotated[bool, typer.Option("--flow/--no-flow", help="Run once more, to see where tensors go.")] = True,
    cost: Annotated[bool, typer.Option("--cost", help="Run once more, and count FLOP and bytes of each call.")] = False,
    memory: Annotated[bool, typer.Option("--memory", help="Run once more, for each call's CUDA memory.")] = False,
    busy: Annotated[bool, typer.Option("--busy", help="Run once more, for how long CUDA kernels run.")] = False,
    nvtx: Annotated[bool, typer.Option("--nvtx", help="Mark calls and frames, for Nsight Systems.")] = False,
    peaks: Annotated[Path | None, typer.Option(help="What the device can do, from `doctor --measure -o`.")] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="The trace; - for stdout.")] = "run.parquet",
) -> None:
    """Run a model, record every module call, and print where the time went."""
    output = "-" if descriptor_of(Path(output)) == 1 else output
    check_writable(output, codes)
    check_name(Path(output))
    process = this_process()
    speaks = process is None or process.rank == 0
    if output == "-" and process is not None:
        raise ValueError("-o -: each of several processes writes a file of its own; name one, such as run.parquet")
    check_no_terminal(output, "a trace")
    limits = load_peaks(peaks) if peaks else None
    if (busy or memory) and not torch.cuda.is_available():
        raise ValueError(f"--{'busy' if busy else 'memory'}: torch sees no CUDA device, and nothing else can tell")
    _say_which_way(via)
    acceleration = Acceleration(compile_layers, fused, graphs)
    asked = {
        "preset": preset_name,
        "checkpoint": checkpoint,
        "impl": impl is Impl.transformers,
        **dict.fromkeys(acceleration.enabled(), True),
        "codes": codes,
        "inputs": inputs,
        "prompt_tokens": prompt_tokens is not None,
        "text_tokens": text_tokens is not None,
        "speaker": speaker != _SPEAKER,
        "device": device if device is not Device.auto else None,
        "dtype": dtype,
        "frames": frames is not None,
        "seed": seed is not None,
    }
    _refuse(target, {name: value for name, value in asked.items() if value})

    source: str | Path = checkpoint or ("lite" if preset_name is None else preset_name)
    count, drawn = 8 if frames is None else frames, seed or 0
    where = device_name(device), torch_dtype(dtype)
    with byte_progress("weights", speaks) as on_bytes:
        if target == "talker":
            lengths = {"prompt_tokens": prompt_tokens, "text_tokens": text_tokens}
            given = {name: tokens for name, tokens in lengths.items() if tokens is not None}
            scenario = Scenario(**given, speaker=speaker, frames=count, seed=drawn)
            made = talker_target(talker_of(source, impl.value, *where, scenario, inputs, on_bytes, acceleration))
        elif target == "code2wav":
            made = code2wav_target(source, *where, codes, count, drawn, on_bytes)
        elif is_config(target):
            made = config_target(Path(target), *where, count, drawn)
        else:
            made = function_target(target)

    shown = made.frames if speaks else None
    facts = {**made.facts, **_peaks_facts(made.model, limits), "command": shlex.join(["talkerviz", *sys.argv[1:]])}
    if repeat > 1:
        facts["repeat"] = repeat
    if warmup:
        facts["warmup_ns"] = [_warm_up(made, shown) for _ in range(warmup)]
    record = functools.partial(
        recording,
        made.model,
        made.name,
        include=include or (),
        exclude=exclude or (),
        depth=depth,
        facts=facts,
        via=via.value,
    )
    on_meta, written_once = device is Device.meta, output == "-" or is_special(output)
    failure: BaseException | None = None
    # Said below, in a line each.
    for said in (".*what was recorded until then", "no call of .* was recorded"):
        warnings.filterwarnings("ignore", said, RuntimeWarning)
    with record(
        phases=made.phases,
        # Nothing is computed there, so there is nothing to time, and all the time to count.
        clock="none" if on_meta else _clock(clock, made.model),
        measure="cost" if on_meta else None,
        # What cannot be replaced is written once, at the end.
        file=None if written_once else output,
        nvtx=nvtx,
    ) as rec:
        try:
            for _ in range(repeat):
                with frame_progress(shown) as on_frame, rec.run():
                    produced = made.run(on_frame)
        except (Exception, KeyboardInterrupt) as error:
            failure = error  # what was recorded until now is kept
    if rec.lost:
        raise ValueError(f"{output}: {rec.lost}; what was recorded until then is in {rec.file}")

    recorded = rec.trace
    if failure is None and len(recorded.calls):
        # Replayed frames call no module, and their tensors are followed by nobody.
        wanted = {
            "flow": flow and not graphs,
            "cost": cost and not on_meta,
            "memory": memory,
            "busy": busy,
        }
        try:
            for measure in [name for name, asked in wanted.items() if asked]:
                recorded = _with_measure(recorded, measure, made, record, shown)
        except KeyboardInterrupt as error:
            failure = error
    if written_once:
        recorded.save(sys.stdout.buffer if output == "-" else output)
    elif rec.file is not None and recorded is not rec.trace:
        recorded.save(rec.file)
    calls = format_count(len(recorded.calls), "call")
    file = "what was written to stdout" if output == "-" else output if written_once else rec.file
    kept = f"{calls} {'is' if len(recorded.calls) == 1 else 'are'} kept in {file}"
    if isinstance(failure, KeyboardInterrupt):
        raise typer.Abort(kept)
    if failure is not None:
        raise ValueError(f"the run stopped with {cause_of(failure)}; {kept}")
    if not speaks:
        return
    if codes and target == "talker":
        write_codes(codes, produced)
    if recorded.calls.empty:
        print_message("no call of the model was seen: it was not run, or in a function that is compiled as a whole")
    if output != "-":
        if len(recorded.calls):
            _print(recorded, repeat)
        terminal = console()
        terminal.print(f"{calls} -> {file}", highlight=False, soft_wrap=True)
        if process is not None:
            every = Path(output).with_name(f"{Path(output).stem}.rank*{Path(output).suffix}")
            together = f"Of rank 0 of {process.world_size}; all together: talkerviz merge {every} -o {output}"
            terminal.print(together, highlight=False, soft_wrap=True)


# Options that not every target has, and which do: what is none of these is a function of the user's.
_HAVE = {
    **dict.fromkeys(("inputs", "impl", "prompt_tokens", "text_tokens", "speaker"), ("talker",)),
    **dict.fromkeys(("compiled", "fused", "graphs"), ("talker",)),
    **dict.fromkeys(("preset", "checkpoint", "codes"), ("talker", "code2wav")),
    **dict.fromkeys(("device", "dtype", "frames", "seed"), ("talker", "code2wav", "a config")),
}


def _refuse(target: str, given: Mapping[str, Any]) -> None:
    """Raises ValueError for options that the target does not have, or that do not go together.

    `given` has the options of `_HAVE` that were given.
    """
    kind = target if target in ("talker", "code2wav") else "a config" if is_config(target) else "function"
    for name in given:
        if kind not in _HAVE[name]:
            raise ValueError(f"{option_of(name)}: for {' or '.join(_HAVE[name])}, not for {target}")
    meta = given.get("device") is Device.meta
    if meta and kind == "code2wav":
        raise ValueError("--device meta: transformers' code2wav reads values, which are not there")
    if meta and "impl" in given:
        raise ValueError("--device meta: transformers' talker reads values, which are not there; use --impl native")
    if meta and "codes" in given:
        raise ValueError("--codes: the meta device computes no codes")
    for name in given:
        if name in ("compiled", "fused", "graphs") and (meta or "impl" in given):
            raise ValueError(f"{option_of(name)}: only the native talker has it, and not on the meta device")
        if name in ("prompt_tokens", "text_tokens") and "inputs" in given:
            raise ValueError(f"{option_of(name)}: --inputs says how many tokens there are")
    if "preset" in given and "checkpoint" in given:
        raise ValueError("--preset: --checkpoint says which talker it is; give one of them")


def _say_which_way(via: Via) -> None:
    """Check the way in, and say where it is the slow one for want of the compiled tap."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        choose_way(via.value)
    for warning in said:
        print_message(str(warning.message))


def _with_measure(
    recorded: Trace, measure: str, target: Target, record: Callable[..., Any], frames: int | None
) -> Trace:
    """A trace, and what another run measures of the same calls; if that run fails the trace is good all the same."""
    try:
        with frame_progress(frames) as on_frame:
            begin = functools.partial(record, phases=target.phases)
            return measure_again(recorded, measure, begin, lambda: target.run(on_frame))
    except Exception as error:
        reason = " ".join(f"{error or type(error).__name__}".split())
        without = ", and --no-flow saves the run" if measure == "flow" else ""
        print_message(f"--{measure}: {reason}; what it measured is left out{without}")
        return recorded


def _print(recorded: Trace, runs: int) -> None:
    """Where the time went."""
    terminal = console()
    for by in ("phase", "class", "module"):
        terminal.print(render_table(summarise(recorded, by), by, 10, terminal.width))
    if runs > 1:
        over = run_stats(recorded, "phase")
        terminal.print(render_table(over, "phase", 10, terminal.width, f"Time by phase over {runs} runs"))
    print_headline(terminal, recorded)
    print_notes(terminal, recorded)


def _warm_up(target: Target, frames: int | None) -> int:
    """A run that is no part of the record: what is slow but once has happened. Gives the nanoseconds that it took."""
    began = perf_counter_ns()
    try:
        with frame_progress(frames) as on_frame:
            target.run(on_frame)
    except KeyboardInterrupt as error:
        raise typer.Abort("nothing is recorded: it was warming up") from error
    except Exception as error:
        raise ValueError(f"the warm-up stopped with {cause_of(error)}; nothing is recorded") from error
    return perf_counter_ns() - began


def _peaks_facts(model: nn.Module, given: Peaks | None) -> dict[str, Any]:
    parameter = next(model.parameters(), None)
    known = given
    if known is None and parameter is not None and parameter.is_cuda:
        known = published_peaks(torch.cuda.get_device_name(parameter.device))
    if known is None or parameter is None:
        return {}
    dtype = str(parameter.dtype).removeprefix("torch.")
    limits = run_peaks(known, dtype, torch.backends.cuda.matmul.allow_tf32)
    if given is not None and not limits:
        raise ValueError(f"--peaks: no figure for {dtype}, only for {', '.join(given.flops)}")
    return {"peaks": limits} if limits else {}


def _clock(clock: Clock, model: nn.Module) -> str:
    return clock_for(model) if clock is Clock.auto else str(clock.value)
