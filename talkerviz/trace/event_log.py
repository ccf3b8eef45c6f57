"""The raw log of a run, and how it becomes rows.

While a run goes on each thread appends events of four whole numbers: what happened, to which tensors, when, and one
more. Whole batches of them are written as blocks (trace/event_blocks.py), in memory or in a file that outlives the
process. Everything else (nesting, parents, self time, phases) is worked out here, after the run, on arrays, a batch at a time.

An event is one of:
    module number, number of the inputs' list, time, own: a call begins;
    -1 - module number, number of the outputs' list, time, own: it returns;
    -1 - module number, -1 - number of the exception's name, time, own: it raises;
    MARK, number of a phase, time, place: what follows belongs to this phase, and to the frame and step of `place`;
    NAMED, number of a phase, time, 0: it has this phase instead, that its code has named; -1 for none any more;
    RUN, number of a run, time, 0: what follows belongs to this run;
    REQUEST, number of a request, time, 0: what follows serves this request; -1 for none that is known;
    COLLECTIVE, number of its peers, 0, its number among theirs: the call that has just begun is this one;
    GARBAGE, generation, time, nanoseconds: a garbage collection is over that took so long;
    PAUSE, 0, 0, nanoseconds: the recorder itself held the run up for so long.

`own` is what the recorder itself took, just before a call began or just after it was over. That and pauses are on no
time line: what is recorded looks as if nobody had recorded it.
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
"""Of an event in memory, in whole numbers of 64 bits: `what` and `tensors` share one."""
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "gather", "scatter")
MESSAGES = ("send", "recv")
BESIDES = (*COLLECTIVES, *MESSAGES, "barrier", "wait", "recorder")
"""What is logged as calls are and is no module's, by what is its class then; the numbers go on from 1 << 29.

`wait` is for a collective that was begun before. The recorder is one of them where what it holds up, others wait for.
"""
FIRST_BESIDE = 1 << 29
NO_TENSORS = 0  # the number of the empty list
UNFINISHED = "unfinished"  # the error of a call that was going on when the process was killed

_EVENT = np.dtype([("what", "<i4"), ("tensors", "<i4"), ("time", "<i8"), ("value", "<i8")])
_STEP_BITS = 24

Rows = dict[str, np.ndarray]


class Mark(NamedTuple):
    """From here on calls belong to this phase, frame, step, run and request, until the next mark."""

    phase: str
    frame: int | None = None
    step: int | None = None
    run: int = 0
    request: int | None = None


@dataclass
class Names:
    """What the numbers of a log stand for; every list begins at number 0.

    Attributes:
        parts: names of places in containers, which descriptions of tensors refer to.
        kinds: dtypes and devices, which they refer to as well.
        phases: phases.
        errors: names of exceptions' classes.
        peers: the ranks that collectives are among.
        joined: modules that joined the model while it ran; their numbers go on from those of the header.
    """

    parts: list[str] = field(default_factory=list)
    kinds: list[TensorKind] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    peers: list[str] = field(default_factory=list)
    joined: list[ModuleInfo] = field(default_factory=list)


NAMES = ("parts", "kinds", "phases", "errors", "peers", "joined")
"""The lists of `Names`."""


@dataclass(frozen=True)
class Log:
    """A log that has been read; its events are read as they are asked for.

    Attributes:
        source: the file, or its content.
        modules: the modules that calls are numbered by.
        facts: what was known of the run when it began.
        origin_ns: the time that counts as 0.
        timed: whether events hold times.
        names: what the numbers stand for.
        tensors: the lists of tensors.
        threads: the numbers of the threads, ascending.
        size: how many bytes of the source there were.
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

    def batches(self, thread: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """The fields of a thread's events, as columns, a batch at a time."""
        of_thread = (batch for number, batch in self._events() if number == thread)
        for batch in of_thread if len(self.threads) == 1 else self._by_thread[thread]:
            what, tensors, time, value = batch
            yield what.astype(np.int64), tensors.astype(np.int64), np.cumsum(time), value

    def _events(self) -> Iterator[tuple[int, _Columns]]:
        for block in _blocks_of(self.source, self.size):
            if block.events:
                yield block.said["thread"], _columns(block.events)

    @cached_property
    def _by_thread(self) -> dict[int, list[_Columns]]:
        # Calls of several threads are put in order in memory anyway; the file is not read once for each of them.
        found: dict[int, list[_Columns]] = {thread: [] for thread in self.threads}
        for thread, batch in self._events():
            found[thread].append(batch)
        return found


_Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def event_columns(events: bytes) -> bytes:
    """Make the columns that are written of events as they are in memory.

    Column by column, and with the differences of times, they compress to a sixth of their size.
    """
    fields = np.frombuffer(events, dtype=_EVENT)
    time = np.diff(fields["time"], prepend=0)
    return b"".join(fields[name].tobytes() for name in ("what", "tensors")) + time.tobytes() + fields["value"].tobytes()


def _columns(content: bytes) -> _Columns:
    """Read what `event_columns` made: what, tensors, differences of times, values."""
    count = len(content) // _EVENT.itemsize
    fields, at = [], 0
    for name in _EVENT.names or ():
        kind = _EVENT[name]
        fields.append(np.frombuffer(content, kind, count, at))
        at += count * kind.itemsize
    what, tensors, time, value = fields
    return what, tensors, time, value


@dataclass(frozen=True)
class _Block:
    said: dict[str, Any]
    rows: bytes
    events: bytes


def _blocks_of(source: Path | bytes, size: int | None = None) -> Iterator[_Block]:
    """Blocks after the header's; of a file that was cut short those that are whole."""
    blocks = read_blocks(source, size)
    next(blocks, None)
    for content in blocks:
        if len(content) != 3:
            raise DamagedError("a block has other parts than it should")
        said = parse_json(content[0], "names")
        if not isinstance(said, dict):
            raise DamagedError("names are no JSON object")
        yield _Block(said, content[1], content[2])


def read_log(source: Path | bytes) -> Log:
    """Read a log; one that was cut short gives the whole batches that are there.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedError: it is damaged elsewhere than at its end.
        ValueError: no log at all.
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
        raise DamagedError("its header lacks what a run begins with")
    names, threads = Names(), set()
    tensors = TensorLists(names.parts, names.kinds)
    known_modules = modules_from_json(opening["modules"])
    for block in _blocks_of(source, size):
        said = block.said
        if missing := [name for name in (*NAMES, "first", "thread") if name not in said]:
            raise DamagedError(f"a block has no {missing[0]}")
        if not isinstance(said["first"], list) or len(said["first"]) != len(NAMES):
            raise DamagedError(f"a block has {said['first']!r} for the numbers of its names")
        for name, begin in zip(NAMES, said["first"], strict=True):
            known, new = getattr(names, name), said[name]
            if not isinstance(begin, int) or not 0 <= begin <= len(known) or not isinstance(new, list):
                raise DamagedError(f"some of its {name} are missing")
            if name == "kinds":
                if not all(isinstance(kind, list) and [*map(type, kind)] == [str, str] for kind in new):
                    raise DamagedError("one of its kinds of tensors is no dtype and device")
                new = [(dtype, device) for dtype, device in new]
            elif name == "joined":
                new = modules_from_json(new)
            elif not all(isinstance(one, str) for one in new):
                raise DamagedError(f"one of its {name} is no text")
            known[begin:] = new
        tensors.add(block.rows)
        thread = said["thread"]
        if not isinstance(thread, int) or not 0 <= thread < 1 << 31:
            raise DamagedError(f"it has events of the thread {thread!r}")
        if block.events:
            _check_events(_columns(block.events), names, len(known_modules))
            threads.add(thread)
    origin_ns, facts = opening["origin_ns"], opening["facts"]
    if not isinstance(origin_ns, int) or abs(origin_ns) >= 1 << 62 or not isinstance(facts, dict):
        raise DamagedError("its header is of other types than it should")
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
    """Check that the numbers in events are of names that are there.

    Raises:
        DamagedError: one is not.
    """
    what, tensors, time, value = columns
    calls = what < MARK
    number = np.where(what >= 0, what, -1 - what)[calls]
    known = (number < modules + len(names.joined)) | ((number >= FIRST_BESIDE) & (number < FIRST_BESIDE + len(BESIDES)))
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
            raise DamagedError(f"an event has a {kind} that is not there")


def _outside(values: np.ndarray, least: int, end: int) -> bool:
    return bool(((values < least) | (values >= end)).any())


@dataclass(frozen=True)
class _Open:
    """Where a thread stands between two batches: its open calls, outermost first, and what carries over."""

    number: np.ndarray
    module: np.ndarray
    start: np.ndarray
    edge: np.ndarray
    inside: np.ndarray  # nanoseconds in calls that they made, and in garbage collections
    phase: int = 0
    place: int = 0
    named: int = -1
    run: int = 0
    request: int = -1
    paused: int = 0
    next_number: int = 0
    last_time: int = 0
    edges: int = 0  # beginnings and ends so far


_NONE = np.empty(0, dtype=np.int64)
_NOTHING_OPEN = _Open(_NONE, _NONE, _NONE, _NONE, _NONE)


def call_rows(log: Log, collections: list[Rows] | None = None) -> Iterator[Rows]:
    """The log's calls as columns of numbers, some thousands of rows at a time, in the order in which they began.

    `parent` is -1 at the top, as is `caller`, the number of its module. `module`, `inputs`, `outputs`, `phase` are the
    log's numbers, `peers` and `error` too, -1 for none and -2 for a call that never ended. `frame`, `step` and
    `request` are -1 for none. Times are nanoseconds; -1 without a clock. `begin_edge` and `end_edge` count the
    beginnings and ends of the thread's calls: what else was noted at each of them has that place. `paused` is how long
    the recorder had held the thread up by then.

    Args:
        log: the log.
        collections: where garbage collections are put, as rows of the columns of `COLLECTIONS`.
    """
    found: list[Rows] = [] if collections is None else collections
    if len(log.threads) == 1:
        yield from _thread_rows(log, log.threads[0], found)
    elif log.threads:
        seen: list[list[Rows]] = [[] for _ in log.threads]
        parts = [list(_thread_rows(log, thread, of)) for thread, of in zip(log.threads, seen, strict=True)]
        yield _in_order_of_start(parts, seen, log.timed)
        found += [rows for of in seen for rows in of]


def _thread_rows(log: Log, thread: int, collections: list[Rows]) -> Iterator[Rows]:
    """Twice over the thread's batches: calls that end in a later batch than they began in are known after the first."""
    late = [part for _, part, _ in _steps(log, thread, collections)]
    ends = {name: np.concatenate([part[name] for part in late]) for name in ("call", *_LATE)}
    order = np.argsort(ends["call"], kind="stable")
    ends = {name: values[order] for name, values in ends.items()}
    for rows, _, closed in _steps(log, thread, []):
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


def _steps(log: Log, thread: int, collections: list[Rows]) -> Iterator[tuple[Rows, Rows, np.ndarray]]:
    """For each batch: the calls that begin in it, those of earlier batches that end in it, which of the first ended."""
    state = _NOTHING_OPEN
    # Ranks wait for each other, and a device goes on, also while the recorder is at work: what it takes stays on a line
    # that they have in common.
    counts_own = "process" not in log.facts and log.facts.get("clock") != "cuda"
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
    """Of each event the value of the last one up to it that is `here`."""
    at = np.maximum.accumulate(np.where(here, np.arange(len(here)), -1))
    found: np.ndarray = np.where(at >= 0, values[at], before)
    return found


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
    held_up = np.cumsum(own + np.where(what == PAUSE, value, 0)) + state.paused
    # What the recorder takes comes before the time of a beginning, and after that of an end.
    paused = held_up - np.where(what < 0, own, 0)
    phase, place = _latest(marks, tensors, state.phase), _latest(marks, value, state.place)
    named = _latest(what == NAMED, tensors, state.named)
    run = _latest(what == RUN, tensors, state.run)
    request = _latest(what == REQUEST, tensors, state.request)
    begun_before = np.cumsum(calls)[noted] - 1
    peers, collective = np.full((2, int(calls.sum())), -1)
    peers[begun_before], collective[begun_before] = tensors[noted], value[noted]
    line = time - paused - origin_ns
    after = np.cumsum(calls)[collected]  # so many of the calls' events were before each collection
    mark = {"phase": np.where(named >= 0, named, phase), "place": place, "run": run, "request": request}
    time = line[calls]

    # The calls that are still open begin again, as it were, before all others.
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
    # A garbage collection is in the innermost call that was open.
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
        paused=int(held_up[-1]),
        next_number=state.next_number + int(begun.sum()),
        last_time=int(time[-1]) if len(time) else state.last_time,
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
    """The innermost call that is open at each position among the events of calls; -1 for none."""
    if not len(positions) or not len(begin_at):
        return np.full(len(positions), -1)
    begun = np.searchsorted(begin_at, positions)
    ended = np.searchsorted(np.sort(end_at[end_at >= 0]), positions)
    return _last_at_depth(depth, begun - 1, begun - ended - 1)


def _last_at_depth(depth: np.ndarray, row: np.ndarray, level: np.ndarray) -> np.ndarray:
    """The last row up to each given one that has the given depth; -1 where the depth is negative."""
    count = len(depth)
    order = np.argsort(depth, kind="stable")
    keys = depth[order].astype(np.int64) * count + order
    place = np.searchsorted(keys, level.astype(np.int64) * count + row, side="right") - 1
    found: np.ndarray = np.where(level >= 0, order[np.maximum(place, 0)], -1)
    return found


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
    open_calls: Counter[int] = Counter()
    for row in zip(*(column.tolist() for column in columns), strict=True):
        what = row[0]
        if what >= 0:
            stack.append(what)
            open_calls[what] += 1
        elif not open_calls[-1 - what]:
            continue
        else:
            while (innermost := stack.pop()) != -1 - what:
                open_calls[innermost] -= 1
                rows.append((-1 - innermost, NO_TENSORS, *row[2:]))
            open_calls[innermost] -= 1
        rows.append(row)
    return tuple(np.array(rows, dtype=np.int64).reshape(-1, len(columns)).T)


def _parents(depth: np.ndarray) -> np.ndarray:
    """The row of the last call before it that is one level up; -1 at the top."""
    return _last_at_depth(depth, np.arange(len(depth)), depth - 1) if len(depth) else np.full(0, -1)


def _in_order_of_start(threads: list[list[Rows]], collections: list[list[Rows]], timed: bool) -> Rows:
    """The calls of several threads as those of one run; garbage collections are told the calls' new numbers."""
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
        place = np.empty(before, dtype=np.int64)
        place[order] = np.arange(before)
        nested = whole["parent"] >= 0
        whole["parent"][nested] = place[whole["parent"][nested]]
        whole["call"] = np.arange(before)
        for rows in (rows for garbage in collections for rows in garbage):
            inside = rows["call"] >= 0
            rows["call"][inside] = place[rows["call"][inside]]
    return whole


def header(modules: tuple[ModuleInfo, ...], facts: Mapping[str, Any], origin_ns: int, timed: bool) -> bytes:
    """The content of a log's first block."""
    said = {"modules": modules, "facts": dict(facts), "origin_ns": origin_ns, "timed": timed}
    return json.dumps(said).encode()
