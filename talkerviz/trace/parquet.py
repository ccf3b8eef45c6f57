"""Parquet file of a trace: a row a call; modules, facts and flow in the metadata."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from talkerviz.atomic_file import atomic_write
from talkerviz.trace.calls_table import NULLABLE, calls_frame, collections_frame, lists_array
from talkerviz.trace.flow import Flow
from talkerviz.trace.schema import CALLS, NAME, ModuleInfo, Tensors
from talkerviz.trace.validation import (
    DamagedError,
    check_collections_json,
    check_tensors,
    check_trace,
    checksum,
    decompress,
    modules_from_json,
    numbered_tensors,
    parse_json,
)

if TYPE_CHECKING:
    from talkerviz.trace.event_log import Log, Rows

FORMAT = "2"
_ROWS_PER_GROUP = 1 << 16  # some tens of MB in memory while a row group is written

# Bounds of the memory that a hostile file may take; files written here stay far below.
_MAX_TEXT_BYTES = 1 << 30  # of a text in the metadata
_MAX_ENTRIES = 1 << 24  # of a list in the metadata
_MIN_ROWS, _ROWS_PER_BYTE = 1 << 20, 8
_MIN_TENSORS_BYTES, _TENSORS_BYTES_PER_CALL = 1 << 26, 1 << 12

_NAMED = ("path", "class", "phase", "peers", "error")
_CHECKSUM = "talkerviz.crc32"
_CHECKED = tuple(f"talkerviz.{name}" for name in ("modules", "facts", "flow", "tensors", "collections"))

OTHER_FORMATS = {
    **{f".{fmt}": fmt for fmt in ("csv", "json", "svg", "png", "pdf", "dot")},
    **{".md": "markdown", ".tex": "latex", ".mmd": "mermaid", ".html": "page"},
}
"""File suffix -> name of the format, for other files made from traces."""


def check_name(path: Path) -> None:
    """Raise ValueError for a trace file with the suffix of another format."""
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
    """Write a trace; a path is written atomically."""
    lists: dict[str, np.ndarray] = {}
    numbers = _Numbers()
    for name in ("inputs", "outputs"):
        lists[name] = numbers.of(calls[name])
    every = numbers.lists()
    with _writer(target, modules, facts, flow) as write:
        for begin in range(0, len(calls), _ROWS_PER_GROUP):
            rows = slice(begin, begin + _ROWS_PER_GROUP)
            write.table(_to_arrow(calls.iloc[rows], {name: ids[rows] for name, ids in lists.items()}, every))
        write.lists(dict(enumerate(every)))
        write.end(collections)


def write_log(target: Path, log: Log, modules: tuple[ModuleInfo, ...], facts: Mapping[str, Any]) -> None:
    """Write a log as a trace atomically, some thousands of calls at a time."""
    from talkerviz.trace.log_tables import log_tables  # a finished trace is read without it

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
        # Schema metadata is kept when another program rewrites the calls with other columns.
        metadata: dict[str, str | bytes] = {
            "talkerviz": FORMAT,
            "talkerviz.modules": json.dumps(modules),
            "talkerviz.facts": json.dumps(dict(facts)),
            **({} if flow is None else {"talkerviz.flow": flow.to_text()}),
        }
        self._metadata = dict(metadata)
        self._file = pq.ParquetWriter(file, CALLS.with_metadata(metadata), compression="zstd", write_page_checksum=True)
        self._lists: dict[int, str] = {}

    def table(self, table: pa.Table) -> None:
        self._file.write_table(table)

    def lists(self, lists: Mapping[int, Tensors]) -> None:
        # As text: a long run has many lists, whose objects would take several times the memory.
        new = {number: tensors for number, tensors in lists.items() if number not in self._lists}
        self._lists.update((number, json.dumps(tensors)) for number, tensors in new.items())

    def end(self, collections: pd.DataFrame | None) -> None:
        # Each row has its tensor lists, for other readers of the file; the metadata has each distinct list once more,
        # so that `read_trace` need not decode the rows'.
        lists = ",".join(f"[{number},{self._lists[number]}]" for number in sorted(self._lists))
        final: dict[str, str] = {"talkerviz.tensors": _packed(f"[{lists}]")}
        if collections is not None and len(collections):
            final["talkerviz.collections"] = json.dumps({name: collections[name].tolist() for name in collections})
        self._metadata |= final
        final[_CHECKSUM] = checksum({name: text for name, text in self._metadata.items() if name in _CHECKED})
        self._file.add_key_value_metadata(final)
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
    """Compress text and encode it as base64, after its size in 8 bytes."""
    content = text.encode()
    return base64.b64encode(len(content).to_bytes(8, "little") + pa.compress(content, "zstd", asbytes=True)).decode()


def _unpacked(text: bytes, most: int) -> bytes:
    packed = base64.b64decode(text, validate=True)
    return decompress(packed[8:], int.from_bytes(packed[:8], "little"), most, "descriptions of tensors")


def read_trace(
    path: Path,
) -> tuple[pd.DataFrame, tuple[ModuleInfo, ...], dict[str, Any], Flow | None, pd.DataFrame]:
    """Read a trace file.

    Returns:
        Calls, modules, facts, flow and garbage collections.

    Raises:
        DamagedError: the file is damaged.
        ValueError: the file is not a trace; the message does not name it.
    """
    try:
        file = _open(path)
        metadata = {**(file.schema_arrow.metadata or {}), **(file.metadata.metadata or {})}
    except Exception as error:  # pyarrow raises many classes
        raise ValueError("a trace that is cut short or damaged; record it again") from error
    if b"talkerviz" not in metadata:
        raise ValueError("a Parquet file, but not a talkerviz trace; record one with `talkerviz trace`")
    if metadata[b"talkerviz"] != FORMAT.encode():
        raise ValueError("a trace of another version of talkerviz; record it again")
    try:
        _check_columns(file.schema_arrow)
        # As dictionaries, a long text repeated in a million rows takes no more memory than in the file.
        file = _open(path, metadata=file.metadata, read_dictionary=list(_NAMED))
        return _read(file, path.stat().st_size, metadata)
    except DamagedError:
        raise
    except MemoryError as error:
        raise DamagedError("it takes more memory than is available") from error
    except Exception as error:
        raise DamagedError(_reason(error)) from error


def _open(path: Path, **options: Any) -> pq.ParquetFile:
    return pq.ParquetFile(
        path,
        page_checksum_verification=True,
        thrift_string_size_limit=_MAX_TEXT_BYTES,
        thrift_container_size_limit=_MAX_ENTRIES,
        **options,
    )


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, KeyError):
        name = error.args[0]
        return f"it has no {name.decode() if isinstance(name, bytes) else name}"
    return text if isinstance(error, (ValueError, OSError, pa.ArrowException)) and text else repr(error)


def _read(
    file: pq.ParquetFile, file_bytes: int, metadata: Mapping[bytes, bytes]
) -> tuple[pd.DataFrame, tuple[ModuleInfo, ...], dict[str, Any], Flow | None, pd.DataFrame]:
    if (crc := metadata.get(_CHECKSUM.encode())) is not None:
        texts = {name: metadata[name.encode()] for name in _CHECKED if name.encode() in metadata}
        if checksum(texts).encode() != crc:
            raise DamagedError("its metadata do not match their checksum")
    rows = file.metadata.num_rows
    if not 0 <= rows <= _MIN_ROWS + _ROWS_PER_BYTE * file_bytes:
        raise DamagedError(f"it claims {rows:,} calls in {file_bytes:,} bytes")
    modules = modules_from_json(parse_json(metadata[b"talkerviz.modules"], "its modules"))
    facts = parse_json(metadata[b"talkerviz.facts"], "its facts")
    text = metadata.get(b"talkerviz.flow")
    flow = None if text is None else Flow.from_text(text)
    if flow is not None:
        check_tensors(flow.tensor_lists())
    garbage = metadata.get(b"talkerviz.collections")
    collections = collections_frame(
        [] if garbage is None else [check_collections_json(parse_json(garbage, "its garbage collections"))]
    )
    tensors = metadata.get(b"talkerviz.tensors")
    if tensors is None:
        lists = numbered_tensors(_lists_in_rows(file))
    else:
        content = _unpacked(tensors, _MIN_TENSORS_BYTES + _TENSORS_BYTES_PER_CALL * rows)
        lists = numbered_tensors(parse_json(content, "its descriptions of tensors"))
    calls = _to_pandas(file, lists)
    if len(calls) != rows:
        raise DamagedError(f"it has {len(calls):,} calls, and claims {rows:,}")
    check_trace(calls, modules, facts, flow, collections)
    return calls, modules, facts, flow, collections


def _check_columns(schema: pa.Schema) -> None:
    """Check that each column of `CALLS` is there once, with a type that can be cast to its type."""
    for field in CALLS:
        indices = schema.get_all_field_indices(field.name)
        if len(indices) != 1:
            raise DamagedError(f"it has {'no column' if not indices else 'several columns'} {field.name!r}")
        kind = schema.field(indices[0]).type
        if field.name in _NAMED:
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            fits = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
        elif pa.types.is_integer(field.type):
            # Other programs may write floats where values are missing.
            fits = any(test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_null))
        else:
            fits = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        if not fits:
            raise DamagedError(f"its column {field.name!r} is of {kind}")


class _Numbers:
    """Numbers of tensor lists, equal for equal lists, in a whole file."""

    def __init__(self) -> None:
        self._by_list: dict[Tensors, int] = {}
        self._by_identity: dict[int, tuple[int, Tensors]] = {}  # a trace shares its lists between calls

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
        """Return the lists, by number."""
        return list(self._by_list)


def _to_arrow(calls: pd.DataFrame, ids: Mapping[str, np.ndarray], lists: Sequence[Tensors]) -> pa.Table:
    columns: dict[str, pa.Array] = {}
    for name in ("inputs", "outputs"):
        numbers, indices = np.unique(ids[name], return_inverse=True)
        columns[name] = lists_array([lists[number] for number in numbers]).take(pa.array(indices))
        columns[f"{name}_id"] = pa.array(ids[name], pa.int32())
    for field in CALLS:
        if field.name not in columns:
            columns[field.name] = pa.array(calls[field.name], from_pandas=True).cast(field.type)
    return pa.table([columns[name] for name in CALLS.names], schema=CALLS)


def _lists_in_rows(file: pq.ParquetFile) -> list[Any]:
    """Read the tensor lists of a file that another program rewrote, from the first row of each."""
    by_number: dict[int, Any] = {}
    for name in ("inputs", "outputs"):
        # In batches: decoded lists may be many times as large as the file.
        for batch in file.iter_batches(_ROWS_PER_LIST_BATCH, columns=[name, f"{name}_id"]):
            ids, first = np.unique(batch.column(f"{name}_id").to_numpy(), return_index=True)
            new = np.array([number not in by_number for number in ids.tolist()], dtype=bool)
            lists = batch.column(name).take(pa.array(first[new])).to_pylist()
            by_number |= {
                number: [list(tensor.values()) for tensor in tensors]
                for number, tensors in zip(ids[new].tolist(), lists, strict=True)
            }
    return [[number, by_number[number]] for number in sorted(by_number)]


_ROWS_PER_LIST_BATCH = 1 << 12


def _to_pandas(file: pq.ParquetFile, lists: Mapping[int, Tensors]) -> pd.DataFrame:
    plain = file.read([name for name in CALLS.names if name not in ("inputs", "outputs")])
    numbers = np.array(list(lists), dtype=np.int64)
    objects = np.empty(len(lists), dtype=object)
    for index, tensors in enumerate(lists.values()):
        objects[index] = tensors
    columns: dict[str, Any] = {}
    for field in CALLS:
        if field.name in ("inputs", "outputs"):
            continue
        column = plain.column(field.name)
        if column.null_count and not field.nullable:
            raise DamagedError(f"values of its column {field.name!r} are missing")
        if field.name in _NAMED:
            columns[field.name] = _names(column)
            continue
        if column.type != field.type:
            column = column.cast(field.type)
        if field.name.endswith("_id"):
            ids = column.to_numpy()
            indices = np.searchsorted(numbers, ids)
            if len(ids) and (not len(numbers) or indices.max() >= len(numbers) or (numbers[indices] != ids).any()):
                raise DamagedError("its descriptions of tensors are missing")
            columns[field.name.removesuffix("_id")] = objects[indices]
        elif field.name in NULLABLE:
            columns[field.name] = column.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
        else:
            columns[field.name] = column.to_pandas()
    error = columns["error"]
    columns["error"] = pd.array(error.categories.to_numpy(object, na_value=None), dtype="string").take(
        error.codes, allow_fill=True
    )
    return calls_frame(columns)


def _names(column: pa.ChunkedArray) -> pd.Categorical:
    """Convert a column with few distinct texts."""
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.string()).dictionary_encode()
    whole = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if isinstance(whole, pa.ChunkedArray):
        whole = whole.unify_dictionaries().chunk(0) if whole.num_chunks else pa.array([], NAME)
    whole.validate(full=True)
    return pd.Categorical(whole.to_pandas())
