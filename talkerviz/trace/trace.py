"""The Trace: calls, modules and run facts of one recorded run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from talkerviz.trace.schema import CALLS, ModuleInfo, TensorInfo, Tensors

FORMAT = "1"
_NULLABLE = ("parent", "frame", "step", "host_start_ns", "host_ns", "host_self_ns")
_CATEGORICAL = ("path", "class", "phase")


class TraceError(ValueError):
    """A trace file that cannot be read; the message names the file and says what to do."""


@dataclass(frozen=True, eq=False)
class Trace:
    """The record of one run.

    Attributes:
        calls: a row a call, in the order in which calls began; the columns are those of
            [`schema.CALLS`][talkerviz.trace.schema.CALLS] without the two id columns. `inputs` and `outputs` hold
            tuples of `TensorInfo`; times are nanoseconds; what was not measured is `<NA>`.
        modules: every module of the traced tree, whether it was called or not, in registration order.
        facts: what the run was: versions, device, threads, command, scenario, clock. JSON values only.
    """

    calls: pd.DataFrame
    modules: tuple[ModuleInfo, ...]
    facts: Mapping[str, Any]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Trace)
            and self.modules == other.modules
            and dict(self.facts) == dict(other.facts)
            and self.calls.equals(other.calls)
        )

    __hash__ = None  # type: ignore[assignment]  # holds a DataFrame

    def select(
        self,
        phase: str | None = None,
        frame: int | None = None,
        depth: int | None = None,
    ) -> Trace:
        """The same trace with only the calls asked for.

        Args:
            phase: keep calls of this phase.
            frame: keep calls of this frame.
            depth: keep calls at most this deep (0 keeps the top calls only).

        Raises:
            ValueError: the trace has no such phase or frame; the message lists what it has.
        """
        keep = np.ones(len(self.calls), dtype=bool)
        if phase is not None:
            keep &= (self.calls["phase"] == phase).to_numpy()
            if not keep.any():
                raise ValueError(f"no phase {phase!r} in this trace: choose from {', '.join(self.phases)}")
        if frame is not None:
            of_frame = (self.calls["frame"] == frame).fillna(False).to_numpy(dtype=bool)
            if not of_frame.any():
                last = self.calls["frame"].max()
                known = "it has no frames" if last is pd.NA else f"it has frames 0 to {last}"
                raise ValueError(f"no frame {frame} in this trace: {known}")
            keep &= of_frame
        if depth is not None:
            keep &= (self.calls["depth"] <= depth).to_numpy()
        return replace(self, calls=self.calls[keep])

    @property
    def phases(self) -> list[str]:
        """The phases in the order in which they first occur."""
        return [str(phase) for phase in self.calls["phase"].dropna().unique()]

    def save(self, file: str | Path | BinaryIO) -> None:
        """Write the trace as one Parquet file, finished atomically: readers never see half of it."""
        table = _to_arrow(self.calls).replace_schema_metadata(
            {
                "talkerviz": FORMAT,
                "talkerviz.modules": json.dumps(self.modules),
                "talkerviz.facts": json.dumps(dict(self.facts)),
            }
        )
        if not isinstance(file, str | Path):
            pq.write_table(table, file, compression="zstd")
            return
        path = Path(file)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            pq.write_table(table, unfinished, compression="zstd")
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace file.

        Raises:
            TraceError: there is no such file, it is cut short, or it is not a talkerviz trace.
        """
        path = Path(path)
        if not path.exists():
            raise TraceError(f"{path}: no such file; make one with `talkerviz trace -o {path}`")
        if path.is_dir():
            raise TraceError(f"{path}: a folder, not a trace file")
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise TraceError(f"{path}: {_why_unreadable(path)}; record it again") from error
        metadata = table.schema.metadata or {}
        if metadata.get(b"talkerviz") != FORMAT.encode():
            raise TraceError(f"{path}: a Parquet file, but not a talkerviz trace; record one with `talkerviz trace`")
        try:
            modules = tuple(
                ModuleInfo._make((*row, tuple(aliases))) for *row, aliases in json.loads(metadata[b"talkerviz.modules"])
            )
            facts = json.loads(metadata[b"talkerviz.facts"])
            return cls(_to_pandas(table), modules, facts)
        except (KeyError, ValueError, TypeError, pa.ArrowException) as error:
            raise TraceError(f"{path}: a damaged talkerviz trace ({error}); record it again") from error


def _why_unreadable(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(4)
    if not head:
        return "an empty file, not a trace"
    if head == b"PAR1":
        return "a trace that is cut short or damaged"
    return "not a talkerviz trace (a trace is a Parquet file)"


def calls_frame(columns: Mapping[str, Any] | pd.DataFrame) -> pd.DataFrame:
    """Columns by name -> the frame a `Trace` holds, with the dtypes that survive a round trip."""
    frame = pd.DataFrame({name: columns[name] for name in CALLS.names if not name.endswith("_id")})
    for name in _NULLABLE:
        frame[name] = frame[name].astype("Int64")
    for name in _CATEGORICAL:
        frame[name] = _sorted_categories(frame[name])
    typed: pd.DataFrame = frame.astype({"call": "int64", "depth": "int32", "thread": "int32", "error": "string"})
    return typed


def _sorted_categories(column: pd.Series) -> pd.Series:
    """Only the names in use, in order, whatever the frame came from: equal traces have equal frames."""
    column = column.astype("category").cat.remove_unused_categories()
    return column.cat.reorder_categories(sorted(column.cat.categories))


def _to_arrow(calls: pd.DataFrame) -> pa.Table:
    columns: dict[str, pa.Array] = {}
    for name in ("inputs", "outputs"):
        ids, unique = _intern(calls[name])
        lists = pa.array([[t._asdict() for t in tensors] for tensors in unique], CALLS.field(name).type)
        columns[name] = lists.take(pa.array(ids)) if len(unique) else lists
        columns[f"{name}_id"] = pa.array(ids, pa.int32())
    for field in CALLS:
        if field.name not in columns:
            columns[field.name] = pa.array(calls[field.name], from_pandas=True).cast(field.type)
    return pa.table([columns[name] for name in CALLS.names], schema=CALLS)


def _intern(column: Iterable[Tensors]) -> tuple[np.ndarray, list[Tensors]]:
    """Lists of tensors -> a number for each row and the list behind each number."""
    numbers: dict[Tensors, int] = {}
    ids = np.fromiter((numbers.setdefault(tensors, len(numbers)) for tensors in column), dtype=np.int32)
    return ids, list(numbers)


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    columns: dict[str, Any] = {}
    for name in ("inputs", "outputs"):
        ids = table.column(f"{name}_id").to_numpy()
        _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
        lists = np.empty(len(first), dtype=object)
        for number, row in enumerate(table.column(name).take(pa.array(first)).to_pylist()):
            lists[number] = tuple(TensorInfo(t["name"], tuple(t["shape"]), t["dtype"], t["device"]) for t in row)
        columns[name] = lists[inverse]
    for field in CALLS:
        if field.name in columns or field.name.endswith("_id"):
            continue
        column = table.column(field.name)
        if field.name in _NULLABLE:
            columns[field.name] = column.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
        elif field.name == "error":
            columns[field.name] = column.to_pandas(types_mapper={pa.string(): pd.StringDtype()}.get)
        else:
            columns[field.name] = column.to_pandas()
    return calls_frame(columns)
