"""Recording of a callable: warm-up runs, timed runs, and one more run for each measure."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from torch import nn

from talkerviz.recorder.dataflow.followed_frames import following_changes_of
from talkerviz.recorder.instruments.registry import check_measure, model_devices
from talkerviz.recorder.module_tree import check_model, roots_of
from talkerviz.recorder.phases import PhaseRule
from talkerviz.recorder.recording import Recording, recording
from talkerviz.trace.join import join
from talkerviz.trace.parquet import check_name
from talkerviz.trace.trace import RecordT, TraceRecord


def record(
    model: nn.Module | Mapping[str, nn.Module],
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
    only: str | None = None,
    warmup: int = 0,
    repeat: int = 1,
    trace_class: type[RecordT] = TraceRecord,  # type: ignore[assignment]
) -> RecordT:
    """Call `run` and record every call it makes of the model's modules: see `talkerviz.record`."""
    check_model(model)
    if file is not None:
        check_name(Path(file))
    for option, number, minimum in (("warmup", warmup, 0), ("repeat", repeat, 1)):
        if number < minimum:
            raise ValueError(f"{option} must be at least {minimum}, not {number}")
    measures = () if measure is None else (measure,) if isinstance(measure, str) else tuple(measure)
    for measure_name in measures:
        check_measure(measure_name, *model_devices(nn.ModuleList(roots_of(model, name).values())))
    first = measures[0] if measures and clock == "none" else None  # a run without times can be slowed down
    run_facts = dict(facts or {})
    if repeat > 1:
        run_facts["repeat"] = repeat
    if warmup:
        run_facts["warmup_ns"] = [_time_of(run) for _ in range(warmup)]
    selection: dict[str, Any] = {"include": include, "exclude": exclude, "depth": depth, "via": via, "only": only}
    begin = functools.partial(recording, model, name, phases, **selection, trace_class=trace_class)
    with begin(clock=clock, facts=run_facts, measure=first, file=file, nvtx=nvtx) as rec:
        for _ in range(repeat):
            with rec.run():
                run()
    further_measures = measures if first is None else measures[1:]
    trace = _with_measures(rec.trace, further_measures, begin, run)
    if further_measures and rec.file is not None and rec.lost is None:
        trace.save(rec.file)
    return trace


def measure_again(
    trace: RecordT,
    measure: str,
    begin: Callable[..., AbstractContextManager[Recording[Any]]],
    run: Callable[[], object],
) -> RecordT:
    """Run once more with a measure, and join its columns to a timed trace.

    Args:
        trace: the timed trace of the same run.
        measure: one of `MEASURES`.
        begin: makes a `recording` of the model from `clock` and `measure`.
        run: runs the model.

    Raises:
        ValueError: the measure is not possible here, or the two runs differ.
    """
    with following_changes_of(trace.calls), begin(clock="none", measure=measure) as again:
        run()
    return join(trace, again.trace)


def _with_measures(
    trace: RecordT,
    measures: Sequence[str],
    begin: Callable[..., AbstractContextManager[Recording[Any]]],
    run: Callable[[], object],
) -> RecordT:
    failed: dict[str, list[str]] = {}
    for measure in measures:
        try:
            trace = measure_again(trace, measure, begin, run)
        except Exception as error:
            reason = f"{error}" if isinstance(error, ValueError) else f"it raised {type(error).__name__}: {error}"
            failed.setdefault(reason, []).append(repr(measure))
    for reason, names in failed.items():
        message = f"measure {' and '.join(names)}: {reason}; the trace has the times without it"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    return trace


def _time_of(run: Callable[[], object]) -> int:
    start = perf_counter_ns()
    run()
    return perf_counter_ns() - start
