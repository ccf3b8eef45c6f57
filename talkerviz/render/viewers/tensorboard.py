"""Profile in torch.profiler's format, for TensorBoard's PyTorch profiler plugin and HolisticTraceAnalysis.

TensorBoard opens only files whose names end in `.pt.trace.json`. The format is Kineto's: Chrome trace events with
its own categories and arguments: https://github.com/pytorch/kineto/tree/main/tb_plugin. Times are microseconds with
nanoseconds after the decimal point.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from talkerviz.analysis.segments import segments
from talkerviz.render.viewers.common import call_name, check_timed, compact, joined, lanes, plain_values
from talkerviz.trace import TraceRecord
from talkerviz.trace.event_log import COLLECTIVES
from talkerviz.trace.schema import Tensors
from talkerviz.trace.trace import check_one_rank

_HOST = 1  # process id; devices have their own ids
_FRAMES, _PHASES, _CALLS = 11, 12, 13  # track ids; each further thread adds ten
_FIRST_STREAM = 7  # as CUDA numbers its default stream in traces


def render_tensorboard(trace: TraceRecord) -> bytes:
    """Write calls as modules, innermost calls also as operators, and frames as steps.

    The module tree is the model's: each module is in it once, with all its calls from any caller. Operators are named
    by class, so that the operator table is by class, with input shapes. A step lasts until the next frame begins; steps
    of several runs are numbered consecutively. Device times of innermost calls are written as kernels. Phases are
    slices that no viewer's table counts.

    Raises:
        RenderError: the trace has no times.
        ValueError: a merged trace; write a file per rank.
    """
    check_timed(trace, "tensorboard")
    check_one_rank(trace)
    return joined(_pieces(trace))


def _pieces(trace: TraceRecord) -> Iterator[str]:
    # With spaces: HolisticTraceAnalysis finds the rank by a text search.
    yield json.dumps(_header(trace), ensure_ascii=False)[:-1] + ',\n"traceEvents": ['
    comma = "\n"
    for event in _events(trace):
        yield comma + compact(event)
        comma = ",\n"
    yield "\n]}\n"


def _header(trace: TraceRecord) -> dict[str, Any]:
    facts = trace.facts
    header: dict[str, Any] = {"schemaVersion": 1, "displayTimeUnit": "ms", "with_modules": 1, "record_shapes": 1}
    header["deviceProperties"] = [{"id": 0, "name": facts["gpu"]}] if "gpu" in facts else []
    if "date" in facts:
        began = datetime.datetime.fromisoformat(facts["date"])
        header["baseTimeNanoseconds"] = int(began.timestamp()) * 10**9
    process = facts.get("process")
    header["distributedInfo"] = {"rank": 0, "world_size": 1}
    if process:
        header["distributedInfo"] = {name: process[name] for name in ("backend", "rank", "world_size")}
    return header


def _events(trace: TraceRecord) -> Iterator[dict[str, Any]]:
    calls = trace.calls[trace.calls["host_ns"].notna()].reset_index(drop=True)
    yield from _track_names(calls)
    yield from _steps(calls)
    run = ["run"] if calls["run"].nunique() > 1 else []
    for thread, values, start, end in segments(calls, ["phase", "frame", *run]):
        args = {name: value for name, value in zip(("frame", "run"), values[1:], strict=False) if value is not None}
        yield _slice("phase", str(values[0]), _HOST, 10 * thread + _PHASES, start, end - start, args)
    yield from _call_events(trace, calls)


def _slice(category: str, name: str, process: int, track: int, start: int, took: int, args: object) -> dict[str, Any]:
    place = {"pid": process, "tid": track, "ts": start / 1000, "dur": took / 1000}
    return {"ph": "X", "cat": category, "name": name, **place, "args": args}


def _track_names(calls: pd.DataFrame) -> Iterator[dict[str, Any]]:
    def named(what: str, track: int, name: str) -> dict[str, Any]:
        return {"ph": "M", "name": what, "pid": _HOST, "tid": track, "ts": 0, "args": {"name": name}}

    yield named("process_name", 0, "talkerviz")
    yield named("thread_name", _FRAMES, "frames")
    for thread in sorted(calls["thread"].unique().tolist()):
        yield named("thread_name", 10 * thread + _PHASES, f"phases of thread {thread}")
        yield named("thread_name", 10 * thread + _CALLS, f"thread {thread}")


def _steps(calls: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield frames on their own track, since a call may begin in one frame and end in another."""
    in_frames = calls[calls["frame"].notna()]
    in_frames = in_frames.assign(end=in_frames["host_start_ns"] + in_frames["host_ns"])
    frames = in_frames.groupby(["run", "frame"])[["host_start_ns", "end"]].agg({"host_start_ns": "min", "end": "max"})
    frames = frames.sort_values("host_start_ns")
    several = calls["run"].nunique() > 1
    starts, ends = (frames[name].tolist() for name in ("host_start_ns", "end"))
    for place, (run, frame) in enumerate(frames.index):
        start, end = starts[place], ends[place]
        if place + 1 < len(frames):
            same_run = frames.index[place + 1][0] == run
            end = starts[place + 1] if same_run else min(end, starts[place + 1])
        number = place if several else frame
        args = {"frame": int(frame), "run": int(run)} if several else {"frame": int(frame)}
        yield _slice("user_annotation", f"ProfilerStep#{number}", _HOST, _FRAMES, start, end - start, args)


_COLUMNS = ("call", "parent", "thread", "path", "class", "phase", "inputs", "outputs", "host_start_ns", "host_ns")


def _call_events(trace: TraceRecord, calls: pd.DataFrame) -> Iterator[dict[str, Any]]:
    inner = ~calls["call"].isin(calls["parent"].dropna()).to_numpy()
    stream = _streams(calls, inner)
    numbers = _module_numbers(trace, calls)
    backend = (trace.facts.get("process") or {}).get("backend") or ""
    columns = (*_COLUMNS, "device_start_ns", "device_ns")
    rows = zip(*(plain_values(calls[name]) for name in columns), strict=True)
    for row, innermost, track in zip(rows, inner.tolist(), stream.tolist(), strict=True):
        call, parent, thread, path, kind, phase, inputs, outputs, start, took, device_start, device_took = row
        own = {"External id": call + 1}  # 0 means none
        name, at = call_name(path, kind), (_HOST, 10 * thread + _CALLS, start, took)
        if path in numbers:
            number, around = numbers[path]
            # TensorBoard builds the module tree from the first two alone.
            args = {"Python id": number, "Python parent id": around, "Python module id": number}
            args |= {"call": call, "caller": parent, "path": path, "phase": phase}
            yield _slice("python_function", f"nn.Module: {name}", *at, args)
        if innermost:
            shapes = {"Input Dims": [t.shape for t in inputs], "Input type": [t.dtype for t in inputs]}
            operator = f"{backend}:{kind}" if kind in COLLECTIVES and path not in numbers else kind
            yield _slice("cpu_op", operator, *at, own | shapes)
        if track:
            # Links host and device slices, as a kernel launch does.
            tie = own | {"correlation": call + 1}
            yield _slice("runtime", "launch", _HOST, 10 * thread + _CALLS, start, 0, tie)
            device = _device(outputs or inputs)
            args = tie | {"device": device, "stream": track}
            yield _slice("kernel", name, device, track, device_start, device_took, args)


def _module_numbers(trace: TraceRecord, calls: pd.DataFrame) -> dict[str, tuple[int, int | None]]:
    """Map each called module to its number and that of the nearest called module around it, or None."""
    called = set(calls["path"].unique())
    numbers = {module.path: number for number, module in enumerate(trace.modules) if module.path in called}
    found: dict[str, tuple[int, int | None]] = {}
    for path, number in numbers.items():
        around = path.rpartition(".")[0]
        while around and around not in numbers:
            around = around.rpartition(".")[0]
        found[path] = number, numbers.get(around)
    return found


def _streams(calls: pd.DataFrame, inner: np.ndarray) -> np.ndarray:
    """Return the track of each innermost call on its device; 0 without a device time."""
    track = np.zeros(len(calls), dtype=np.int64)
    rows = np.flatnonzero(inner & calls["device_ns"].notna().to_numpy())
    start, took = (calls[name].to_numpy(dtype=np.int64, na_value=0)[rows] for name in ("device_start_ns", "device_ns"))
    track[rows] = _FIRST_STREAM + lanes(start, start + took)
    return track


def _device(tensors: Tensors) -> int:
    """Return the index of the first tensor's CUDA device."""
    number = tensors[0].device.rpartition(":")[2] if tensors else ""
    return int(number) if number.isdecimal() else 0
