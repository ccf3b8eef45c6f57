"""Validation of trace files; both readers call `check_trace`.

All checks of the calls table and the flow are vectorised, so that a million calls take some tens of milliseconds.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from talkerviz.trace.flow import Flow
from talkerviz.trace.schema import COLLECTIONS, ModuleInfo, Tensors, module_infos, tensor_infos

MAX_DEPTH = 4096
"""Deepest call that is read: tables take time by depth, and Python's own limit allows about 300 nested modules."""
MAX_NUMBER = 1 << 40
"""Largest call, frame, step, run, rank or collective number; keeps arithmetic on them within int64."""
_MAX_SIZE = 1 << 62  # of a tensor's copies, a parameter's elements and the like
_MAX_SUM = float(1 << 62)  # of a column; two such sums still fit an int64
_MAX_JSON_DEPTH = 64  # facts of users nest; Python's parser raises at about 1,000
# Bounds of a flow expanded to all frames, so that a small hostile file cannot fill memory.
_MAX_INFERRED_OPS, _INFERRED_OPS_PER_CALL = 1 << 22, 1 << 10
_MAX_VALUE_CHARS = 60  # of a value in a message of one line

_NON_NEGATIVE = (
    *("host_start_ns", "host_ns", "device_ns", "busy_ns"),
    *("flops", "uncounted_operators", "bytes_read", "bytes_written", "memory_peak_bytes"),
)
_ANY_SIGN = ("host_self_ns", "device_start_ns", "device_self_ns", "memory_delta_bytes")
_TOGETHER = (("host_start_ns", "host_ns", "host_self_ns"), ("device_start_ns", "device_ns"))
"""Groups of columns that are missing in the same rows."""
_NUMBERED = ("frame", "step", "request", "collective")


class DamagedError(ValueError):
    """A trace file with impossible content; the message says what, in one line, without the file's name."""


def check_trace(
    calls: pd.DataFrame,
    modules: Sequence[ModuleInfo],
    facts: Any,
    flow: Flow | None,
    collections: pd.DataFrame,
) -> None:
    """Check the invariants of a trace.

    Args:
        calls: calls table, with the columns and dtypes of `calls_frame`.
        modules: traced modules.
        facts: facts of the run, as parsed from JSON.
        flow: flow of tensors.
        collections: garbage collections.

    Raises:
        DamagedError: a value is impossible; the message names the first one.
    """
    _check_calls(calls)
    _check_modules(modules)
    check_facts(facts)
    _check_ranks(calls, modules, facts)
    _check_collections(collections, calls["call"].to_numpy())
    if flow is not None:
        _check_flow(flow, calls["call"].to_numpy())


def parse_json(text: bytes | str, name: str) -> Any:
    """Parse JSON of a file that may be hostile.

    Args:
        text: JSON text.
        name: subject of an error message, in the plural.

    Raises:
        DamagedError: the text is no JSON, not UTF-8, or nested too deeply.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise DamagedError(f"{name} are nested too deeply") from None
    except ValueError as error:
        raise DamagedError(f"{name} are no JSON: {error}") from error
    _check_nesting(value, name)
    return value


def modules_from_json(rows: Any) -> tuple[ModuleInfo, ...]:
    """Convert parsed JSON to modules.

    Raises:
        DamagedError: the JSON is no list of modules.
    """
    if not isinstance(rows, list):
        raise DamagedError(f"its modules are {_shown(rows)}, not a list")
    for index, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(ModuleInfo._fields) or not isinstance(row[-1], list):
            raise DamagedError(f"module {index} cannot be {_shown(row)}")
    return module_infos(rows)


def tensors_from_json(rows: Any) -> Tensors:
    """Convert parsed JSON to a tensor list.

    Raises:
        DamagedError: the JSON is no tensor list.
    """
    if not isinstance(rows, list):
        raise DamagedError(f"a list of tensors cannot be {_shown(rows)}")
    for row in rows:
        if not isinstance(row, list) or len(row) not in (4, 5) or not isinstance(row[1], list):
            raise DamagedError(f"a tensor cannot be {_shown(row)}")
    return tensor_infos(rows)


def numbered_tensors(rows: Any) -> dict[int, Tensors]:
    """Convert parsed JSON to tensor lists by number.

    Raises:
        DamagedError: the JSON is no list of numbered tensor lists in ascending order.
    """
    if not isinstance(rows, list):
        raise DamagedError(f"its descriptions of tensors are {_shown(rows)}, not a list")
    lists: dict[int, Tensors] = {}
    last = -1
    for row in rows:
        if not isinstance(row, list) or len(row) != 2 or not _is_int(row[0]) or not last < row[0] < MAX_NUMBER:
            raise DamagedError(f"a description of tensors cannot be {_shown(row)}")
        last, lists[row[0]] = row[0], tensors_from_json(row[1])
    check_tensors(lists.values())
    return lists


def checksum(parts: Mapping[str, str | bytes]) -> str:
    """Compute the CRC-32 of named texts, as eight hexadecimal digits."""
    crc = 0
    for name in sorted(parts):
        part = parts[name]
        crc = zlib.crc32(part.encode() if isinstance(part, str) else part, zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"


def decompress(packed: bytes, size: int, most: int, name: str) -> bytes:
    """Decompress zstd data within bounded memory.

    Args:
        packed: compressed data.
        size: size of the content in bytes, as the file claims it.
        most: largest size that is accepted.
        name: subject of an error message, in the plural.

    Raises:
        DamagedError: the data is damaged, of another size, or the size is above `most`.
    """
    if not 0 <= size <= most:
        raise DamagedError(f"{name} claim {size:,} bytes")
    if not size:
        return b""
    try:
        content: bytes = pa.decompress(packed, size, codec="zstd", asbytes=True)
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise DamagedError(f"{name} cannot be decompressed") from error
    return content


def _check_nesting(value: Any, name: str) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _MAX_JSON_DEPTH:
            raise DamagedError(f"{name} are nested too deeply")
        level = [
            inner
            for container in level
            if type(container) in _CONTAINERS
            for inner in (container.values() if type(container) is dict else container)
            if type(inner) in _CONTAINERS
        ]


_CONTAINERS = (dict, list)  # of parsed JSON


def _check_calls(calls: pd.DataFrame) -> None:
    number = calls["call"].to_numpy()
    if not len(number):
        return
    wrong = np.flatnonzero(np.diff(number) <= 0)
    if len(wrong):
        one, two = number[wrong[0]], number[wrong[0] + 1]
        raise DamagedError(f"call {two} comes after call {one}; calls are unique and ascending")
    _check_range("call", number, number, 0, MAX_NUMBER)

    depth, (parent, is_top) = calls["depth"].to_numpy(), _ints(calls["parent"])
    _check_range("depth", number, depth, 0, MAX_DEPTH)
    wrong = np.flatnonzero(~is_top & ((parent < 0) | (parent >= number)))
    if len(wrong):
        raise DamagedError(f"call {number[wrong[0]]} has the parent {parent[wrong[0]]}")
    # In a saved selection parents may be missing.
    row = parent if number[-1] == len(number) - 1 else np.searchsorted(number, parent)
    row = np.where(is_top, 0, row)
    has_row = ~is_top & (number[row] == parent)
    for where, wanted, name in (
        (is_top, 0, "depth"),
        (has_row, depth[row] + 1, "depth"),
        (has_row, calls["thread"].to_numpy()[row], "thread"),
        (has_row, calls["rank"].to_numpy()[row], "rank"),
    ):
        values = calls[name].to_numpy()
        wrong = np.flatnonzero(where & (values != wanted))
        if len(wrong):
            at = wrong[0]
            expected = f"that of its parent {parent[at]}" if has_row[at] else "a call without parent"
            raise DamagedError(f"call {number[at]} has the {name} {values[at]}, which does not fit {expected}")
    # A parent without a row was left out by a selection; it still has a smaller depth.
    wrong = np.flatnonzero(~is_top & ~has_row & (depth < 1))
    if len(wrong):
        raise DamagedError(f"call {number[wrong[0]]} has a parent and the depth 0")

    for name in ("thread", "run", "rank"):
        _check_range(name, number, calls[name].to_numpy(), 0, MAX_NUMBER)
    missing = {name: calls[name].isna().to_numpy() for name in (*_NUMBERED, *_NON_NEGATIVE, *_ANY_SIGN)}
    for start, *others in _TOGETHER:
        for name in others:
            wrong = np.flatnonzero(missing[name] != missing[start])
            if len(wrong):
                raise DamagedError(f"call {number[wrong[0]]} has only one of {start} and {name}")
    for name, holes in missing.items():
        if holes.all():
            continue
        values = calls[name].to_numpy(dtype=np.int64, na_value=0)
        if name not in _ANY_SIGN:
            _check_range(name, number, values, 0, MAX_NUMBER if name in _NUMBERED else None)
        largest = max(abs(int(values.min())), abs(int(values.max())))
        # Summed as floats, which do not wrap around; only if the sum could be too large.
        if largest * len(values) > _MAX_SUM and np.abs(values.astype(np.float64)).sum() > _MAX_SUM:
            raise DamagedError(f"the column {name} adds up to more than a 64-bit number holds")


def _check_range(name: str, number: np.ndarray, values: np.ndarray, least: int, most: int | None) -> None:
    if not len(values) or (values.min() >= least and (most is None or values.max() <= most)):
        return
    at = int(np.argmax((values < least) | (values > (values.max() if most is None else most))))
    raise DamagedError(f"call {number[at]} has the {name} {values[at]}")


def _ints(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return the values and the missing-value mask of a column of nullable integers."""
    missing = column.isna().to_numpy()
    return column.to_numpy(dtype=np.int64, na_value=-1), missing


def _check_modules(modules: Sequence[ModuleInfo]) -> None:
    for index, module in enumerate(modules):
        path, class_name, parameters, nbytes, aliases = module
        if not (
            isinstance(path, str)
            and isinstance(class_name, str)
            and _is_size(parameters)
            and _is_size(nbytes)
            and all(isinstance(alias, str) for alias in aliases)
        ):
            raise DamagedError(f"module {index} cannot be {_shown(list(module))}")
    if sum(module.parameter_bytes for module in modules) > _MAX_SUM:
        raise DamagedError("the modules' parameters take more bytes than a 64-bit number holds")


def check_tensors(lists: Iterable[Tensors]) -> None:
    """Check tensor lists.

    Raises:
        DamagedError: a name, shape, dtype, device or number of copies is impossible.
    """
    tensors = list(chain.from_iterable(lists))
    if not tensors:
        return
    # All at once: a long run has some thousands of lists.
    names, shapes, dtypes, devices, copies = zip(*tensors, strict=True)
    sizes = list(chain.from_iterable(shapes))
    if (
        set(map(type, chain(names, dtypes, devices))) == {str}
        and set(map(type, chain(sizes, copies))) == {int}
        and min(sizes, default=0) >= -1
        and max(sizes, default=0) < 1 << 63
        and 0 <= min(copies) <= max(copies) < _MAX_SIZE
    ):
        return
    for tensor in tensors:
        if not (
            all(isinstance(text, str) for text in (tensor.name, tensor.dtype, tensor.device))
            and all(_is_int(size) and -1 <= size < 1 << 63 for size in tensor.shape)
            and _is_size(tensor.copies)
        ):
            raise DamagedError(f"a tensor cannot be {_shown(list(tensor))}")


def _check_collections(collections: pd.DataFrame, number: np.ndarray) -> None:
    if not len(collections):
        return
    call = collections["call"].to_numpy()
    for name, least, most in (
        ("call", -1, MAX_NUMBER),
        ("thread", 0, MAX_NUMBER),
        ("generation", 0, 100),
        ("host_start_ns", -1 << 62, 1 << 62),
        ("host_ns", 0, 1 << 62),
    ):
        _check_range(f"garbage collection's {name}", call, collections[name].to_numpy(), least, most)
    if collections["host_ns"].to_numpy().astype(np.float64).sum() > _MAX_SUM:
        raise DamagedError("garbage collections add up to more nanoseconds than a 64-bit number holds")


def check_collections_json(columns: Any) -> dict[str, list[int]]:
    """Check that parsed garbage collections are lists of integers of one length, by the columns of `COLLECTIONS`.

    Raises:
        DamagedError: the columns, their lengths or their values are wrong.
    """
    if not isinstance(columns, dict) or set(columns) != set(COLLECTIONS.names):
        raise DamagedError("garbage collections have wrong columns")
    lists = [column for column in columns.values() if isinstance(column, list)]
    if len(lists) < len(columns) or len({len(column) for column in lists}) > 1:
        raise DamagedError("garbage collections have columns of unequal lengths")
    if not all(_is_int(value) and abs(value) < 1 << 63 for column in lists for value in column):
        raise DamagedError("garbage collections hold a value that is no integer")
    return columns


# Facts.


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return _is_int(value) and 0 <= value < _MAX_SIZE


def _is_ns(value: Any) -> bool:
    return _is_int(value) and abs(value) < 1 << 62


def _is_rate(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _or_null(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or kind(value)


def _list_of(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(kind, value))


def _dict_of(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(kind, value.values()))


def _with(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> Callable[[Any], bool]:
    """Return a check for dicts with these keys; further keys are allowed."""

    def fits(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and all(name in value and kind(value[name]) for name, kind in required.items())
            and all(name not in value or kind(value[name]) for name, kind in (optional or {}).items())
        )

    return fits


def _is_date(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9T:+\-. Z]{4,40}", value) is not None


_PROCESS_REQUIRED = {"rank": _is_size, "world_size": _is_size}
_PROCESS_OPTIONAL = {
    **dict.fromkeys(("host", "boot"), _is_text),
    "backend": _or_null(_is_text),
    "local_rank": _or_null(_is_size),
    "pid": _is_size,
    **dict.fromkeys(("origin_ns", "unix_ns", "offset_ns", "offset_error_ns"), _is_ns),
}
_PROCESS = _with(_PROCESS_REQUIRED, _PROCESS_OPTIONAL)
_MERGED_PROCESS = _with(
    {**_PROCESS_REQUIRED, "modules": _is_size, "differs": _dict_of(lambda value: True), "host": _is_text},
    _PROCESS_OPTIONAL,
)
_PEAKS = _with(dict.fromkeys(("flops", "bandwidth"), _is_rate), dict.fromkeys(("device", "source"), _is_text))
_RUN_END = _or_null(_with({"frame": _or_null(_is_size), "ns": _is_ns}))

# Facts that tables, charts and notes read. All other facts are the user's, of any type.
_FACTS: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("root", "model", "device", "dtype", "gpu", "clock", "via"), _is_text),
    "date": _is_date,
    **dict.fromkeys(("graphs_untimed", "device_untimed", "unmeasured", "weights_note"), _is_text),
    **dict.fromkeys(
        (
            *("repeat", "mean_of_runs", "own_cost_ns", "host_peak_bytes", "weights_bytes", "parameters"),
            *("graph_replays", "unwatched_calls", "joined_modules", "calls_of_other_threads"),
            *(
                "processes_begun",
                "codes_a_frame",
                "graph_replays_unread",
                "graph_replays_whole",
                "graph_stream_changes",
            ),
        ),
        _is_size,
    ),
    "frame_ns": _is_rate,
    "warmup_ns": _list_of(_is_size),
    "cut_short": _list_of(_is_size),
    "run_ends": _list_of(_RUN_END),
    "one_call": _dict_of(_is_text),
    "unknown_operators": _dict_of(_is_size),
    "unknown_operators_in": _dict_of(_list_of(_is_text)),
    "device_sampling": _with({"every": _is_size, "levels": _is_size, "frames": _list_of(_is_size)}),
    "several_devices": _with({"calls": _is_size, "modules": lambda value: _list_of(_is_text)(value) and bool(value)}),
    "strange_calls": _with({"calls": _is_size, "classes": _list_of(_is_text)}),
    "peaks": lambda value: value == {} or _PEAKS(value),
    "late": _with(
        {**dict.fromkeys(("frame", "latency_ns", "limit_ns", "module_ns", "usual_ns"), _is_ns), "module": _is_text}
    ),
    "process": _PROCESS,
    "processes": lambda value: _list_of(_MERGED_PROCESS)(value) and bool(value),
    "clocks": _with(
        {"error_ns": _list_of(_or_null(_is_size)), "by": _list_of(_is_text), "early_ns": _is_size},
        {"shift_ns": _list_of(_is_ns)},
    ),
}


def check_given_facts(facts: Mapping[str, Any]) -> None:
    """Check the facts that a user passes to a recording.

    Raises:
        ValueError: a fact has a reserved name and a value of another type.
    """
    for name, value in facts.items():
        if name in _FACTS and not _FACTS[name](value):
            raise ValueError(f"facts: {name!r} has a meaning here and cannot be {_shown(value)}: choose another name")


def check_facts(facts: Any) -> None:
    """Check the facts that tables, charts and notes read.

    Raises:
        DamagedError: a fact is of another type, or the facts are no JSON object.
    """
    if not isinstance(facts, dict):
        raise DamagedError(f"its facts are {_shown(facts)}, not a JSON object")
    for name, value in facts.items():
        if name in _FACTS and not _FACTS[name](value):
            raise DamagedError(f"the fact {_shown(name)} cannot be {_shown(value)}")
    if "processes" not in facts:
        if facts.get("host_peak_bytes") and "weights_bytes" not in facts:
            raise DamagedError("it has the fact 'host_peak_bytes' without 'weights_bytes'")
        return
    if "clocks" not in facts:
        raise DamagedError("it has the fact 'processes' without 'clocks'")
    common = {name: value for name, value in facts.items() if name not in ("processes", "clocks")}
    for process in facts["processes"]:
        if "processes" in process["differs"]:
            raise DamagedError("one of its ranks is merged itself")
        check_facts({**common, **process["differs"]})


def _check_ranks(calls: pd.DataFrame, modules: Sequence[ModuleInfo], facts: Mapping[str, Any]) -> None:
    if "processes" not in facts:
        return
    processes = facts["processes"]
    ranks = [process["rank"] for process in processes]
    if len(set(ranks)) < len(ranks):
        raise DamagedError("one of its ranks occurs twice")
    unknown = np.setdiff1d(calls["rank"].to_numpy(), ranks)
    if len(unknown):
        raise DamagedError(f"calls have the rank {unknown[0]}, and its facts have {', '.join(map(str, ranks))}")
    if sum(process["modules"] for process in processes) != len(modules):
        raise DamagedError("the module counts of its ranks do not add up")


# The flow of tensors.


def _check_flow(flow: Flow, number: np.ndarray) -> None:
    ops, edges, frames = flow.kept
    call, after = ops["call"].to_numpy(), ops["after"].to_numpy()
    count = len(ops)
    source, target = edges["source"].to_numpy(), edges["target"].to_numpy()
    least = -1 if frames is None else 0
    for ends in (source, target):
        if len(ends) and not (least <= ends.min() and ends.max() < count):
            raise DamagedError(f"an edge of its flow leads to operation {ends.max()} of {count}")
    for name in _NUMBERED[:2]:
        values, missing = _ints(ops[name])
        _check_range(f"operation's {name}", call, np.where(missing, 0, values), 0, MAX_NUMBER)
    if frames is None:
        _check_op_calls(call, after, number)
        return
    columns = {name: frames[name].to_numpy(np.int64) for name in ("at", "until", "begin", "end", "low", "high")}
    at, until, begin, end = (columns[name] for name in ("at", "until", "begin", "end"))
    length = end - begin
    wrong = (length < 0) | (until < at) | (at < 0) | (until > count) | (begin < 0) | (end > count)
    for name in ("low", "high"):
        wrong |= (columns[name] < 0) | (columns[name] + length > count)
    ratio = frames["ratio"].to_numpy()
    wrong |= ~np.isfinite(ratio) | (np.abs(ratio) > 1e9)
    if wrong.any() or (len(frames) and frames["tail"].iloc[0]):
        raise DamagedError(f"frame {int(np.argmax(wrong))} of its flow does not fit its {count} operations")
    if (until - at).sum() != count or (len(at) and (at[0] != 0 or (at[1:] != until[:-1]).any())):
        raise DamagedError("the frames of its flow do not hold all operations once")
    # An inferred frame refers to the start of a followed frame.
    own = (begin == at) & (until > at)
    if not np.isin(begin[begin != at], begin[own]).all():
        raise DamagedError("a frame of its flow refers to a missing frame")
    back = edges["back"].to_numpy()
    if len(back) and not 0 <= back.min() <= back.max() <= len(frames):
        raise DamagedError("an edge of its flow goes back further than the run")
    of = np.repeat(np.arange(len(frames)), until - at)
    if len(back) and (np.cumsum(~frames["tail"].to_numpy())[of[target]] - 1 < back).any():
        raise DamagedError("an edge of its flow goes back further than the run")
    if length.sum() > max(_MAX_INFERRED_OPS, _INFERRED_OPS_PER_CALL * len(number)):
        raise DamagedError(f"its flow claims {length.sum():,} operations in {len(number):,} calls")
    values, missing = _ints(frames["frame"])
    _check_range("frame's number", at, np.where(missing, 0, values), 0, MAX_NUMBER)
    moved = frames["calls"].to_numpy(np.int64)
    if len(moved) and np.abs(moved.astype(np.float64)).max() > MAX_NUMBER:
        raise DamagedError("a frame of its flow has missing calls")
    rows = np.repeat(begin - (np.cumsum(length) - length), length) + np.arange(int(length.sum()))
    more = np.repeat(moved, length)
    _check_op_calls(np.where(call[rows] >= 0, call[rows] + more, call[rows]), after[rows] + more, number)


def _check_op_calls(call: np.ndarray, after: np.ndarray, number: np.ndarray) -> None:
    for name, calls in (("ran in", call), ("ran after", after)):
        if not len(calls):
            continue
        most = int(number[-1]) if len(number) else -1
        wrong = np.flatnonzero((calls < -1) | (calls > most))
        if not len(wrong) and name == "ran in" and most >= len(number):
            inside = calls >= 0
            wrong = np.flatnonzero(inside & (number[np.searchsorted(number, np.where(inside, calls, 0))] != calls))
        if len(wrong):
            raise DamagedError(f"an operation of its flow {name} call {calls[wrong[0]]}, which is missing")


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)) and len(value) > _MAX_VALUE_CHARS:
        return f"a {type(value).__name__} of {len(value):,}"
    text = " ".join(repr(value).split())
    return text if len(text) <= _MAX_VALUE_CHARS else f"{text[: _MAX_VALUE_CHARS - 1]}…"
