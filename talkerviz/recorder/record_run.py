"""Record what a callable does: warmed up, several times, and with what is measured in runs of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from torch import nn

from talkerviz.recorder.followed_frames import following_changes_of
from talkerviz.recorder.gauges import check_measure
from talkerviz.recorder.modules import check_model
from talkerviz.recorder.phases import PhaseRule
from talkerviz.recorder.recorder import recording
from talkerviz.trace.join import join
from talkerviz.trace.parquet import check_name
from talkerviz.trace.trace import Trace


def record(
    model: nn.Module,
    run: Callable[[], object],
    name: str = "model",
    phases: Callable[[str], PhaseRule] | None = None,
    clock: str = "cpu",
    facts: Mapping[str, Any] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    depth: int | None = None,
    measure: str | Sequence[str] | None = None,
    file: str | Path | None = None,
    nvtx: bool = False,
    via: str = "auto",
    warmup: int = 0,
    repeat: int = 1,
) -> Trace:
    """Call `run` and record every call it makes of the model's modules; see `recording` for the other arguments.

    Args:
        model: any module.
        run: runs it, such as `lambda: model(x)`.
        measure: one of what `recording` measures, in this run; or several, such as `("flow", "cost")`: each is measured
            in one more run, and joined to the times of those without it.
        warmup: call `run` so often first, and record nothing of it.
        repeat: record so many calls of `run`, each a run of the trace.

    Raises:
        ValueError: as `recording`; a `run` that cannot be called; a number that is too small; a run for a measure that
            makes other calls than the first.
    """
    check_model(model)
    if file is not None:
        check_name(Path(file))
    if not callable(run):
        raise ValueError(f"run must be callable, not a {type(run).__name__}: write lambda: model(x)")
    for option, number, least in (("warmup", warmup, 0), ("repeat", repeat, 1)):
        if number < least:
            raise ValueError(f"{option} must be at least {least}, not {number}")
    alone, joined = (measure, ()) if measure is None or isinstance(measure, str) else (None, tuple(measure))
    for one in joined:
        check_measure(one)
    noted = dict(facts or {})
    if repeat > 1:
        noted["repeat"] = repeat
    if warmup:
        noted["warmup_ns"] = [_time_of(run) for _ in range(warmup)]
    begin = functools.partial(recording, model, name, phases, include=include, exclude=exclude, depth=depth, via=via)
    with begin(clock=clock, facts=noted, measure=alone, file=file, nvtx=nvtx) as rec:
        for _ in range(repeat):
            with rec.run():
                run()
    trace = rec.trace
    for one in joined:
        with following_changes_of(trace.calls), begin(clock="none", measure=one) as again:
            run()
        try:
            trace = join(trace, again.trace)
        except ValueError as error:
            raise ValueError(f"measure {one!r}: {error}") from error
    if joined and rec.file is not None and rec.lost is None:
        trace.save(rec.file)
    return trace


def _time_of(run: Callable[[], object]) -> int:
    began = perf_counter_ns()
    run()
    return perf_counter_ns() - began
