"""Where tensors went: the operations of a run, each with the call it ran in, and what they read of each other.

A value that nothing is computed for has no operation of its own: views, copies and casts are seen through. A tensor
that is written in place, as a cache is, is a new value each time, made from the value before: an edge with `state`.
"""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from talkerviz.trace.schema import NAME, Tensors, tensor_infos

OPS = pa.schema(
    [
        pa.field("call", pa.int64(), nullable=False),  # the innermost call that it ran in; -1 outside of all
        pa.field("after", pa.int64(), nullable=False),  # the last call that began before it; -1 for none
        pa.field("phase", NAME),
        pa.field("frame", pa.int64()),
        pa.field("step", pa.int64()),
        pa.field("name", NAME, nullable=False),  # `add`, `softmax`
        # `op`; `input`, a tensor from outside, by the name that the run has for it, or else its first reader; `pass`, a
        # call handing on what it was given.
        pa.field("kind", NAME, nullable=False),
        pa.field("heavy", pa.bool_(), nullable=False),  # a product, reduction, sort or the like; not an `add`
        pa.field("returned", pa.bool_(), nullable=False),  # whether the call that it ran in returned what it made
        pa.field("inputs_id", pa.int32(), nullable=False),  # equal numbers mean equal lists of tensors
        pa.field("outputs_id", pa.int32(), nullable=False),
    ]
)
"""The columns of a flow's operations, in the order in which they ran."""

EDGES = pa.schema(
    [
        # Rows of the operations; -1 for one that `select` left out.
        pa.field("source", pa.int32(), nullable=False),
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
        lists = [tensor_infos(one) for one in tensors]
        columns = {name: ops.column(name).to_pandas() for name in OPS.names if not name.endswith("_id")}
        columns |= {name: _placed(lists, ops.column(f"{name}_id").to_numpy()) for name in ("inputs", "outputs")}
        return cls(ops_frame(columns), edges.to_pandas())


def ops_frame(columns: dict[str, object]) -> pd.DataFrame:
    """Columns by name -> the frame that a `Flow` holds, with the dtypes that survive a round trip."""
    frame = pd.DataFrame(columns)
    types = {"call": "int64", "after": "int64", "frame": "Int64", "step": "Int64", "heavy": "bool", "returned": "bool"}
    typed: pd.DataFrame = frame.astype({**types, "phase": "category", "name": "category", "kind": "category"})
    return typed


def edges_frame(source: npt.ArrayLike, target: npt.ArrayLike, state: npt.ArrayLike) -> pd.DataFrame:
    """The frame of edges that a `Flow` holds."""
    columns = {
        "source": np.array(source, np.int32),
        "target": np.array(target, np.int32),
        "state": np.array(state, bool),
    }
    edges: pd.DataFrame = pd.DataFrame(columns)
    return edges


def select_flow(flow: Flow, calls: pd.DataFrame, keep: np.ndarray, phase: str | None, frame: int | None) -> Flow:
    """The operations of a phase and a frame, and what they read; those of a call that is not kept move outwards.

    Args:
        flow: the flow of the calls.
        calls: a trace's calls.
        keep: which of them are kept.
        phase: keep operations of this phase.
        frame: keep operations of this frame.
    """
    ops = flow.ops
    here = np.ones(len(ops), dtype=bool)
    if phase is not None:
        here &= (ops["phase"] == phase).to_numpy()
    if frame is not None:
        here &= (ops["frame"] == frame).fillna(False).to_numpy(dtype=bool)
    selected = _flow_where(flow, here)
    ops = selected.ops

    numbers = calls["call"].to_numpy()
    around = dict(zip(numbers.tolist(), calls["parent"].fillna(-1).tolist(), strict=True))
    kept = numbers[keep]
    there = set(kept.tolist())
    moved = {}
    for call in ops["call"].unique().tolist():
        outwards = call
        while outwards != -1 and outwards not in there:
            outwards = around.get(outwards, -1)
        moved[call] = outwards
    begun = np.concatenate([[-1], kept])
    after = begun[np.searchsorted(kept, ops["after"].to_numpy(), side="right")]
    call = ops["call"].map(moved).astype("int64")
    return replace(selected, ops=ops.assign(call=call, after=after.astype(np.int64)))


def flow_inside(flow: Flow, kept: np.ndarray) -> Flow:
    """The operations in calls that are kept, by number, and what they read."""
    return _flow_where(flow, flow.ops["call"].isin(kept).to_numpy())


def flow_between(flow: Flow, first: int, last: int) -> Flow | None:
    """The operations after one call began and before another after a last one did; None if there are none."""
    here = flow.ops["after"].between(first, last).to_numpy()
    return _flow_where(flow, here) if here.any() else None


def _flow_where(flow: Flow, here: np.ndarray) -> Flow:
    names = {name: flow.ops.loc[here, name].astype(object) for name in ("phase", "name", "kind")}
    ops = ops_frame(dict(flow.ops[here].assign(**names).reset_index(drop=True)))
    return Flow(ops, _edges_between(flow.edges, here))


def _edges_between(edges: pd.DataFrame, here: np.ndarray) -> pd.DataFrame:
    """The edges of operations that are kept, by their new numbers; -1 for an end that is left out."""
    place = np.full(len(here) + 1, -1)  # the last place is for -1
    place[:-1][here] = np.arange(here.sum())
    numbered = edges_frame(place[edges["source"]], place[edges["target"]], edges["state"].to_numpy())
    kept = numbered[(numbered["source"] >= 0) | (numbered["target"] >= 0)]
    different: pd.DataFrame = kept.drop_duplicates(ignore_index=True)
    return different


def renumber_calls(flow: Flow, before: pd.Series, now: pd.Series) -> Flow:
    """The flow of the same calls under other numbers."""
    number = dict(zip([-1, *before], [-1, *now], strict=True))
    calls = {name: flow.ops[name].map(number) for name in ("call", "after")}
    return replace(flow, ops=flow.ops.assign(**calls))


def _placed(lists: list[Tensors], places: np.ndarray) -> np.ndarray:
    values = np.empty(len(lists), dtype=object)
    for place, value in enumerate(lists):
        values[place] = value
    of_rows: np.ndarray = values[places]
    return of_rows
