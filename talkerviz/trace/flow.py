"""Where tensors went: the operations of a run, each with the call it ran in, and what they read of each other.

A value that nothing is computed for has no operation of its own: views, copies and casts are seen through. A tensor
that is written in place, as a cache is, is a new value each time, made from the value before: an edge with `state`.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from talkerviz.trace.schema import NAME, TensorInfo, Tensors

OPS = pa.schema(
    [
        pa.field("call", pa.int64(), nullable=False),  # the innermost call that it ran in; -1 outside of all
        pa.field("after", pa.int64(), nullable=False),  # the last call that began before it; -1 for none
        pa.field("phase", NAME),
        pa.field("frame", pa.int64()),
        pa.field("step", pa.int64()),
        pa.field("name", NAME, nullable=False),  # `add`, `softmax`
        # `op`; `input`, a tensor from outside, by the name that its first reader gives it; `pass`, a call handing on
        # what it was given.
        pa.field("kind", NAME, nullable=False),
        pa.field("heavy", pa.bool_(), nullable=False),  # a product, reduction, sort or the like; not an `add`
        pa.field("inputs_id", pa.int32(), nullable=False),  # equal numbers mean equal lists of tensors
        pa.field("outputs_id", pa.int32(), nullable=False),
    ]
)
"""The columns of a flow's operations, in the order in which they ran."""

EDGES = pa.schema(
    [
        pa.field("source", pa.int32(), nullable=False),  # a row of the operations; -1 for one that `select` left out
        pa.field("target", pa.int32(), nullable=False),
        pa.field("state", pa.bool_(), nullable=False),
    ]
)
"""The columns of a flow's edges: `target` read what `source` made."""


@dataclass(frozen=True, eq=False)
class Flow:
    """The operations of a run and their edges.

    Attributes:
        ops: the columns of `OPS`, but `inputs` and `outputs` in place of the two id columns: tuples of `TensorInfo`.
        edges: the columns of `EDGES`.
    """

    ops: pd.DataFrame
    edges: pd.DataFrame

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Flow) and self.ops.equals(other.ops) and self.edges.equals(other.edges)

    __hash__ = None  # type: ignore[assignment]  # holds DataFrames

    def to_text(self) -> bytes:
        """The flow as base64 text, for a file's metadata."""
        numbers: dict[Tensors, int] = {}
        columns = {name: self.ops[name] for name in OPS.names if not name.endswith("_id")}
        for name in ("inputs", "outputs"):
            columns[f"{name}_id"] = pd.Series(
                [numbers.setdefault(t, len(numbers)) for t in self.ops[name]], dtype="int32"
            )
        ops = pa.table(
            {n: pa.array(columns[n], from_pandas=True).cast(OPS.field(n).type) for n in OPS.names}, schema=OPS
        )
        edges = pa.table({n: pa.array(self.edges[n]) for n in EDGES.names}, schema=EDGES)
        ops = ops.replace_schema_metadata({"tensors": json.dumps(list(numbers))})
        sink = io.BytesIO()
        for table in (ops, edges):
            with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
                writer.write_table(table)
        return base64.b64encode(sink.getvalue())

    @classmethod
    def from_text(cls, text: bytes) -> Flow:
        """What `to_text` gave, read again.

        Raises:
            ValueError: the text is damaged.
        """
        source = io.BytesIO(base64.b64decode(text, validate=True))
        ops, edges = (pa.ipc.open_stream(source).read_all() for _ in range(2))
        tensors = json.loads(ops.schema.metadata[b"tensors"])
        lists = [tuple(TensorInfo(n, tuple(s), t, d) for n, s, t, d in one) for one in tensors]
        columns = {name: ops.column(name).to_pandas() for name in OPS.names if not name.endswith("_id")}
        columns |= {name: _placed(lists, ops.column(f"{name}_id").to_numpy()) for name in ("inputs", "outputs")}
        return cls(ops_frame(columns), edges.to_pandas())


def ops_frame(columns: dict[str, object]) -> pd.DataFrame:
    """Columns by name -> the frame that a `Flow` holds, with the dtypes that survive a round trip."""
    frame = pd.DataFrame(columns)
    types = {"call": "int64", "after": "int64", "frame": "Int64", "step": "Int64", "heavy": "bool"}
    typed: pd.DataFrame = frame.astype({**types, "phase": "category", "name": "category", "kind": "category"})
    return typed


def edges_frame(source: Sequence[int], target: Sequence[int], state: Sequence[bool]) -> pd.DataFrame:
    """The frame of edges that a `Flow` holds."""
    columns = {
        "source": np.array(source, np.int32),
        "target": np.array(target, np.int32),
        "state": np.array(state, bool),
    }
    edges: pd.DataFrame = pd.DataFrame(columns)
    return edges


def _placed(lists: list[Tensors], places: np.ndarray) -> np.ndarray:
    values = np.empty(len(lists), dtype=object)
    for place, value in enumerate(lists):
        values[place] = value
    of_rows: np.ndarray = values[places]
    return of_rows
