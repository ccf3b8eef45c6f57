"""The frame that a trace's calls are kept in, and how a raw log becomes one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from talkerviz.trace.log import BESIDES, UNFINISHED, Log, Rows, call_rows
from talkerviz.trace.schema import CALLS

_CATEGORICAL = ("path", "class", "phase", "peers")
COLUMNS = [name for name in CALLS.names if not name.endswith("_id")]
NULLABLE = [field.name for field in CALLS if field.type == pa.int64() and field.nullable]
"""Columns of whole numbers where some may be missing."""


def calls_frame(columns: Mapping[str, Any] | pd.DataFrame) -> pd.DataFrame:
    """Columns by name -> the frame a `Trace` holds, with the dtypes that survive a round trip.

    Columns of what was not measured may be left out, `run` and `rank` where there is but one, and `peers` where there
    are none.
    """
    length = len(columns["call"])
    no_peers = pd.Categorical.from_codes(np.full(length, -1), pd.Index([], dtype=object))
    columns = {**dict.fromkeys(("run", "rank"), np.zeros(length, dtype=np.int32)), "peers": no_peers, **columns}
    frame = pd.DataFrame({n: columns[n] if n in columns else pd.array([pd.NA] * length, "Int64") for n in COLUMNS})
    types = dict.fromkeys(NULLABLE, "Int64")
    for name in _CATEGORICAL:
        frame[name] = _sorted_categories(frame[name])
    typed: pd.DataFrame = frame.astype(
        {**types, **dict.fromkeys(("depth", "thread", "run", "rank"), "int32"), "call": "int64", "error": "string"}
    )
    return typed


def _sorted_categories(column: pd.Series) -> pd.Series:
    """Only the names in use, in order, whatever the frame came from: equal traces have equal frames."""
    column = column.astype("category").cat.remove_unused_categories()
    return column.cat.reorder_categories(sorted(column.cat.categories))


def log_frame(log: Log) -> pd.DataFrame:
    """All calls of a log."""
    parts = list(call_rows(log))
    return _frame(log, {name: np.concatenate([rows[name] for rows in parts]) for name in parts[0]} if parts else {})


def log_edges(log: Log) -> pd.DataFrame:
    """Of each call in `log_frame`: its `thread`, which of the thread's edges are its `begin` and `end`, and for how
    many nanoseconds the recorder had `paused` the thread by then."""
    parts = [(rows["thread"], rows["begin_edge"], rows["end_edge"], rows["paused"]) for rows in call_rows(log)]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] or [np.empty(0, dtype=np.int64)] * 4
    edges: pd.DataFrame = pd.DataFrame(dict(zip(("thread", "begin", "end", "paused"), columns, strict=True)))
    return edges


def log_frames(log: Log, rows_each: int = 1 << 16) -> Iterator[pd.DataFrame]:
    """All calls of a log, about so many at a time."""
    waiting: list[Rows] = []
    for rows in call_rows(log):
        waiting.append(rows)
        if sum(len(part["call"]) for part in waiting) >= rows_each:
            yield _frame(log, {name: np.concatenate([part[name] for part in waiting]) for name in rows})
            waiting = []
    if waiting:
        yield _frame(log, {name: np.concatenate([part[name] for part in waiting]) for name in waiting[0]})


def _frame(log: Log, rows: Rows) -> pd.DataFrame:
    rows = rows or dict.fromkeys(
        (*("call", "depth", "thread", "parent", "module", "caller", "mark", "peers", "collective"), *_RESULTS, *_TIMES),
        np.empty(0, dtype=np.int64),
    )
    names = log.names
    mark, peers = rows["mark"], rows["peers"]
    paths, classes = _paths(log, rows["module"], rows["caller"])
    return calls_frame(
        {
            **{name: rows[name] for name in ("call", "depth", "thread")},
            "parent": _present(rows["parent"], rows["parent"] >= 0),
            "path": paths,
            "class": classes,
            "phase": _named(mark, [mark.phase for mark in names.marks]),
            "frame": _marked(mark, [mark.frame for mark in names.marks]),
            "step": _marked(mark, [mark.step for mark in names.marks]),
            "run": np.array([mark.run for mark in names.marks] or [0], dtype=np.int32)[mark],
            "rank": np.full(len(mark), log.facts.get("process", {}).get("rank", 0), dtype=np.int32),
            "peers": pd.Categorical.from_codes(peers, pd.Index(names.peers, dtype=object)),
            "collective": _present(rows["collective"], peers >= 0),
            "inputs": _objects(names.tensors)[rows["inputs"]],
            "outputs": _objects(names.tensors)[rows["outputs"]],
            **{name: _present(rows[name], np.full(len(mark), log.timed)) for name in _TIMES},
            # -1 and -2, the two numbers that are no names, are the list's last places.
            "error": _objects([*names.errors, UNFINISHED, None])[rows["error"]],
        }
    )


_RESULTS = ("inputs", "outputs", "error")
_TIMES = ("host_start_ns", "host_ns", "host_self_ns")


def _paths(log: Log, module: np.ndarray, caller: np.ndarray) -> tuple[pd.Categorical, pd.Categorical]:
    """Paths and classes. What is no module's has the path of the module that it was in, and its own name behind it."""
    paths, count = [module.path for module in log.modules], len(log.modules)
    classes = [*(module.class_name for module in log.modules), *BESIDES]
    beside = module >= count
    kinds, place = np.unique(np.stack([caller[beside], module[beside] - count]), axis=1, return_inverse=True)
    numbers = module.copy()
    numbers[beside] = count + place.ravel()
    paths += [f"{paths[c if 0 <= c < count else 0]}.{BESIDES[kind]}" for c, kind in kinds.T.tolist()]
    return _named(numbers, paths), _named(module, classes)


def _objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        array[place] = value
    return array


def _named(numbers: np.ndarray, names: list[str]) -> pd.Categorical:
    # Different modules may be of one class, different marks of one phase.
    unique = list(dict.fromkeys(names))
    place = {name: code for code, name in enumerate(unique)}
    codes = np.array([place[name] for name in names], dtype=np.int32)
    of_calls = codes[numbers] if len(numbers) else np.empty(0, dtype=np.int32)
    return pd.Categorical.from_codes(of_calls, pd.Index(unique, dtype=object))


def _marked(marks: np.ndarray, values: list[int | None]) -> pd.api.extensions.ExtensionArray:
    found = np.array([-1 if value is None else value for value in values], dtype=np.int64)
    of_calls = found[marks] if len(marks) else marks
    return _present(of_calls, of_calls >= 0)


def _present(values: np.ndarray, there: np.ndarray) -> pd.api.extensions.ExtensionArray:
    return pd.arrays.IntegerArray(values.astype(np.int64), ~there)
