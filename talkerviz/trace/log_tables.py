"""Calls table of a raw log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from talkerviz.trace.calls_table import calls_frame, collections_frame, lists_array
from talkerviz.trace.event_log import FIRST_SPECIAL_CALL, SPECIAL_CALLS, UNFINISHED, Log, Rows, call_rows
from talkerviz.trace.schema import CALLS, Tensors


def log_frame(log: Log) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the calls table of a log, and its garbage collections."""
    garbage: list[Rows] = []
    parts = list(call_rows(log, garbage))
    calls = _frame(log, {name: np.concatenate([rows[name] for rows in parts]) for name in parts[0]} if parts else {})
    return calls, collections_frame(garbage)


def log_edges(log: Log) -> pd.DataFrame:
    """Return the log positions of each call in `log_frame`.

    Returns:
        `thread`; `begin` and `end`, indices among the thread's call entries and exits; `paused`, nanoseconds for which
        the recorder had paused the thread by the call's entry.
    """
    parts = [(rows["thread"], rows["begin_edge"], rows["end_edge"], rows["paused"]) for rows in call_rows(log)]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] or [np.empty(0, dtype=np.int64)] * 4
    edges: pd.DataFrame = pd.DataFrame(dict(zip(("thread", "begin", "end", "paused"), columns, strict=True)))
    return edges


def log_tables(
    log: Log, collections: list[Rows], rows_each: int = 1 << 16
) -> Iterator[tuple[pa.Table, dict[int, Tensors]]]:
    """Yield the calls of a log as Arrow tables with the columns of `CALLS`, each with its tensor lists by number.

    Args:
        log: the log.
        collections: list to which garbage collections are appended.
        rows_each: least number of rows of a table, but the last; 65,536 keep memory at some tens of MB.
    """
    pending: list[Rows] = []
    for rows in call_rows(log, collections):
        pending.append(rows)
        if sum(len(part["call"]) for part in pending) >= rows_each:
            yield _table(log, {name: np.concatenate([part[name] for part in pending]) for name in rows})
            pending = []
    if pending:
        yield _table(log, {name: np.concatenate([part[name] for part in pending]) for name in pending[0]})


def _columns(log: Log, rows: Rows) -> dict[str, Any]:
    names = log.names
    peers = rows["peers"]
    paths, classes = _paths(log, rows["module"], rows["caller"])
    return {
        **{name: rows[name] for name in ("call", "depth", "thread", "run")},
        "parent": _masked(rows["parent"], rows["parent"] >= 0),
        "path": paths,
        "class": classes,
        "phase": pd.Categorical.from_codes(rows["phase"], pd.Index(names.phases, dtype=object)),
        **{name: _masked(rows[name], rows[name] >= 0) for name in ("frame", "step", "request")},
        "rank": np.full(len(peers), log.facts.get("process", {}).get("rank", 0), dtype=np.int32),
        "peers": pd.Categorical.from_codes(peers, pd.Index(names.peers, dtype=object)),
        "collective": _masked(rows["collective"], peers >= 0),
        **{name: _masked(rows[name], np.full(len(peers), log.timed)) for name in _TIMES},
        # -1 (no error) and -2 (unfinished) index from the end of the list.
        "error": _objects([*names.errors, UNFINISHED, None])[rows["error"]],
    }


def _table(log: Log, rows: Rows) -> tuple[pa.Table, dict[int, Tensors]]:
    columns = _columns(log, rows)
    lists: dict[int, Tensors] = {}
    for name in ("inputs", "outputs"):
        numbers, indices = np.unique(rows[name], return_inverse=True)
        by_number = {number: log.tensors[number] for number in numbers.tolist()}
        columns[name] = lists_array(list(by_number.values())).take(pa.array(indices))
        columns[f"{name}_id"] = rows[name]
        lists |= by_number
    log.tensors.forget()
    length = len(rows["call"])
    table = pa.table(
        [
            columns[field.name]
            if isinstance(columns.get(field.name), pa.Array)
            else pa.array(columns[field.name], from_pandas=True).cast(field.type)
            if field.name in columns
            else pa.nulls(length, field.type)
            for field in CALLS
        ],
        schema=CALLS,
    )
    return table, lists


def _frame(log: Log, rows: Rows) -> pd.DataFrame:
    rows = rows or dict.fromkeys(
        (
            *("call", "depth", "thread", "parent", "module", "caller", "peers", "collective"),
            *_MARKS,
            *_RESULTS,
            *_TIMES,
        ),
        np.empty(0, dtype=np.int64),
    )
    lists = {name: log.tensors.objects(rows[name]) for name in ("inputs", "outputs")}
    return calls_frame({**_columns(log, rows), **lists})


_MARKS = ("phase", "frame", "step", "run", "request")
_RESULTS = ("inputs", "outputs", "error")
_TIMES = ("host_start_ns", "host_ns", "host_self_ns")


def _paths(log: Log, module: np.ndarray, caller: np.ndarray) -> tuple[pd.Categorical, pd.Categorical]:
    """Return paths and classes; a special call has the path of the module around it, followed by its own name."""
    paths, count = [module.path for module in log.modules], len(log.modules)
    classes = [*(module.class_name for module in log.modules), *SPECIAL_CALLS]
    is_special = module >= FIRST_SPECIAL_CALL
    class_numbers = np.where(is_special, module - FIRST_SPECIAL_CALL + count, module)
    caller_and_kind = np.stack([caller[is_special], module[is_special] - FIRST_SPECIAL_CALL])
    pairs, pair = np.unique(caller_and_kind, axis=1, return_inverse=True)
    path_numbers = module.copy()
    path_numbers[is_special] = count + pair.ravel()
    paths += [f"{paths[c if 0 <= c < count else 0]}.{SPECIAL_CALLS[kind]}" for c, kind in pairs.T.tolist()]
    return _categorical(path_numbers, paths), _categorical(class_numbers, classes)


def _objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        array[index] = value
    return array


def _categorical(numbers: np.ndarray, names: list[str]) -> pd.Categorical:
    # Several modules may have one class, several marks one phase.
    unique = list(dict.fromkeys(names))
    code_of = {name: code for code, name in enumerate(unique)}
    codes = np.array([code_of[name] for name in names], dtype=np.int32)
    call_codes = codes[numbers] if len(numbers) else np.empty(0, dtype=np.int32)
    return pd.Categorical.from_codes(call_codes, pd.Index(unique, dtype=object))


def _masked(values: np.ndarray, is_present: np.ndarray) -> pd.api.extensions.ExtensionArray:
    return pd.arrays.IntegerArray(values.astype(np.int64), ~is_present)
