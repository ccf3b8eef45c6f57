"""Recording of a target: checks, warm-up, the recorded runs, the extra measuring runs, and the printed summary."""

from __future__ import annotations

import functools
import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import torch
import typer
from torch import nn

from talkerviz.api import Trace, recording
from talkerviz.atomic_file import descriptor_of, is_special
from talkerviz.cli.output import check_no_terminal, check_writable, console, print_summary
from talkerviz.cli.streams import print_message
from talkerviz.cli.trace_options import Clock, RecordingOptions, Via
from talkerviz.progress import byte_progress, frame_progress
from talkerviz.recorder.distributed.process import this_process
from talkerviz.recorder.instruments.device_peaks import Peaks, load_peaks, published_peaks, run_peaks
from talkerviz.recorder.instruments.registry import clock_for
from talkerviz.recorder.record import measure_again
from talkerviz.recorder.tap import choose_way
from talkerviz.talker.files.codes_file import write_codes
from talkerviz.talker.files.weight_loader import OnBytes
from talkerviz.targets import Target
from talkerviz.trace.labels import format_count
from talkerviz.trace.parquet import check_name
from talkerviz.user_errors import cause_of

# What `recording` warns of and this module reports itself, in a line each.
_REPORTED_HERE = (".*what was recorded until then", "no call of .* was recorded")


def record_target(
    build: Callable[[OnBytes], Target],
    options: RecordingOptions,
    *,
    on_meta: bool = False,
    replays_graphs: bool = False,
    codes: Path | None = None,
) -> None:
    """Record a target, write the trace, and print a summary.

    Args:
        build: builds the target; its argument reports how many bytes of weights were read.
        options: how to record.
        on_meta: the model is on the meta device: costs are counted and nothing is timed.
        replays_graphs: frames are replayed CUDA graphs, in which the flow of tensors cannot be tracked.
        codes: the file for the codes that the run returns.

    Raises:
        ValueError: an option that cannot be met, a target that cannot be built, or a run that failed.
        typer.Abort: the run was interrupted; the message says what was kept.
    """
    command = shlex.join(["talkerviz", *sys.argv[1:]])
    output = "-" if descriptor_of(Path(options.output)) == 1 else options.output
    check_writable(output, codes)
    check_name(Path(output))
    process = this_process()
    prints = process is None or process.rank == 0
    if output == "-" and process is not None:
        raise ValueError("-o -: each of several processes writes a file of its own; name one, such as run.parquet")
    check_no_terminal(output, "a trace")
    peaks = load_peaks(options.peaks) if options.peaks else None
    for name in ("busy", "memory"):
        if getattr(options, name) and not torch.accelerator.is_available():
            raise ValueError(f"--{name}: torch sees no CUDA device or other accelerator; leave it out")
    _check_via(options.via)
    with byte_progress("weights", prints) as on_bytes:
        target = build(on_bytes)

    frames = target.frames if prints else None
    facts = {**target.facts, **_peaks_facts(target.model, peaks), "command": command}
    if options.repeat > 1:
        facts["repeat"] = options.repeat
    if options.warmup:
        facts["warmup_ns"] = [_warm_up(target, frames) for _ in range(options.warmup)]
    record = functools.partial(
        recording,
        target.model,
        target.name,
        include=options.include or (),
        exclude=options.exclude or (),
        depth=options.depth,
        facts=facts,
        via=options.via,
    )
    written_once = output == "-" or is_special(output)
    failure: BaseException | None = None
    for message in _REPORTED_HERE:
        warnings.filterwarnings("ignore", message, RuntimeWarning)
    with record(
        phases=target.phases,
        # On meta nothing is computed, so there is nothing to time, and all the time to count.
        clock="none" if on_meta else _clock_name(options.clock, target.model),
        measure="cost" if on_meta else None,
        # A pipe or a device cannot be replaced: it is written once, at the end.
        file=None if written_once else output,
        nvtx=options.nvtx,
    ) as rec:
        try:
            for _ in range(options.repeat):
                with frame_progress(frames) as on_frame, rec.run():
                    result = target.run(on_frame)
        except (Exception, KeyboardInterrupt) as error:
            failure = error  # the calls recorded until now are kept
    if rec.lost:
        raise ValueError(f"{output}: {rec.lost}; what was recorded until then is in {rec.file}")

    trace = rec.trace
    if failure is None and len(trace.calls):
        wanted = {
            "flow": options.flow and not replays_graphs,
            "cost": options.cost and not on_meta,
            "memory": options.memory,
            "busy": options.busy,
        }
        try:
            for measure in [name for name, is_wanted in wanted.items() if is_wanted]:
                trace = _with_measure(trace, measure, target, record, frames)
        except KeyboardInterrupt as error:
            failure = error
    if written_once:
        trace.save(sys.stdout.buffer if output == "-" else output)
    elif rec.file is not None and trace is not rec.trace:
        trace.save(rec.file)
    calls = format_count(len(trace.calls), "call")
    file = "what was written to stdout" if output == "-" else output if written_once else str(rec.file)
    kept = f"{calls} {'is' if len(trace.calls) == 1 else 'are'} kept in {file}"
    if isinstance(failure, KeyboardInterrupt):
        raise typer.Abort(kept)
    if failure is not None:
        raise ValueError(f"the run stopped with {cause_of(failure)}; {kept}")
    if not prints:
        return
    if codes:
        write_codes(codes, result)
    if trace.calls.empty:
        print_message("no call of the model was seen: it was not run, or in a function that is compiled as a whole")
    written = {calls: file} | ({f"{format_count(len(result), 'frame')} of codes": str(codes)} if codes else {})
    if output == "-":
        for what, where in [*written.items()][1:]:
            print_message(f"{what} -> {where}")  # stdout holds the trace
        return
    if len(trace.calls):
        print_summary(console(), trace, options.repeat)
    terminal = console()
    for what, where in written.items():
        terminal.print(f"{what} -> {where}", highlight=False, soft_wrap=True)
    if process is not None:
        every = Path(output).with_name(f"{Path(output).stem}.rank*{Path(output).suffix}")
        together = f"Of rank 0 of {process.world_size}; all together: talkerviz merge {every} -o {output}"
        terminal.print(together, highlight=False, soft_wrap=True)


def _check_via(via: Via) -> None:
    """Check that calls can be intercepted so, and report a fall-back to hooks for want of the compiled tap."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        choose_way(via)
    for warning in caught:
        print_message(str(warning.message))


def _with_measure(trace: Trace, measure: str, target: Target, record: Callable[..., Any], frames: int | None) -> Trace:
    """Add the measure of another run of the same calls; without it if that run fails."""
    try:
        with frame_progress(frames) as on_frame:
            begin = functools.partial(record, phases=target.phases)
            return measure_again(trace, measure, begin, lambda: target.run(on_frame))
    except Exception as error:
        reason = " ".join(f"{error or type(error).__name__}".split())
        without = ", and --no-flow saves the run" if measure == "flow" else ""
        print_message(f"--{measure}: {reason}; what it measured is left out{without}")
        return trace


def _warm_up(target: Target, frames: int | None) -> int:
    """Run the target once without recording, and return its duration in nanoseconds."""
    began = perf_counter_ns()
    try:
        with frame_progress(frames) as on_frame:
            target.run(on_frame)
    except KeyboardInterrupt as error:
        raise typer.Abort("nothing is recorded: it was warming up") from error
    except Exception as error:
        raise ValueError(f"the warm-up stopped with {cause_of(error)}; nothing is recorded") from error
    return perf_counter_ns() - began


def _peaks_facts(model: nn.Module, measured: Peaks | None) -> dict[str, Any]:
    """Return the device's limits for the model's data type: the measured ones, or the data sheet's."""
    parameter = next(model.parameters(), None)
    peaks = measured
    if peaks is None and parameter is not None and parameter.is_cuda:
        peaks = published_peaks(torch.cuda.get_device_name(parameter.device))
    if peaks is None or parameter is None:
        return {}
    dtype = str(parameter.dtype).removeprefix("torch.")
    limits = run_peaks(peaks, dtype, torch.backends.cuda.matmul.allow_tf32)
    if measured is not None and not limits:
        raise ValueError(f"--peaks: no figure for {dtype}, only for {', '.join(measured.flops)}")
    return {"peaks": limits} if limits else {}


def _clock_name(clock: Clock, model: nn.Module) -> str:
    return clock_for(model) if clock == "auto" else clock
