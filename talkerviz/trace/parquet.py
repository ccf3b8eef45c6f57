"""The trace's file: one Parquet file, a row a call, modules and run facts in its metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from talkerviz.disk import writing
from talkerviz.trace.flow import Flow
from talkerviz.trace.frame import NULLABLE, calls_frame
from talkerviz.trace.schema import CALLS, ModuleInfo, TensorInfo, Tensors, module_infos

FORMAT = "1"


OTHER_FORMATS = {
    **{f".{fmt}": fmt for fmt in ("csv", "json", "html", "svg", "png", "pdf", "dot")},
    **{".md": "markdown", ".tex": "latex", ".mmd": "mermaid"},
}
"""How the name of a file ends -> the format that it is in, of those that are made of traces."""


def check_name(path: Path) -> None:
    """Raise ValueError where a trace would get the name of something else that is made of it."""
    if fmt := OTHER_FORMATS.get(path.suffix.lower()):
        raise ValueError(
            f'{path}: a trace is a Parquet file, such as run.parquet; trace.render("{fmt}") or `talkerviz render` '
            f"makes {fmt} of it"
        )


def write_trace(
    target: Path | BinaryIO,
    frames: Iterable[pd.DataFrame],
    modules: tuple[ModuleInfo, ...],
    facts: Mapping[str, Any],
    flow: Flow | None = None,
) -> None:
    """Write calls, a frame after the other; a file is finished atomically: readers never see half of it."""
    schema = CALLS.with_metadata(
        {
            "talkerviz": FORMAT,
            "talkerviz.modules": json.dumps(modules),
            "talkerviz.facts": json.dumps(dict(facts)),
            **({} if flow is None else {"talkerviz.flow": flow.to_text()}),
        }
    )
    numbers = _Numbers()
    with _finished_at_once(target) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for calls in frames:
            writer.write_table(_to_arrow(calls, numbers))


def read_trace(path: Path) -> tuple[pd.DataFrame, tuple[ModuleInfo, ...], dict[str, Any], Flow | None]:
    """Calls, modules, facts and flow of a trace's file.

    Raises:
        ValueError: what is wrong with the file, without its name.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError("a trace that is cut short or damaged; record it again") from error
    metadata = file.schema_arrow.metadata or {}
    if metadata.get(b"talkerviz") != FORMAT.encode():
        raise ValueError("a Parquet file, but not a talkerviz trace; record one with `talkerviz trace`")
    try:
        modules = module_infos(json.loads(metadata[b"talkerviz.modules"]))
        text = metadata.get(b"talkerviz.flow")
        flow = None if text is None else Flow.from_text(text)
        return _to_pandas(file), modules, json.loads(metadata[b"talkerviz.facts"]), flow
    except (KeyError, ValueError, TypeError, OSError, pa.ArrowException) as error:
        raise ValueError(f"a damaged talkerviz trace ({error}); record it again") from error


@contextmanager
def _finished_at_once(target: Path | BinaryIO) -> Iterator[Path | BinaryIO]:
    if not isinstance(target, Path):
        yield target
        return
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with writing(target):
            yield unfinished
            unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


class _Numbers:
    """Equal lists of tensors have equal numbers, in the whole file."""

    def __init__(self) -> None:
        self._by_list: dict[Tensors, int] = {}
        self._by_identity: dict[int, tuple[int, Tensors]] = {}  # a trace shares the few lists it has

    def of(self, column: pd.Series) -> np.ndarray:
        known = self._by_identity
        return np.fromiter(
            (known[id(tensors)][0] if id(tensors) in known else self._new(tensors) for tensors in column),
            dtype=np.int32,
            count=len(column),
        )

    def _new(self, tensors: Tensors) -> int:
        number = self._by_list.setdefault(tensors, len(self._by_list))
        self._by_identity[id(tensors)] = (number, tensors)
        return number


def _to_arrow(calls: pd.DataFrame, numbers: _Numbers) -> pa.Table:
    columns: dict[str, pa.Array] = {}
    for name in ("inputs", "outputs"):
        ids = numbers.of(calls[name])
        _, first, places = np.unique(ids, return_index=True, return_inverse=True)
        lists = pa.array([[t._asdict() for t in calls[name].iloc[row]] for row in first], CALLS.field(name).type)
        columns[name] = lists.take(pa.array(places)) if len(first) else lists
        columns[f"{name}_id"] = pa.array(ids, pa.int32())
    for field in CALLS:
        if field.name not in columns:
            columns[field.name] = pa.array(calls[field.name], from_pandas=True).cast(field.type)
    return pa.table([columns[name] for name in CALLS.names], schema=CALLS)


def _to_pandas(file: pq.ParquetFile) -> pd.DataFrame:
    plain = file.read([name for name in CALLS.names if name not in ("inputs", "outputs")])
    columns: dict[str, Any] = {name: _lists(file, name, plain) for name in ("inputs", "outputs")}
    for field in CALLS:
        if field.name in columns or field.name.endswith("_id"):
            continue
        column = plain.column(field.name)
        if field.name in NULLABLE:
            columns[field.name] = column.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
        elif field.name == "error":
            columns[field.name] = column.to_pandas(types_mapper={pa.string(): pd.StringDtype()}.get)
        else:
            columns[field.name] = column.to_pandas()
    return calls_frame(columns)


def _lists(file: pq.ParquetFile, name: str, plain: pa.Table) -> np.ndarray:
    """Every row's list of tensors. Each different one is read once, where it first stands."""
    ids = plain.column(f"{name}_id").to_numpy()
    _, first, places = np.unique(ids, return_index=True, return_inverse=True)
    lists = np.empty(len(first), dtype=object)
    begin = 0
    for group in range(file.num_row_groups):
        end = begin + file.metadata.row_group(group).num_rows
        here = np.flatnonzero((first >= begin) & (first < end))
        if len(here):
            column = file.read_row_group(group, columns=[name]).column(name)
            for place, row in zip(here, column.take(pa.array(first[here] - begin)).to_pylist(), strict=True):
                lists[place] = tuple(TensorInfo(t["name"], tuple(t["shape"]), t["dtype"], t["device"]) for t in row)
        begin = end
    return lists[places]
