"""The trace's file: one Parquet file, a row a call, modules and run facts in its metadata."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from talkerviz.disk import atomic_write
from talkerviz.trace.flow import Flow
from talkerviz.trace.frame import NULLABLE, calls_frame, collections_frame, lists_array, log_tables
from talkerviz.trace.log import Log, Rows, pack_rows, unpack_rows
from talkerviz.trace.schema import CALLS, ModuleInfo, Tensors, module_infos, tensor_infos

FORMAT = "2"
_ROWS_EACH = 1 << 16


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
    calls: pd.DataFrame,
    modules: tuple[ModuleInfo, ...],
    facts: Mapping[str, Any],
    flow: Flow | None = None,
    collections: pd.DataFrame | None = None,
) -> None:
    """Write a trace; a file is finished atomically: readers never see half of it."""
    lists: dict[str, np.ndarray] = {}
    numbers = _Numbers()
    for name in ("inputs", "outputs"):
        lists[name] = numbers.of(calls[name])
    every = numbers.lists()
    with _writer(target, modules, facts, flow) as write:
        for begin in range(0, len(calls), _ROWS_EACH):
            rows = slice(begin, begin + _ROWS_EACH)
            write.table(_to_arrow(calls.iloc[rows], {name: ids[rows] for name, ids in lists.items()}, every))
        write.lists(dict(enumerate(every)))
        write.end(collections)


def write_log(target: Path, log: Log, modules: tuple[ModuleInfo, ...], facts: Mapping[str, Any]) -> None:
    """Write a log as a trace, some thousands of calls at a time; finished atomically, as `write_trace` does it."""
    garbage: list[Rows] = []
    with _writer(target, modules, facts, None) as write:
        for table, lists in log_tables(log, garbage):
            write.table(table)
            write.lists(lists)
        write.end(collections_frame(garbage))


class _Writer:
    def __init__(
        self, file: Path | BinaryIO, modules: tuple[ModuleInfo, ...], facts: Mapping[str, Any], flow: Flow | None
    ) -> None:
        # In the schema, it goes with the calls when somebody writes them anew with other columns.
        said = {
            "talkerviz": FORMAT,
            "talkerviz.modules": json.dumps(modules),
            "talkerviz.facts": json.dumps(dict(facts)),
            **({} if flow is None else {"talkerviz.flow": flow.to_text()}),
        }
        self._file = pq.ParquetWriter(file, CALLS.with_metadata(said), compression="zstd")
        self._lists: dict[int, str] = {}

    def table(self, table: pa.Table) -> None:
        self._file.write_table(table)

    def lists(self, lists: Mapping[int, Tensors]) -> None:
        # As text: of a long run they are many, and objects would be many more.
        self._lists.update((number, json.dumps(one)) for number, one in lists.items() if number not in self._lists)

    def end(self, collections: pd.DataFrame | None) -> None:
        # Every row has its list of tensors, for whoever reads the file; here each different one is once more, so that
        # a trace is read without looking at rows.
        lists = ",".join(f"[{number},{self._lists[number]}]" for number in sorted(self._lists))
        said = {"talkerviz.tensors": _packed(f"[{lists}]")}
        if collections is not None and len(collections):
            said["talkerviz.collections"] = json.dumps({name: collections[name].tolist() for name in collections})
        self._file.add_key_value_metadata(said)
        self._file.close()


@contextmanager
def _writer(
    target: Path | BinaryIO, modules: tuple[ModuleInfo, ...], facts: Mapping[str, Any], flow: Flow | None
) -> Iterator[_Writer]:
    with atomic_write(target) if isinstance(target, Path) else nullcontext(target) as file:
        write = _Writer(file, modules, facts, flow)
        try:
            yield write
        finally:
            write._file.close()


def _packed(text: str) -> str:
    return base64.b64encode(pack_rows(text.encode())).decode()


def _unpacked(text: bytes) -> Any:
    return json.loads(unpack_rows(base64.b64decode(text, validate=True)))


def read_trace(
    path: Path,
) -> tuple[pd.DataFrame, tuple[ModuleInfo, ...], dict[str, Any], Flow | None, pd.DataFrame]:
    """Calls, modules, facts, flow and garbage collections of a trace's file.

    Raises:
        ValueError: what is wrong with the file, without its name.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError("a trace that is cut short or damaged; record it again") from error
    metadata = {**(file.schema_arrow.metadata or {}), **(file.metadata.metadata or {})}
    if metadata.get(b"talkerviz") != FORMAT.encode():
        raise ValueError("a Parquet file, but not a talkerviz trace; record one with `talkerviz trace`")
    try:
        modules = module_infos(json.loads(metadata[b"talkerviz.modules"]))
        text = metadata.get(b"talkerviz.flow")
        flow = None if text is None else Flow.from_text(text)
        garbage = metadata.get(b"talkerviz.collections")
        collections = collections_frame([] if garbage is None else [json.loads(garbage)])
        tensors = metadata.get(b"talkerviz.tensors")
        calls = _to_pandas(file, _lists_in_rows(file) if tensors is None else _unpacked(tensors))
        return calls, modules, json.loads(metadata[b"talkerviz.facts"]), flow, collections
    except (KeyError, ValueError, TypeError, OSError, pa.ArrowException) as error:
        raise ValueError(f"a damaged talkerviz trace ({error}); record it again") from error


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

    def lists(self) -> list[Tensors]:
        """The lists, by number."""
        return list(self._by_list)


def _to_arrow(calls: pd.DataFrame, ids: Mapping[str, np.ndarray], lists: Sequence[Tensors]) -> pa.Table:
    columns: dict[str, pa.Array] = {}
    for name in ("inputs", "outputs"):
        different, places = np.unique(ids[name], return_inverse=True)
        columns[name] = lists_array([lists[number] for number in different]).take(pa.array(places))
        columns[f"{name}_id"] = pa.array(ids[name], pa.int32())
    for field in CALLS:
        if field.name not in columns:
            columns[field.name] = pa.array(calls[field.name], from_pandas=True).cast(field.type)
    return pa.table([columns[name] for name in CALLS.names], schema=CALLS)


def _lists_in_rows(file: pq.ParquetFile) -> list[tuple[int, Any]]:
    """The lists of tensors of a file that somebody has written anew: from the rows where each first stands."""
    found: dict[int, Any] = {}
    for name in ("inputs", "outputs"):
        table = file.read([name, f"{name}_id"])
        ids, first = np.unique(table.column(f"{name}_id").to_numpy(), return_index=True)
        lists = table.column(name).take(pa.array(first)).to_pylist()
        found |= {number: [list(t.values()) for t in one] for number, one in zip(ids.tolist(), lists, strict=True)}
    return sorted(found.items())


def _to_pandas(file: pq.ParquetFile, lists: Sequence[tuple[int, Any]]) -> pd.DataFrame:
    plain = file.read([name for name in CALLS.names if name not in ("inputs", "outputs")])
    numbers = np.array([number for number, _ in lists], dtype=np.int64)
    objects = np.empty(len(lists), dtype=object)
    for place, (_, one) in enumerate(lists):
        objects[place] = tensor_infos(one)
    columns: dict[str, Any] = {}
    for field in CALLS:
        if field.name in ("inputs", "outputs"):
            ids = plain.column(f"{field.name}_id").to_numpy()
            places = np.searchsorted(numbers, ids)
            if len(ids) and (places.max() >= len(numbers) or (numbers[places] != ids).any()):
                raise ValueError("descriptions of tensors are missing")
            columns[field.name] = objects[places]
            continue
        if field.name.endswith("_id"):
            continue
        column = plain.column(field.name)
        if field.name in NULLABLE:
            columns[field.name] = column.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
        elif field.name == "error":
            columns[field.name] = column.to_pandas(types_mapper={pa.string(): pd.StringDtype()}.get)
        else:
            columns[field.name] = column.to_pandas()
    return calls_frame(columns)
