"""Raw event log of a run, and its conversion to rows of calls.

During a run each thread appends events of four integers: kind, tensors, time, value. Batches of events are written as
blocks (trace/event_blocks.py), in memory or in a file that outlives the process. Nesting, parents, self times and
phases are computed here, after the run, on arrays, a batch at a time.

An event is one of:
    module number, number of the input list, time, overhead: call entry;
    -1 - module number, number of the output list, time, overhead: call exit;
    -1 - module number, -1 - number of the exception's name, time, overhead: call exit by an exception;
    MARK, number of a phase, time, position: the following calls are in this phase, and in the frame and step packed
        into `position`;
    NAMED, number of a phase, time, 0: the user's code has named the phase of the following calls; -1 ends it;
    RUN, number of a run, time, 0: the following calls belong to this run;
    REQUEST, number of a request, time, 0: the following calls serve this request; -1 for an unknown one;
    COLLECTIVE, number of the group of ranks, 0, number in the group: the call just entered is this collective;
    GARBAGE, generation, time, nanoseconds: end of a garbage collection, and its duration;
    PAUSE, 0, 0, nanoseconds: the recorder paused the run for this time.

`overhead` is the recorder's own time, before a call entry or after a call exit. Overhead and pauses are cut out of the
time line, so that times are those of an unrecorded run.
"""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from talkerviz.trace.event_blocks import read_blocks
from talkerviz.trace.schema import ModuleInfo
from talkerviz.trace.tensor_rows import TensorKind, TensorLists
from talkerviz.trace.validation import MAX_DEPTH, DamagedError, modules_from_json, parse_json

MARK, PAUSE, COLLECTIVE, GARBAGE, RUN, NAMED, REQUEST = range(1 << 30, (1 << 30) + 7)
WIDTH = 3
"""Size of an event in memory, in 64-bit words: `what` and `tensors` share one."""
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "gather", "scatter")
MESSAGES = ("send", "recv")
SPECIAL_CALLS = (*COLLECTIVES, *MESSAGES, "barrier", "wait", "recorder")
"""Class names of calls that are no module's; they are logged with numbers from `FIRST_SPECIAL_CALL` on.

`wait` waits for an asynchronous collective. `recorder` is the recorder's own work where other ranks wait for it.
"""
FIRST_SPECIAL_CALL = 1 << 29
NO_TENSORS = 0  # number of the empty tensor list
DEVICE_CLOCKS = ("cuda", "cuda-all", "device", "device-all")
"""Clocks with device times. A device goes on while the recorder works, as other ranks do."""
UNFINISHED = "unfinished"  # error of a call that was open when the process was killed

_EVENT = np.dtype([("what", "<i4"), ("tensors", "<i4"), ("time", "<i8"), ("value", "<i8")])
_STEP_BITS = 24  # of a MARK's position: step + 1 in the low bits, frame + 1 above

Rows = dict[str, np.ndarray]


class Mark(NamedTuple):
    """Phase, frame, step, run and request of the calls up to the next mark."""

    phase: str
    frame: int | None = None
    step: int | None = None
    run: int = 0
    request: int | None = None


@dataclass
class Names:
    """Name tables of a log: the index in a list is the number used in events.

    Attributes:
        parts: names of entries in containers, used by tensor rows.
        kinds: dtypes and devices, used by tensor rows.
        phases: phases.
        errors: class names of exceptions.
        peers: groups of ranks of collectives.
        joined: modules that joined the model during the run; their numbers follow those of the header.
    """

    parts: list[str] = field(default_factory=list)
    kinds: list[TensorKind] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    peers: list[str] = field(default_factory=list)
    joined: list[ModuleInfo] = field(default_factory=list)


NAMES = ("parts", "kinds", "phases", "errors", "peers", "joined")
"""Names of the lists in `Names`."""


class FinalPhases(NamedTuple):
    """Phases that are known only at the end of a run, by their numbers in events.

    Attributes:
        numbers: number of the phase in `Names.phases`.
        has_frames: whether calls of the phase belong to frames.
    """

    numbers: tuple[int, ...]
    has_frames: tuple[bool, ...]


@dataclass(frozen=True)
class Log:
    """A log whose name tables have been read; events are read on demand.

    Attributes:
        source: the file, or its content.
        modules: modules, by number.
        facts: facts known when the run began.
        origin_ns: clock time of the recording's start, which counts as 0.
        timed: whether events have times.
        names: name tables.
        tensors: tensor lists.
        threads: thread numbers, ascending.
        size: size of the source when it was read, in bytes.
        final_phases: other numbers of phases than those in events; None for the same.
    """

    source: Path | bytes
    modules: tuple[ModuleInfo, ...]
    facts: dict[str, Any]
    origin_ns: int
    timed: bool
    names: Names
    tensors: TensorLists
    threads: tuple[int, ...]
    size: int
    final_phases: FinalPhases | None = None

    def batches(self, thread: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Yield a thread's events a batch at a time, as columns: kind, tensors, time, value."""
        of_thread = (batch for number, batch in self._events() if number == thread)
        for batch in of_thread if len(self.threads) == 1 else self._by_thread[thread]:
            what, tensors, time, value = batch
            yield what.astype(np.int64), tensors.astype(np.int64), np.cumsum(time), value

    def _events(self) -> Iterator[tuple[int, _Columns]]:
        for block in _blocks_of(self.source, self.size):
            if block.events:
                yield block.header["thread"], _columns(block.events)

    @cached_property
    def _by_thread(self) -> dict[int, list[_Columns]]:
        # Calls of several threads are sorted in memory anyway, so one pass over the file keeps all their batches.
        batches: dict[int, list[_Columns]] = {thread: [] for thread in self.threads}
        for thread, batch in self._events():
            batches[thread].append(batch)
        return batches


_Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def event_columns(events: bytes) -> bytes:
    """Transpose events in memory to columns, with differences of times, which compress to a sixth of the size."""
    fields = np.frombuffer(events, dtype=_EVENT)
    time = np.diff(fields["time"], prepend=0)
    return b"".join(fields[name].tobytes() for name in ("what", "tensors")) + time.tobytes() + fields["value"].tobytes()


def _columns(content: bytes) -> _Columns:
    """Decode `event_columns`: kind, tensors, differences of times, values."""
    count = len(content) // _EVENT.itemsize
    fields, offset = [], 0
    for name in _EVENT.names or ():
        kind = _EVENT[name]
        fields.append(np.frombuffer(content, kind, count, offset))
        offset += count * kind.itemsize
    what, tensors, time, value = fields
    return what, tensors, time, value


@dataclass(frozen=True)
class _Block:
    header: dict[str, Any]
    rows: bytes
    events: bytes


def _blocks_of(source: Path | bytes, size: int | None = None) -> Iterator[_Block]:
    """Yield the complete blocks after the log's header."""
    blocks = read_blocks(source, size)
    next(blocks, None)
    for content in blocks:
        if len(content) != 3:
            raise DamagedError("a block has a wrong number of parts")
        header = parse_json(content[0], "names")
        if not isinstance(header, dict):
            raise DamagedError("names are no JSON object")
        yield _Block(header, content[1], content[2])


def read_log(source: Path | bytes) -> Log:
    """Read a log; a log that was cut short has its complete batches.

    Raises:
        FileNotFoundError: the file does not exist.
        DamagedError: the log is damaged elsewhere than at its end.
        ValueError: the source is not a log.
    """
    if isinstance(source, Path) and not source.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source))
    try:
        return _read_log(source, source.stat().st_size if isinstance(source, Path) else len(source))
    except DamagedError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DamagedError(f"its content does not fit: {' '.join(repr(error).split())}") from error


def _read_log(source: Path | bytes, size: int) -> Log:
    first = next(read_blocks(source, size), None)
    if first is None:
        raise DamagedError("it is cut short before its first call")
    opening = parse_json(first[0], "its header")
    if not isinstance(opening, dict) or not {"modules", "facts", "origin_ns", "timed"} <= set(opening):
        raise DamagedError("its header lacks modules, facts, origin_ns or timed")
    names, threads = Names(), set()
    tensors = TensorLists(names.parts, names.kinds)
    known_modules = modules_from_json(opening["modules"])
    for block in _blocks_of(source, size):
        header = block.header
        if missing := [name for name in (*NAMES, "first", "thread") if name not in header]:
            raise DamagedError(f"a block has no {missing[0]}")
        if not isinstance(header["first"], list) or len(header["first"]) != len(NAMES):
            raise DamagedError(f"a block has {header['first']!r} for the numbers of its names")
        for name, begin in zip(NAMES, header["first"], strict=True):
            known, new = getattr(names, name), header[name]
            if not isinstance(begin, int) or not 0 <= begin <= len(known) or not isinstance(new, list):
                raise DamagedError(f"some of its {name} are missing")
            if name == "kinds":
                if not all(isinstance(kind, list) and [*map(type, kind)] == [str, str] for kind in new):
                    raise DamagedError("one of its kinds of tensors is no dtype and device")
                new = [(dtype, device) for dtype, device in new]
            elif name == "joined":
                new = modules_from_json(new)
            elif not all(isinstance(text, str) for text in new):
                raise DamagedError(f"one of its {name} is no text")
            known[begin:] = new
        tensors.add(block.rows)
        thread = header["thread"]
        if not isinstance(thread, int) or not 0 <= thread < 1 << 31:
            raise DamagedError(f"it has events of the thread {thread!r}")
        if block.events:
            _check_events(_columns(block.events), names, len(known_modules))
            threads.add(thread)
    origin_ns, facts = opening["origin_ns"], opening["facts"]
    if not isinstance(origin_ns, int) or abs(origin_ns) >= 1 << 62 or not isinstance(facts, dict):
        raise DamagedError("its header has values of wrong types")
    return Log(
        source,
        (*known_modules, *names.joined),
        facts,
        origin_ns,
        bool(opening["timed"]),
        names,
        tensors,
        tuple(sorted(threads)),
        size,
    )


def _check_events(columns: _Columns, names: Names, modules: int) -> None:
    """Check that the numbers in events are in the range of the name tables.

    Raises:
        DamagedError: a number is out of range.
    """
    what, tensors, time, value = columns
    calls = what < MARK
    number = np.where(what >= 0, what, -1 - what)[calls]
    known = (number < modules + len(names.joined)) | (
        (number >= FIRST_SPECIAL_CALL) & (number < FIRST_SPECIAL_CALL + len(SPECIAL_CALLS))
    )
    failed = calls & (what < 0) & (tensors < 0)
    wrong = [
        (~known.all(), "module"),
        ((-1 - tensors[failed] >= len(names.errors)).any(), "exception"),
        ((calls & (what >= 0) & (tensors < 0)).any(), "list of tensors"),
        (what.max(initial=0) > REQUEST, "kind of event"),
        (_outside(tensors[what == MARK], 0, len(names.phases)), "phase"),
        (_outside(tensors[what == NAMED], -1, len(names.phases)), "phase"),
        (_outside(tensors[what == COLLECTIVE], 0, len(names.peers)), "group of ranks"),
        (_outside(tensors[what == RUN], 0, 1 << 31), "run"),
        (_outside(tensors[what == REQUEST], -1, 1 << 31), "request"),
        (_outside(value[what == MARK], 0, 1 << 62), "frame"),
        # Sums of these stay within 64 bits.
        (np.abs(time.astype(np.float64)).sum() > 1 << 61, "time"),
        (np.abs(value[calls | (what == PAUSE) | (what == GARBAGE)].astype(np.float64)).sum() > 1 << 61, "duration"),
    ]
    for is_wrong, kind in wrong:
        if is_wrong:
            raise DamagedError(f"an event refers to a missing {kind}")


def _outside(values: np.ndarray, least: int, end: int) -> bool:
    return bool(((values < least) | (values >= end)).any())


@dataclass(frozen=True)
class _Open:
    """State of a thread between two batches: its open calls, outermost first, and its last marks."""

    number: np.ndarray
    module: np.ndarray
    start: np.ndarray
    edge: np.ndarray
    inside: np.ndarray  # nanoseconds in child calls and garbage collections
    phase: int = 0
    place: int = 0
    named: int = -1
    run: int = 0
    request: int = -1
    paused: int = 0
    next_number: int = 0
    last_time: int = 0
    edges: int = 0  # call entries and exits so far


_NONE = np.empty(0, dtype=np.int64)
_NOTHING_OPEN = _Open(_NONE, _NONE, _NONE, _NONE, _NONE)


def call_rows(log: Log, collections: list[Rows] | None = None) -> Iterator[Rows]:
    """Yield the calls of a log in the order in which they began, as columns of integers, thousands of rows at a time.

    `parent` and `caller`, the number of the parent's module, are -1 at the top. `module`, `inputs`, `outputs`, `phase`,
    `peers` and `error` are numbers of the log, -1 for none; `error` is -2 for a call that never ended. `frame`, `step`
    and `request` are -1 for none. Times are nanoseconds; -1 without a clock. `begin_edge` and `end_edge` are indices
    among the thread's call entries and exits, by which instruments' samples are found. `paused` is the time in
    nanoseconds for which the recorder had paused the thread by the call's entry.

    Args:
        log: the log.
        collections: list to which garbage collections are appended, as rows of the columns of `COLLECTIONS`.
    """
    collected: list[Rows] = [] if collections is None else collections
    if len(log.threads) == 1:
        yield from _thread_rows(log, log.threads[0], collected)
    elif log.threads:
        by_thread: list[list[Rows]] = [[] for _ in log.threads]
        pairs = zip(log.threads, by_thread, strict=True)
        parts = [list(_thread_rows(log, thread, garbage)) for thread, garbage in pairs]
        yield _in_order_of_start(parts, by_thread, log.timed)
        collected += [rows for garbage in by_thread for rows in garbage]


def _thread_rows(log: Log, thread: int, collections: list[Rows]) -> Iterator[Rows]:
    """Yield a thread's calls in two passes: the first finds the exits of calls that are open for several batches."""
    late = [part for _, part, _ in _steps(log, thread, collections)]
    ends = {name: np.concatenate([part[name] for part in late]) for name in ("call", *_LATE)}
    order = np.argsort(ends["call"], kind="stable")
    ends = {name: values[order] for name, values in ends.items()}
    for rows, _, closed in _steps(log, thread, []):
        missing = np.flatnonzero(~closed)
        at = np.searchsorted(ends["call"], rows["call"][missing])
        for name in _LATE:
            rows[name][missing] = ends[name][at]
        end, inside = rows.pop("end"), rows.pop("inside")
        rows["host_ns"] = end - rows["host_start_ns"]
        rows["host_self_ns"] = rows["host_ns"] - inside
        if log.final_phases is not None:
            frameless = ~np.array(log.final_phases.has_frames, dtype=bool)[rows["phase"]]
            rows["frame"][frameless] = rows["step"][frameless] = -1
            rows["phase"] = np.array(log.final_phases.numbers, dtype=np.int64)[rows["phase"]]
        if not log.timed:
            for name in ("host_start_ns", "host_ns", "host_self_ns"):
                rows[name][:] = -1
        yield rows


_LATE = ("end", "end_edge", "inside", "outputs", "error")


def _steps(log: Log, thread: int, collections: list[Rows]) -> Iterator[tuple[Rows, Rows, np.ndarray]]:
    """Yield for each batch the calls entered in it, calls of earlier batches that exit in it, and a mask of the first.

    The mask is true for the calls that also exit in the batch.
    """
    state = _NOTHING_OPEN
    # Other ranks and a device go on while the recorder works, so its overhead stays on a time line shared with them.
    counts_own = "process" not in log.facts and log.facts.get("clock") not in DEVICE_CLOCKS
    for what, tensors, time, value in log.batches(thread):
        rows, late, closed, garbage, state = _step(state, what, tensors, time, value, log.origin_ns, counts_own)
        rows["thread"] = np.full(len(rows["call"]), thread)
        if len(garbage["call"]):
            collections.append({**garbage, "thread": np.full(len(garbage["call"]), thread)})
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


_MARKS = ("phase", "frame", "step", "run", "request")
_BEGUN = ("call", "parent", "caller", "depth", "inputs", *_MARKS, "peers", "collective", "begin_edge", "paused")
_ROW = (*_BEGUN, "host_start_ns", *_LATE)


def _latest(here: np.ndarray, values: np.ndarray, before: int) -> np.ndarray:
    """Return for each event the value of the latest event in the mask `here`; `before` if there is none yet."""
    at = np.maximum.accumulate(np.where(here, np.arange(len(here)), -1))
    latest: np.ndarray = np.where(at >= 0, values[at], before)
    return latest


def _step(
    state: _Open,
    what: np.ndarray,
    tensors: np.ndarray,
    time: np.ndarray,
    value: np.ndarray,
    origin_ns: int,
    counts_own: bool,
) -> tuple[Rows, Rows, np.ndarray, Rows, _Open]:
    marks, noted, collected = what == MARK, what == COLLECTIVE, what == GARBAGE
    calls = what < MARK
    own = np.where(calls & counts_own, value, 0)
    paused_after = np.cumsum(own + np.where(what == PAUSE, value, 0)) + state.paused
    # Overhead is before the time of a call entry and after that of a call exit.
    paused = paused_after - np.where(what < 0, own, 0)
    phase, place = _latest(marks, tensors, state.phase), _latest(marks, value, state.place)
    named = _latest(what == NAMED, tensors, state.named)
    run = _latest(what == RUN, tensors, state.run)
    request = _latest(what == REQUEST, tensors, state.request)
    begun_before = np.cumsum(calls)[noted] - 1
    peers, collective = np.full((2, int(calls.sum())), -1)
    peers[begun_before], collective[begun_before] = tensors[noted], value[noted]
    line = time - paused - origin_ns
    after = np.cumsum(calls)[collected]  # number of entries and exits before each collection
    mark = {"phase": np.where(named >= 0, named, phase), "place": place, "run": run, "request": request}
    time = line[calls]

    # Calls still open from earlier batches are entered again before all others.
    carried = len(state.number)
    module = np.concatenate([state.module, what[calls]])
    tensor = np.concatenate([np.full(carried, NO_TENSORS), tensors[calls]])
    times = np.concatenate([state.start, time])
    edge = np.concatenate([state.edge, state.edges + np.arange(len(time))])
    zeros = np.zeros(carried, dtype=np.int64)
    pause, *of_mark = (np.concatenate([zeros, values[calls]]) for values in (paused, *mark.values()))
    peers, collective = (np.concatenate([np.full(carried, -1), values]) for values in (peers, collective))
    position = np.arange(len(module))
    pairs = _pairs(module)
    if pairs is None:
        module, tensor, times, edge, pause, peers, collective, position, *of_mark = _with_missing_ends(
            module, tensor, times, edge, pause, peers, collective, position, *of_mark
        )
        pairs = _pairs(module)
        assert pairs is not None
    begin_at, end_at, closed, depth = pairs
    if depth.max(initial=0) > MAX_DEPTH:
        raise DamagedError(f"it has calls {int(depth.max())} levels deep")

    parent = _parents(depth)
    start, end = times[begin_at], np.where(closed, times[end_at], 0)
    inside = np.zeros(len(begin_at), dtype=np.int64)
    nested = closed & (parent >= 0)
    np.add.at(inside, parent[nested], (end - start)[nested])
    inside[:carried] += state.inside
    # A garbage collection belongs to the innermost open call.
    around = _open_at(np.searchsorted(position, after + carried), begin_at, end_at, depth)
    np.add.at(inside, around[around >= 0], value[collected][around >= 0])
    result = np.where(closed, tensor[end_at], NO_TENSORS)
    raised = closed & (result < 0)
    number = np.concatenate([state.number, state.next_number + np.arange(len(begin_at) - carried)])
    phase_of, place_of, run_of, request_of = of_mark
    columns = {
        "call": number,
        "parent": np.where(parent >= 0, number[parent], -1),
        "caller": np.where(parent >= 0, module[begin_at][parent], -1),
        "depth": depth,
        "module": module[begin_at],
        "inputs": tensor[begin_at],
        "phase": phase_of[begin_at],
        "frame": (place_of[begin_at] >> _STEP_BITS) - 1,
        "step": (place_of[begin_at] & (1 << _STEP_BITS) - 1) - 1,
        "run": run_of[begin_at],
        "request": request_of[begin_at],
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
        phase=int(phase[-1]),
        place=int(place[-1]),
        named=int(named[-1]),
        run=int(run[-1]),
        request=int(request[-1]),
        paused=int(paused_after[-1]),
        next_number=state.next_number + int(begun.sum()),
        # A collection inside an open call is over later than the last entry or exit.
        last_time=int(line[calls | collected].max(initial=state.last_time)),
        edges=state.edges + len(time),
    )
    garbage = {
        "call": np.where(around >= 0, number[around] if len(number) else -1, -1),
        "generation": tensors[collected],
        "host_start_ns": line[collected] - value[collected],
        "host_ns": value[collected],
    }
    return {name: values[begun] for name, values in columns.items()}, late, closed[begun], garbage, following_state


def _open_at(positions: np.ndarray, begin_at: np.ndarray, end_at: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Return the innermost call that is open at each position among call entries and exits; -1 for none."""
    if not len(positions) or not len(begin_at):
        return np.full(len(positions), -1)
    begun = np.searchsorted(begin_at, positions)
    ended = np.searchsorted(np.sort(end_at[end_at >= 0]), positions)
    return _last_at_depth(depth, begun - 1, begun - ended - 1)


def _last_at_depth(depth: np.ndarray, row: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Return the last row up to each `row` whose depth is `level`; -1 for a negative level."""
    count = len(depth)
    order = np.argsort(depth, kind="stable")
    keys = depth[order].astype(np.int64) * count + order
    index = np.searchsorted(keys, level.astype(np.int64) * count + row, side="right") - 1
    last: np.ndarray = np.where(level >= 0, order[np.maximum(index, 0)], -1)
    return last


def _pairs(module: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Match call entries and exits.

    Returns:
        Positions of entries and exits, a mask of calls that exit, and their depths; None if an exit is missing.
    """
    begins = module >= 0
    level = np.cumsum(np.where(begins, 1, -1))
    level[~begins] += 1  # an exit is on the level of its entry
    depth = level - 1
    # In a stable sort by level each entry is followed by its own exit.
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
    """Insert missing exits: Ctrl-C between two steps of the Python tap can lose one. The call exits with its parent."""
    rows: list[tuple[int, ...]] = []
    stack: list[int] = []
    open_calls: Counter[int] = Counter()
    for row in zip(*(column.tolist() for column in columns), strict=True):
        event = row[0]
        if event >= 0:
            stack.append(event)
            open_calls[event] += 1
        elif not open_calls[-1 - event]:
            continue
        else:
            while (innermost := stack.pop()) != -1 - event:
                open_calls[innermost] -= 1
                rows.append((-1 - innermost, NO_TENSORS, *row[2:]))
            open_calls[innermost] -= 1
        rows.append(row)
    return tuple(np.array(rows, dtype=np.int64).reshape(-1, len(columns)).T)


def _parents(depth: np.ndarray) -> np.ndarray:
    """Return the row of each call's parent, the last call before it one level up; -1 at the top."""
    return _last_at_depth(depth, np.arange(len(depth)), depth - 1) if len(depth) else np.full(0, -1)


def _in_order_of_start(threads: list[list[Rows]], collections: list[list[Rows]], timed: bool) -> Rows:
    """Merge the calls of several threads by start time, and renumber the calls of garbage collections."""
    before = 0
    for parts, garbage in zip(threads, collections, strict=True):
        for rows in garbage:
            rows["call"][rows["call"] >= 0] += before
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
        new_number = np.empty(before, dtype=np.int64)
        new_number[order] = np.arange(before)
        nested = whole["parent"] >= 0
        whole["parent"][nested] = new_number[whole["parent"][nested]]
        whole["call"] = np.arange(before)
        for rows in (rows for garbage in collections for rows in garbage):
            inside = rows["call"] >= 0
            rows["call"][inside] = new_number[rows["call"][inside]]
    return whole


def header(modules: tuple[ModuleInfo, ...], facts: Mapping[str, Any], origin_ns: int, timed: bool) -> bytes:
    """Encode the content of a log's first block."""
    content = {"modules": modules, "facts": dict(facts), "origin_ns": origin_ns, "timed": timed}
    return json.dumps(content).encode()
