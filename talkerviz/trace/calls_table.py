"""The frame that a trace's calls are kept in, and how a raw log becomes one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from talkerviz.trace.event_log import BESIDES, FIRST_BESIDE, UNFINISHED, Log, Rows, call_rows
from talkerviz.trace.schema import CALLS, COLLECTIONS, Tensors

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


def log_frame(log: Log) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All calls of a log, and its garbage collections."""
    garbage: list[Rows] = []
    parts = list(call_rows(log, garbage))
    calls = _frame(log, {name: np.concatenate([rows[name] for rows in parts]) for name in parts[0]} if parts else {})
    return calls, collections_frame(garbage)


def log_edges(log: Log) -> pd.DataFrame:
    """Of each call in `log_frame`: its `thread`, which of the thread's edges are its `begin` and `end`, and for how
    many nanoseconds the recorder had `paused` the thread by then."""
    parts = [(rows["thread"], rows["begin_edge"], rows["end_edge"], rows["paused"]) for rows in call_rows(log)]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] or [np.empty(0, dtype=np.int64)] * 4
    edges: pd.DataFrame = pd.DataFrame(dict(zip(("thread", "begin", "end", "paused"), columns, strict=True)))
    return edges


def collections_frame(parts: Sequence[Mapping[str, Any]] = ()) -> pd.DataFrame:
    """Garbage collections as a `Trace` has them, in the order in which they began."""
    columns = {
        field.name: np.concatenate([np.empty(0, np.int64), *(part[field.name] for part in parts)]).astype(
            field.type.to_pandas_dtype()
        )
        for field in COLLECTIONS
    }
    order = np.argsort(columns["host_start_ns"], kind="stable")
    frame: pd.DataFrame = pd.DataFrame({name: values[order] for name, values in columns.items()})
    return frame


def log_tables(
    log: Log, collections: list[Rows], rows_each: int = 1 << 16
) -> Iterator[tuple[pa.Table, dict[int, Tensors]]]:
    """All calls of a log as tables of the columns of `CALLS`, each with its lists of tensors by number.

    Args:
        log: the log.
        collections: where garbage collections are put.
        rows_each: rows of a table.
    """
    waiting: list[Rows] = []
    for rows in call_rows(log, collections):
        waiting.append(rows)
        if sum(len(part["call"]) for part in waiting) >= rows_each:
            yield _table(log, {name: np.concatenate([part[name] for part in waiting]) for name in rows})
            waiting = []
    if waiting:
        yield _table(log, {name: np.concatenate([part[name] for part in waiting]) for name in waiting[0]})


def lists_array(lists: Sequence[Tensors]) -> pa.Array:
    """Lists of tensors as the column `inputs` holds them."""
    of_list = np.cumsum([0, *map(len, lists)], dtype=np.int32)
    tensors = [tensor for one in lists for tensor in one]
    field = CALLS.field("inputs").type.value_type
    columns = [pa.array([tensor[place] for tensor in tensors], inner.type) for place, inner in enumerate(field)]
    structs = pa.StructArray.from_arrays(columns, fields=list(field))
    return pa.ListArray.from_arrays(pa.array(of_list), structs).cast(CALLS.field("inputs").type)


def _columns(log: Log, rows: Rows) -> dict[str, Any]:
    names = log.names
    peers = rows["peers"]
    paths, classes = _paths(log, rows["module"], rows["caller"])
    return {
        **{name: rows[name] for name in ("call", "depth", "thread", "run")},
        "parent": _present(rows["parent"], rows["parent"] >= 0),
        "path": paths,
        "class": classes,
        "phase": pd.Categorical.from_codes(rows["phase"], pd.Index(names.phases, dtype=object)),
        **{name: _present(rows[name], rows[name] >= 0) for name in ("frame", "step", "request")},
        "rank": np.full(len(peers), log.facts.get("process", {}).get("rank", 0), dtype=np.int32),
        "peers": pd.Categorical.from_codes(peers, pd.Index(names.peers, dtype=object)),
        "collective": _present(rows["collective"], peers >= 0),
        **{name: _present(rows[name], np.full(len(peers), log.timed)) for name in _TIMES},
        # -1 and -2, the two numbers that are no names, are the list's last places.
        "error": _objects([*names.errors, UNFINISHED, None])[rows["error"]],
    }


def _table(log: Log, rows: Rows) -> tuple[pa.Table, dict[int, Tensors]]:
    columns = _columns(log, rows)
    lists: dict[int, Tensors] = {}
    for name in ("inputs", "outputs"):
        different, places = np.unique(rows[name], return_inverse=True)
        here = {number: log.tensors[number] for number in different.tolist()}
        columns[name] = lists_array(list(here.values())).take(pa.array(places))
        columns[f"{name}_id"] = rows[name]
        lists |= here
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
    """Paths and classes. What is no module's has the path of the module that it was in, and its own name behind it."""
    paths, count = [module.path for module in log.modules], len(log.modules)
    classes = [*(module.class_name for module in log.modules), *BESIDES]
    beside = module >= FIRST_BESIDE
    class_of = np.where(beside, module - FIRST_BESIDE + count, module)
    kinds, place = np.unique(np.stack([caller[beside], module[beside] - FIRST_BESIDE]), axis=1, return_inverse=True)
    numbers = module.copy()
    numbers[beside] = count + place.ravel()
    paths += [f"{paths[c if 0 <= c < count else 0]}.{BESIDES[kind]}" for c, kind in kinds.T.tolist()]
    return _named(numbers, paths), _named(class_of, classes)


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


def _present(values: np.ndarray, there: np.ndarray) -> pd.api.extensions.ExtensionArray:
    return pd.arrays.IntegerArray(values.astype(np.int64), ~there)
