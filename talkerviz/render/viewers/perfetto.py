"""Chrome's trace event JSON, for Perfetto (ui.perfetto.dev) and chrome://tracing. By convention a `.json` file.

The format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMh4h6I0nSsKchNAySU. Times are microseconds with
nanoseconds after the decimal point.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from talkerviz.analysis.collective_waits import collective_waits
from talkerviz.analysis.segments import segments
from talkerviz.render.viewers.common import call_name, check_timed, compact, joined, lanes, plain_values
from talkerviz.trace import TraceRecord
from talkerviz.trace.flow import call_edges
from talkerviz.trace.schema import Tensors

_HOST, _DEVICE = 1, 2  # process ids of the first rank; each further rank adds two
# Track ids of the first thread; each further thread adds ten. None equals a process id: viewers name such a track the
# main thread.
_FRAMES, _PHASES, _CALLS = 11, 12, 13
_BATCH_CALLS = 1 << 16  # calls converted to Python objects at a time
_FIGURES = (
    "collective",
    "host_self_ns",
    "device_ns",
    "device_self_ns",
    "busy_ns",
    "flops",
    "uncounted_operators",
    "bytes_read",
    "bytes_written",
    "memory_peak_bytes",
    "memory_delta_bytes",
)


def render_perfetto(trace: TraceRecord) -> bytes:
    """Write every timed call as a slice, on the host and on the device, below tracks of frames and phases.

    The `args` of a slice are the call's columns in the trace, times in nanoseconds; unmeasured columns are left out.
    Arrows lead from a call to its slice on the device, and to the calls that read its outputs without computation in
    between (see `handed_on`).

    Ranks of a merged trace are separate processes. A collective contains a slice for the wait for the last rank, and
    one for the transfer, with an arrow from the last rank's collective.

    Raises:
        RenderError: the trace has no times.
    """
    return joined(perfetto_pieces(trace))


def perfetto_pieces(trace: TraceRecord) -> Iterator[str]:
    """Yield the text of `render_perfetto` in pieces, since that of a long run exceeds memory.

    Raises:
        RenderError: the trace has no times.
    """
    check_timed(trace, "perfetto")
    return _pieces(trace)


def _pieces(trace: TraceRecord) -> Iterator[str]:
    facts = {name: value if isinstance(value, str) else compact(value) for name, value in trace.facts.items()}
    yield f'{{"displayTimeUnit":"ms","otherData":{compact(facts)},"traceEvents":['
    comma = "\n"
    for event in _events(trace):
        yield comma + event
        comma = ",\n"
    yield "\n]}\n"


def _us(ns: int) -> float:
    return ns / 1000


def _events(trace: TraceRecord) -> Iterator[str]:
    ranks = trace.calls["rank"].unique().tolist()
    if len(ranks) < 2:
        yield from _events_of(trace, _Processes())
        return
    tensors = itertools.count()
    places = {}
    for number, rank in enumerate(sorted(ranks)):
        places[rank] = _Processes(_HOST + 2 * number, _DEVICE + 2 * number, f"rank {rank} ", tensors)
        yield from _events_of(trace.select(rank=rank), places[rank])
    yield from _waits(trace, places)


@dataclass(frozen=True)
class _Processes:
    """Process ids of a rank.

    Attributes:
        host, device: ids of its two processes.
        name: prefix of their names.
        tensors: ids for arrows of tensors.
    """

    host: int = _HOST
    device: int = _DEVICE
    name: str = ""
    tensors: Iterator[int] = field(default_factory=itertools.count)


def _events_of(trace: TraceRecord, to: _Processes) -> Iterator[str]:
    device_track = _device_tracks(trace.calls)
    yield from _track_names(trace.calls, device_track, to)
    run = ["run"] if trace.calls["run"].nunique() > 1 else []
    for columns, track in ((["frame", *run], _FRAMES), (["phase", "frame", *run], _PHASES)):
        for of_thread, values, start, end in segments(trace.calls, columns):
            known = {name: value for name, value in zip(columns, values, strict=True) if value is not None}
            name = str(known["phase"]) if "phase" in known else f"frame {known['frame']}"
            place = f'"pid":{to.host},"tid":{10 * of_thread + track},"ts":{_us(start)},"dur":{_us(end - start)}'
            yield f'{{"ph":"X",{place},"name":{compact(name)},"cat":"{columns[0]}","args":{compact(known)}}}'
    yield from _call_events(trace.calls, device_track, ("phase", "frame", "step", *run, "peers"), to)
    yield from _tensor_arrows(trace, to)


def _device_tracks(calls: pd.DataFrame) -> np.ndarray:
    """Return the track of each call on the device; 0 without a device time."""
    track = np.zeros(len(calls), dtype=np.int64)
    timed = calls["device_ns"].notna().to_numpy()
    for thread in calls["thread"][timed].unique().tolist():
        rows = np.flatnonzero(timed & (calls["thread"] == thread).to_numpy())
        start, took = (
            calls[name].to_numpy(dtype=np.int64, na_value=0)[rows] for name in ("device_start_ns", "device_ns")
        )
        track[rows] = lanes(start, start + took) + max(track.max(initial=0) + 1, _CALLS)
    return track


def _track_names(calls: pd.DataFrame, device_track: np.ndarray, to: _Processes) -> Iterator[str]:
    threads = sorted(calls["thread"].unique().tolist())
    names = {to.host: f"{to.name}host", to.device: f"{to.name}device"}
    tracks: dict[tuple[int, int], str] = {}
    for thread in threads:
        of = f" of thread {thread}" if len(threads) > 1 else ""
        rows = calls[calls["thread"] == thread]
        for track, column in ((_FRAMES, "frame"), (_PHASES, "phase")):
            if rows[column].notna().any():
                tracks[to.host, 10 * thread + track] = f"{column}s{of}"
        tracks[to.host, _calls(thread)] = f"thread {thread}"
        for lane, track in enumerate(np.unique(device_track[(calls["thread"] == thread) & (device_track > 0)])):
            tracks[to.device, int(track)] = f"calls of thread {thread}" + (f", lane {lane + 1}" if lane else "")
    for process in sorted({process for process, _ in tracks}):
        yield _metadata("process_name", process, 0, name=names[process])
        yield _metadata("process_sort_index", process, 0, sort_index=process)
    for (process, track), name in tracks.items():
        yield _metadata("thread_name", process, track, name=name)
        yield _metadata("thread_sort_index", process, track, sort_index=track)


def _metadata(what: str, process: int, track: int, **args: object) -> str:
    return f'{{"ph":"M","pid":{process},"tid":{track},"name":"{what}","args":{compact(args)}}}'


_SLICE = ("host_start_ns", "host_ns", "device_start_ns", "device_ns")
_ARGS = ("call", "thread", "path", "class", "inputs", "outputs", "error")


def _call_events(
    calls: pd.DataFrame, device_track: np.ndarray, marks: tuple[str, ...], to: _Processes
) -> Iterator[str]:
    figures = [name for name in _FIGURES if not calls[name].isna().all()]
    named, marked, tensors = functools.cache(_named), functools.cache(_marked), _tensor_lists()
    for begin in range(0, len(calls), _BATCH_CALLS):
        part = calls.iloc[begin : begin + _BATCH_CALLS]
        rows = [_rows(part, names) for names in (_SLICE, _ARGS, marks, figures)]
        on_device = device_track[begin : begin + _BATCH_CALLS].tolist()
        for track, times, described, mark, measured in zip(on_device, *rows, strict=True):
            start, took, device_start, device_took = times
            call, thread, path, class_name, inputs, outputs, error = described
            name, module = named(path, class_name)
            args = (
                f'"call":{call},{module}{marked(marks, mark)},"inputs":{tensors(inputs)},"outputs":{tensors(outputs)}'
            )
            args += "".join(
                f',"{what}":{value}' for what, value in zip(figures, measured, strict=True) if value is not None
            )
            if error is not None:
                args += f',"error":{compact(error)}'
                name += ',"cname":"terrible"'
            here = there = ""
            if took is not None:
                here = f'"pid":{to.host},"tid":{_calls(thread)},"ts":{_us(start)}'
                yield f'{{"ph":"X",{here},"dur":{_us(took)},{name},"cat":"call","args":{{{args}}}}}'
            if track:
                there = f'"pid":{to.device},"tid":{track},"ts":{_us(device_start)}'
                yield f'{{"ph":"X",{there},"dur":{_us(device_took)},{name},"cat":"device","args":{{{args}}}}}'
            if here and there:
                yield from _arrow("device", call, here, there)


def _rows(calls: pd.DataFrame, names: Sequence[str]) -> Iterable[tuple[Any, ...]]:
    return zip(*(plain_values(calls[name]) for name in names), strict=True)


def _named(path: str, class_name: str) -> tuple[str, str]:
    return f'"name":{compact(call_name(path, class_name))}', f'"path":{compact(path)},"class":{compact(class_name)}'


def _marked(names: tuple[str, ...], values: tuple[object, ...]) -> str:
    return "".join(
        f',"{name}":{compact(value)}' for name, value in zip(names, values, strict=True) if value is not None
    )


def _tensor_lists() -> Callable[[Tensors], str]:
    texts: dict[int, str] = {}  # by identity: the calls of a trace share few distinct lists

    def text_of(tensors: Tensors) -> str:
        text = texts.get(id(tensors))
        if text is None:
            text = texts[id(tensors)] = compact([tensor.text for tensor in tensors])
        return text

    return text_of


def _tensor_arrows(trace: TraceRecord, to: _Processes) -> Iterator[str]:
    pairs = call_edges(trace.calls, trace.flow)
    thread = trace.calls["thread"].to_numpy()
    start = plain_values(trace.calls["host_start_ns"])
    for one, two in zip(pairs["source"].tolist(), pairs["target"].tolist(), strict=True):
        number = next(to.tensors)
        if start[one] is not None and start[two] is not None:
            places = [f'"pid":{to.host},"tid":{_calls(thread[row])},"ts":{_us(start[row])}' for row in (one, two)]
            yield from _arrow("tensor", number, *places)


def _waits(trace: TraceRecord, places: Mapping[int, _Processes]) -> Iterator[str]:
    """Yield slices of waits and transfers inside collectives, with arrows from the last rank."""
    held = collective_waits(trace)
    row = pd.Index(trace.calls["call"])
    thread, on_device = trace.calls["thread"].to_numpy(), trace.calls["device_ns"].notna().to_numpy()
    track = np.zeros(len(thread), dtype=np.int64)
    for rank in places:
        of_rank = (trace.calls["rank"] == rank).to_numpy()
        track[of_rank] = _device_tracks(trace.calls[of_rank])

    def place(call: int, rank: int, time: int) -> str:
        at = row.get_loc(call)
        process, of_call = (
            (places[rank].device, track[at]) if on_device[at] else (places[rank].host, _calls(thread[at]))
        )
        return f'"pid":{process},"tid":{of_call},"ts":{_us(time)}'

    waiting = held[held["wait_ns"] > 0]
    names = ("call", "rank", "start_ns", "wait_ns", "transfer_ns", "last", "last_call", "peers", "collective")
    rows = zip(*(waiting[name].tolist() for name in names), strict=True)
    for number, (call, rank, start, took, after, last, last_call, peers, collective) in enumerate(rows):
        args = compact({"peers": peers, "collective": collective})
        waits = f'"dur":{_us(took)},"name":"wait for rank {last}","cat":"wait","args":{args}'
        yield f'{{"ph":"X",{place(call, rank, start)},{waits}}}'
        if after > 0:
            there = place(call, rank, start + took)
            yield f'{{"ph":"X",{there},"dur":{_us(after)},"name":"transfer","cat":"wait","args":{args}}}'
            yield from _arrow("collective", number, place(last_call, last, start + took), there)


def _calls(thread: int) -> int:
    return 10 * thread + _CALLS


def _arrow(kind: str, number: int, source: str, target: str) -> Iterable[str]:
    """Return the events of an arrow between the slices that begin at two positions."""
    same = f'"name":"{kind}","cat":"{kind}","id":{number}'
    return f'{{"ph":"s",{source},{same}}}', f'{{"ph":"f","bp":"e",{target},{same}}}'
