"""The raw log of a run, and how it becomes rows.

While a run goes on each thread appends events of three whole numbers: what happened, to which tensors, and when. Whole
batches of them are written to a stream (Arrow IPC), in memory or in a file that outlives the process. Everything else
(nesting, parents, self time, phases) is worked out here, after the run, on arrays, a batch at a time.

An event is one of:
    module number, number of the inputs' list, time: a call begins;
    -1 - module number, number of the outputs' list, time: it returns;
    -1 - module number, -1 - number of the exception's name, time: it raises;
    COLLECTIVE, number of its peers, its number among theirs: the call that has just begun is this one;
    MARK, number of the mark, time: what follows belongs to this phase, frame, step and run;
    PAUSE, 0, nanoseconds: the recorder itself held the run up for so long.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from talkerviz.trace.schema import ModuleInfo, TensorInfo, Tensors, module_infos

MARK, PAUSE, COLLECTIVE = 1 << 30, (1 << 30) + 1, (1 << 30) + 2
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "gather", "scatter")
MESSAGES = ("send", "recv")
BESIDES = (*COLLECTIVES, *MESSAGES, "barrier", "wait", "recorder")
"""What is logged as calls are and is no module's, by what is its class then; the numbers go on from the modules'.

`wait` is for a collective that was begun before. The recorder is one of them where what it holds up, others wait for.
"""
NO_TENSORS = 0  # the number of the empty list
UNFINISHED = "unfinished"  # the error of a call that was going on when the process was killed

EVENTS = pa.schema(
    [
        pa.field("what", pa.int32(), nullable=False),
        pa.field("tensors", pa.int32(), nullable=False),
        pa.field("time", pa.int64(), nullable=False),
    ]
)

Rows = dict[str, np.ndarray]


class Mark(NamedTuple):
    """From here on calls belong to this phase, frame, step and run, until the next mark."""

    phase: str
    frame: int | None = None
    step: int | None = None
    run: int = 0


@dataclass
class Names:
    """What the numbers of a log stand for; every list begins at number 0.

    Attributes:
        tensors: lists of tensors.
        marks: phases, frames, steps and runs.
        errors: names of exceptions' classes.
        peers: the ranks that collectives are among.
    """

    tensors: list[Tensors] = field(default_factory=lambda: [()])
    marks: list[Mark] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    peers: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Log:
    """A log that has been read.

    Attributes:
        modules: the modules that calls are numbered by.
        facts: what was known of the run when it began.
        origin_ns: the time that counts as 0.
        timed: whether events hold times.
        names: what the numbers stand for.
        batches: (thread, events [n, 3]) in the order in which they were written.
    """

    modules: tuple[ModuleInfo, ...]
    facts: dict[str, Any]
    origin_ns: int
    timed: bool
    names: Names
    batches: list[tuple[int, pa.RecordBatch]]


def read_log(source: Path | pa.Buffer) -> Log:
    """Read a log's stream; one that was cut short gives the whole batches that are there.

    Raises:
        ValueError: not such a stream at all.
    """
    try:
        reader = pa.ipc.open_stream(pa.memory_map(str(source)) if isinstance(source, Path) else source)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError("not a talkerviz recording") from error
    metadata = reader.schema.metadata or {}
    if b"talkerviz.log" not in metadata:
        raise ValueError("an Arrow stream, but not a talkerviz recording")
    header = json.loads(metadata[b"talkerviz.log"])
    names = Names()
    batches = []
    while True:
        try:
            batch, extra = reader.read_next_batch_with_custom_metadata()
        except (StopIteration, pa.ArrowInvalid, OSError):
            break
        said = json.loads(extra[b"names"])
        tensors, marks, errors, peers = said["first"]
        names.tensors[tensors:] = [
            tuple(TensorInfo(n, tuple(s), t, d) for n, s, t, d in one) for one in said["tensors"]
        ]
        names.marks[marks:] = [Mark(*mark) for mark in said["marks"]]
        names.errors[errors:] = said["errors"]
        names.peers[peers:] = said["peers"]
        batches.append((said["thread"], batch))
    return Log(module_infos(header["modules"]), header["facts"], header["origin_ns"], header["timed"], names, batches)


@dataclass(frozen=True)
class _Open:
    """Where a thread stands between two batches: its open calls, outermost first, and what carries over."""

    number: np.ndarray
    module: np.ndarray
    start: np.ndarray
    edge: np.ndarray
    inside: np.ndarray  # nanoseconds in calls that they made
    mark: int = 0
    paused: int = 0
    next_number: int = 0
    last_time: int = 0
    edges: int = 0  # beginnings and ends so far


_NONE = np.empty(0, dtype=np.int64)
_NOTHING_OPEN = _Open(_NONE, _NONE, _NONE, _NONE, _NONE)


def call_rows(log: Log) -> Iterator[Rows]:
    """The log's calls as columns of numbers, some thousands of rows at a time, in the order in which they began.

    `parent` is -1 at the top, as is `caller`, the number of its module. `module`, `inputs`, `outputs`, `mark` are the
    log's numbers, `peers` and `error` too, -1 for none and -2 for a call that never ended. Times are nanoseconds; -1
    without a clock. `begin_edge` and `end_edge` count the beginnings and ends of the thread's calls: what else was
    noted at each of them has that place. `paused` is how long the recorder had held the thread up by then.
    """
    threads = sorted({thread for thread, _ in log.batches})
    if len(threads) == 1:
        yield from _thread_rows(log, threads[0])
    elif threads:
        yield _in_order_of_start([list(_thread_rows(log, thread)) for thread in threads], log.timed)


def _thread_rows(log: Log, thread: int) -> Iterator[Rows]:
    """Twice over the thread's batches: calls that end in a later batch than they began in are known after the first."""
    late = [part for _, part, _ in _steps(log, thread)]
    ends = {name: np.concatenate([part[name] for part in late]) for name in ("call", *_LATE)}
    order = np.argsort(ends["call"], kind="stable")
    ends = {name: values[order] for name, values in ends.items()}
    for rows, _, closed in _steps(log, thread):
        missing = np.flatnonzero(~closed)
        found = np.searchsorted(ends["call"], rows["call"][missing])
        for name in _LATE:
            rows[name][missing] = ends[name][found]
        end, inside = rows.pop("end"), rows.pop("inside")
        rows["host_ns"] = end - rows["host_start_ns"]
        rows["host_self_ns"] = rows["host_ns"] - inside
        if not log.timed:
            for name in ("host_start_ns", "host_ns", "host_self_ns"):
                rows[name][:] = -1
        yield rows


_LATE = ("end", "end_edge", "inside", "outputs", "error")


def _steps(log: Log, thread: int) -> Iterator[tuple[Rows, Rows, np.ndarray]]:
    """For each batch: the calls that begin in it, those of earlier batches that end in it, which of the first ended."""
    state = _NOTHING_OPEN
    for of_thread, batch in log.batches:
        if of_thread != thread:
            continue
        what, tensors, time = (batch.column(name).to_numpy().astype(np.int64) for name in EVENTS.names)
        rows, late, closed, state = _step(state, what, tensors, time, log.origin_ns)
        rows["thread"] = np.full(len(rows["call"]), thread)
        yield rows, late, closed
    never = dict.fromkeys(("module", "thread", *_ROW), _NONE)
    stopped = np.full(len(state.number), state.last_time)
    yield (
        never,
        {
            "call": state.number,
            "end": stopped,
            "end_edge": np.full(len(stopped), state.edges),
            "inside": state.inside,
            "outputs": np.full(len(stopped), NO_TENSORS),
            "error": np.full(len(stopped), -2),
        },
        np.empty(0, dtype=bool),
    )


_BEGUN = ("call", "parent", "caller", "depth", "inputs", "mark", "peers", "collective", "begin_edge", "paused")
_ROW = (*_BEGUN, "host_start_ns", *_LATE)


def _step(
    state: _Open, what: np.ndarray, tensors: np.ndarray, time: np.ndarray, origin_ns: int
) -> tuple[Rows, Rows, np.ndarray, _Open]:
    pauses, marks = what == PAUSE, what == MARK
    paused = state.paused + np.cumsum(np.where(pauses, time, 0))
    latest = np.maximum.accumulate(np.where(marks, np.arange(len(what)), -1))
    mark = np.where(latest >= 0, tensors[latest], state.mark)
    last_mark = int(mark[-1]) if len(mark) else state.mark
    noted = what == COLLECTIVE
    calls = ~(pauses | marks | noted)
    begun_before = np.cumsum(calls)[noted] - 1
    peers, collective = np.full((2, int(calls.sum())), -1)
    peers[begun_before], collective[begun_before] = tensors[noted], time[noted]
    time = (time - paused - origin_ns)[calls]

    # The calls that are still open begin again, as it were, before all others.
    carried = len(state.number)
    module = np.concatenate([state.module, what[calls]])
    tensor = np.concatenate([np.full(carried, NO_TENSORS), tensors[calls]])
    times = np.concatenate([state.start, time])
    mark = np.concatenate([np.zeros(carried, dtype=np.int64), mark[calls]])
    edge = np.concatenate([state.edge, state.edges + np.arange(len(time))])
    pause = np.concatenate([np.zeros(carried, dtype=np.int64), paused[calls]])
    peers, collective = (np.concatenate([np.full(carried, -1), values]) for values in (peers, collective))
    pairs = _pairs(module)
    if pairs is None:
        module, tensor, times, mark, edge, pause, peers, collective = _with_missing_ends(
            module, tensor, times, mark, edge, pause, peers, collective
        )
        pairs = _pairs(module)
        assert pairs is not None
    begin_at, end_at, closed, depth = pairs

    parent = _parents(depth)
    start, end = times[begin_at], np.where(closed, times[end_at], 0)
    inside = np.zeros(len(begin_at), dtype=np.int64)
    nested = closed & (parent >= 0)
    np.add.at(inside, parent[nested], (end - start)[nested])
    inside[:carried] += state.inside
    result = np.where(closed, tensor[end_at], NO_TENSORS)
    raised = closed & (result < 0)
    number = np.concatenate([state.number, state.next_number + np.arange(len(begin_at) - carried)])
    columns = {
        "call": number,
        "parent": np.where(parent >= 0, number[parent], -1),
        "caller": np.where(parent >= 0, module[begin_at][parent], -1),
        "depth": depth,
        "module": module[begin_at],
        "inputs": tensor[begin_at],
        "mark": mark[begin_at],
        "peers": peers[begin_at],
        "collective": collective[begin_at],
        "begin_edge": edge[begin_at],
        "paused": pause[begin_at],
        "host_start_ns": start,
        "end": end,
        "end_edge": np.where(closed, edge[end_at], 0),
        "inside": inside,
        "outputs": np.where(raised, NO_TENSORS, result),
        "error": np.where(raised, -1 - result, -1),
    }
    begun = np.arange(len(begin_at)) >= carried
    late = {name: columns[name][closed & ~begun] for name in ("call", *_LATE)}
    is_open = ~closed
    following_state = _Open(
        number=number[is_open],
        module=columns["module"][is_open],
        start=start[is_open],
        edge=edge[begin_at][is_open],
        inside=inside[is_open],
        mark=last_mark,
        paused=int(paused[-1]) if len(paused) else state.paused,
        next_number=state.next_number + int(begun.sum()),
        last_time=int(time[-1]) if len(time) else state.last_time,
        edges=state.edges + len(time),
    )
    return {name: values[begun] for name, values in columns.items()}, late, closed[begun], following_state


def _pairs(module: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Where each call begins and ends, whether it does end, and how deep it is; None if an end is missing."""
    begins = module >= 0
    level = np.cumsum(np.where(begins, 1, -1))
    level[~begins] += 1  # the end of a call stands on the level of its beginning
    depth = level - 1
    # Sorted by level, keeping time's order within it, each beginning is followed by its own end.
    order = np.argsort(depth, kind="stable")
    sorted_begins = begins[order]
    begin_at = order[sorted_begins]
    end_at = np.full(len(begin_at), -1)
    following = np.flatnonzero(sorted_begins) + 1
    closed = following < len(order)
    closed[closed] = ~sorted_begins[following[closed]]
    end_at[closed] = order[following[closed]]
    in_time = np.argsort(begin_at)
    begin_at, end_at, closed = begin_at[in_time], end_at[in_time], closed[in_time]
    if closed.sum() != (~begins).sum() or (module[begin_at[closed]] != -1 - module[end_at[closed]]).any():
        return None
    return begin_at, end_at, closed, depth[begin_at]


def _with_missing_ends(*columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """Ctrl-C between two steps of the Python tap can lose an event. A call that lost its end ends with its caller."""
    rows: list[tuple[int, ...]] = []
    stack: list[int] = []
    for row in zip(*(column.tolist() for column in columns), strict=True):
        what = row[0]
        if what >= 0:
            stack.append(what)
        elif -1 - what not in stack:
            continue
        else:
            while (innermost := stack.pop()) != -1 - what:
                rows.append((-1 - innermost, NO_TENSORS, *row[2:]))
        rows.append(row)
    return tuple(np.array(rows, dtype=np.int64).reshape(-1, len(columns)).T)


def _parents(depth: np.ndarray) -> np.ndarray:
    """The row of the last call before it that is one level up; -1 at the top."""
    parent = np.full(len(depth), -1)
    rows = np.arange(len(depth))
    for level in range(1, int(depth.max(initial=0)) + 1):
        above, here = rows[depth == level - 1], rows[depth == level]
        parent[here] = above[np.searchsorted(above, here) - 1]
    return parent


def _in_order_of_start(threads: list[list[Rows]], timed: bool) -> Rows:
    """The calls of several threads as those of one run."""
    before = 0
    for parts in threads:
        calls = sum(len(rows["call"]) for rows in parts)
        for rows in parts:
            rows["call"] += before
            rows["parent"][rows["parent"] >= 0] += before
        before += calls
    parts = [rows for thread in threads for rows in thread]
    whole = {name: np.concatenate([rows[name] for rows in parts]) for name in parts[0]}
    if timed:
        order = np.lexsort((whole["call"], whole["host_start_ns"]))
        whole = {name: values[order] for name, values in whole.items()}
        place = np.empty(before, dtype=np.int64)
        place[order] = np.arange(before)
        nested = whole["parent"] >= 0
        whole["parent"][nested] = place[whole["parent"][nested]]
        whole["call"] = np.arange(before)
    return whole


def header(modules: tuple[ModuleInfo, ...], facts: Mapping[str, Any], origin_ns: int, timed: bool) -> pa.Schema:
    """The schema that a log's stream begins with."""
    said = {"modules": modules, "facts": dict(facts), "origin_ns": origin_ns, "timed": timed}
    return EVENTS.with_metadata({"talkerviz.log": json.dumps(said)})
