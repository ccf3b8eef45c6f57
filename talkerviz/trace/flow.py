"""Flow of tensors: operations of a run, and edges from the operation that made a tensor to those that read it.

Views, copies and casts compute nothing and are no operations; edges pass through them. A tensor that is written in
place, as a KV cache is, is a new value after each write, with an edge marked `state` from the value before.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from talkerviz.trace.call_tree import parent_rows
from talkerviz.trace.schema import NAME, TensorInfo, Tensors, tensor_infos

OPS = pa.schema(
    [
        pa.field("call", pa.int64(), nullable=False),  # the innermost open call; -1 for none
        pa.field("after", pa.int64(), nullable=False),  # the last call that began before it; -1 for none
        pa.field("phase", NAME),
        pa.field("frame", pa.int64()),
        pa.field("step", pa.int64()),
        pa.field("name", NAME, nullable=False),  # `add`, `softmax`
        # `op`; `input`, a tensor from outside, named by the caller or else after its first reader; `pass`, a call that
        # returns its input unchanged.
        pa.field("kind", NAME, nullable=False),
        pa.field("heavy", pa.bool_(), nullable=False),  # a product, reduction, sort or the like; not an `add`
        pa.field("returned", pa.bool_(), nullable=False),  # whether its call returned its result
        pa.field("inputs_id", pa.int32(), nullable=False),  # equal numbers mean equal tensor lists
        pa.field("outputs_id", pa.int32(), nullable=False),
    ]
)
"""Columns of a flow's operations, in the order in which they ran."""

EDGES = pa.schema(
    [
        # Rows of the operations; -1 for an operation that `select` left out.
        pa.field("source", pa.int32(), nullable=False),
        pa.field("target", pa.int32(), nullable=False),
        pa.field("state", pa.bool_(), nullable=False),
    ]
)
"""Columns of a flow's edges: `target` read the result of `source`."""


FRAMES = pa.schema(
    [
        pa.field("tail", pa.bool_(), nullable=False),  # whether the row continues the frame before it
        # Rows of the operations stored for it, [at, until): all of them, or for an inferred frame those that give its
        # tensors' sizes, or none.
        pa.field("at", pa.int32(), nullable=False),
        pa.field("until", pa.int32(), nullable=False),
        # Rows of the operations that it consists of, [begin, end): its own or another frame's.
        pa.field("begin", pa.int32(), nullable=False),
        pa.field("end", pa.int32(), nullable=False),
        # Its tensors' sizes are interpolated, or extrapolated, between those of the operations from row `low` on and
        # from row `high` on: low + ratio * (high - low).
        pa.field("low", pa.int32(), nullable=False),
        pa.field("high", pa.int32(), nullable=False),
        pa.field("ratio", pa.float64(), nullable=False),
        pa.field("frame", pa.int64()),
        pa.field("calls", pa.int64(), nullable=False),  # offset of its call numbers from the other frame's
    ]
)
"""Columns of a flow's frames, in the order of the run, where only some frames were followed."""

_BACK = pa.field("back", pa.int32(), nullable=False)
"""Extra column of a flow's edges: number of frames from the source to the target; 0 for a fixed source."""


class Flow:
    """Operations of a run and their edges.

    In a long run some frames are followed and the others are inferred from them. `ops` and `edges` have all frames;
    they are expanded on first access.

    Args:
        ops: table with the columns of `OPS`, but `inputs` and `outputs`, tuples of `TensorInfo`, for the id columns.
        edges: table with the columns of `EDGES`; with `frames` also `back`, see `_BACK`.
        frames: table with the columns of `FRAMES`; None if `ops` and `edges` are complete.
    """

    def __init__(self, ops: pd.DataFrame, edges: pd.DataFrame, frames: pd.DataFrame | None = None) -> None:
        self._kept = ops, edges, frames

    @cached_property
    def _whole(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        ops, edges, frames = self._kept
        return (ops, edges) if frames is None else _with_all_frames(ops, edges, frames)

    @property
    def ops(self) -> pd.DataFrame:
        """Operations: the columns of `OPS`, but `inputs` and `outputs`, tuples of `TensorInfo`, for the id columns."""
        return self._whole[0]

    @property
    def edges(self) -> pd.DataFrame:
        """Edges: the columns of `EDGES`."""
        return self._whole[1]

    @property
    def kept(self) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame | None]:
        """Stored tables: operations, edges, and frames or None."""
        return self._kept

    @property
    def followed(self) -> pd.DataFrame | None:
        """Frames, with the columns of `FRAMES`; None if all frames were followed."""
        return self._kept[2]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Flow) and self.ops.equals(other.ops) and self.edges.equals(other.edges)

    __hash__ = None  # type: ignore[assignment]  # holds DataFrames

    def to_text(self) -> bytes:
        """Encode the flow as base64 text, for a file's metadata."""
        kept, links, frames = self._kept
        numbers: dict[Tensors, int] = {}
        columns = {name: kept[name] for name in OPS.names if not name.endswith("_id")}
        for name in ("inputs", "outputs"):
            columns[f"{name}_id"] = pd.Series([numbers.setdefault(t, len(numbers)) for t in kept[name]], dtype="int32")
        ops = pa.table(
            {n: pa.array(columns[n], from_pandas=True).cast(OPS.field(n).type) for n in OPS.names}, schema=OPS
        )
        ops = ops.replace_schema_metadata({"tensors": json.dumps(list(numbers))})
        schema = EDGES if frames is None else EDGES.append(_BACK)
        tables = [ops, pa.table({n: pa.array(links[n]) for n in schema.names}, schema=schema)]
        if frames is not None:
            columns = {n: pa.array(frames[n], from_pandas=True).cast(FRAMES.field(n).type) for n in FRAMES.names}
            tables.append(pa.table(columns, schema=FRAMES))
        sink = io.BytesIO()
        for table in tables:
            with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
                writer.write_table(table)
        return base64.b64encode(sink.getvalue())

    @classmethod
    def from_text(cls, text: bytes) -> Flow:
        """Decode the text of `to_text`.

        Raises:
            ValueError: the text is damaged.
            pyarrow.ArrowException: an Arrow stream in the text is damaged.
        """
        decoded = base64.b64decode(text, validate=True)
        source = io.BytesIO(decoded)
        budget = _MIN_BUDGET_BYTES + _MAX_RATIO * len(decoded)
        ops, edges = _read_table(source, OPS, budget), _read_table(source, EDGES, budget)
        frames = _read_table(source, FRAMES, budget) if _BACK.name in edges.schema.names else None
        tensors = json.loads((ops.schema.metadata or {})[b"tensors"])
        if not isinstance(tensors, list) or not all(_are_tensors(rows) for rows in tensors):
            raise ValueError("its flow has damaged descriptions of tensors")
        lists = [tensor_infos(rows) for rows in tensors]
        columns = {name: ops.column(name).to_pandas() for name in OPS.names if not name.endswith("_id")}
        for name in ("inputs", "outputs"):
            numbers = ops.column(f"{name}_id").to_numpy()
            if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(lists):
                raise ValueError("its flow lacks descriptions of tensors")
            columns[name] = _take(lists, numbers)
        whole = None if frames is None else frames.to_pandas(types_mapper=_INTEGERS.get).astype({"calls": "int64"})
        return cls(ops_frame(columns), edges.to_pandas(), whole)

    def tensor_lists(self) -> list[Tensors]:
        """Return the distinct tensor lists of the operations."""
        ops = self._kept[0]
        both = [*ops["inputs"].to_numpy().tolist(), *ops["outputs"].to_numpy().tolist()]
        return list(dict(zip(map(id, both), both, strict=True)).values())


def _are_tensors(rows: object) -> bool:
    return isinstance(rows, list) and all(
        isinstance(row, list) and len(row) in (4, 5) and isinstance(row[1], list) for row in rows
    )


# Bounds of a table in memory against its compressed text, so that a hostile file cannot fill memory.
_MIN_BUDGET_BYTES, _MAX_RATIO = 1 << 26, 256


def _read_table(source: io.BytesIO, schema: pa.Schema, budget: int) -> pa.Table:
    """Read an Arrow stream of a flow, with the columns of a schema and optionally `back`."""
    reader = pa.ipc.open_stream(source)
    wanted = schema.append(_BACK) if _BACK.name in reader.schema.names and schema is EDGES else schema
    if not reader.schema.equals(wanted):
        raise ValueError("its flow has wrong columns")
    batches, size = [], 0
    for batch in reader:
        batch.validate(full=True)
        size += batch.nbytes
        if size > budget:
            raise ValueError("its flow is too large for its text")
        for field in wanted:
            if not field.nullable and batch.column(field.name).null_count:
                raise ValueError(f"its flow lacks values of {field.name}")
        batches.append(batch)
    return pa.Table.from_batches(batches, reader.schema)


_INTEGERS = {pa.int64(): pd.Int64Dtype()}


def ops_frame(columns: dict[str, object]) -> pd.DataFrame:
    """Build a flow's table of operations, with the dtypes that survive a round trip."""
    frame = pd.DataFrame(columns)
    types = {"call": "int64", "after": "int64", "frame": "Int64", "step": "Int64", "heavy": "bool", "returned": "bool"}
    typed: pd.DataFrame = frame.astype({**types, "phase": "category", "name": "category", "kind": "category"})
    return typed


def edges_frame(
    source: npt.ArrayLike, target: npt.ArrayLike, state: npt.ArrayLike, back: npt.ArrayLike | None = None
) -> pd.DataFrame:
    """Build a flow's table of edges."""
    columns = {
        "source": np.array(source, np.int32),
        "target": np.array(target, np.int32),
        "state": np.array(state, bool),
    }
    if back is not None:
        columns["back"] = np.array(back, np.int32)
    edges: pd.DataFrame = pd.DataFrame(columns)
    return edges


def frames_frame(rows: Sequence[tuple[object, ...]]) -> pd.DataFrame:
    """Build a flow's table of frames from rows of `FRAMES`."""
    frame = pd.DataFrame(list(rows), columns=FRAMES.names)
    types = {field.name: "int32" if field.type == pa.int32() else "int64" for field in FRAMES}
    typed: pd.DataFrame = frame.astype({**types, "tail": "bool", "ratio": "float64", "frame": "Int64"})
    return typed


def rows_of_ops(ops: pd.DataFrame, rows: np.ndarray, **changed: object) -> pd.DataFrame:
    """Take rows of a table of operations, also repeatedly, and replace some columns."""
    names = {name: ops[name].cat for name in ("phase", "name", "kind")}
    taken: dict[str, object] = {name: ops[name].to_numpy()[rows] for name in ops.columns if name not in names}
    taken |= {name: ops[name].array.take(rows) for name in ("frame", "step")}
    for name, categories in names.items():
        codes = categories.codes.to_numpy()[rows]
        used = np.unique(codes[codes >= 0])
        new_code = np.full(len(categories.categories) + 1, -1)
        new_code[used] = np.arange(len(used))
        taken[name] = pd.Categorical.from_codes(new_code[codes], categories.categories[used])
    return ops_frame({name: (taken | changed)[name] for name in ops.columns})


def _with_all_frames(ops: pd.DataFrame, edges: pd.DataFrame, frames: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Expand operations and edges to all frames, followed and inferred."""
    begin, low, high, calls = (frames[name].to_numpy(np.int64) for name in ("begin", "low", "high", "calls"))
    count = frames["end"].to_numpy(np.int64) - begin
    start = np.cumsum(count) - count
    of = np.repeat(np.arange(len(frames)), count)
    offset = np.arange(len(of)) - start[of]
    rows = begin[of] + offset
    call, after = (ops[name].to_numpy()[rows] for name in ("call", "after"))
    own = (begin == frames["at"].to_numpy(np.int64))[of]
    frame = ops["frame"].array.take(rows)
    frame[~own] = frames["frame"].array.take(of[~own])
    ratio = frames["ratio"].to_numpy()[of]
    sizes = {
        name: _between(ops[name].to_numpy(), low[of] + offset, high[of] + offset, ratio)
        for name in ("inputs", "outputs")
    }
    whole = rows_of_ops(
        ops, rows, call=np.where(call >= 0, call + calls[of], call), after=after + calls[of], frame=frame, **sizes
    )
    return whole, _edges_of_all_frames(ops["name"].cat.codes.to_numpy(), edges, frames, start, count)


def _between(lists: np.ndarray, low: np.ndarray, high: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Interpolate the tensor lists at rows `low` and `high`."""
    identity = np.fromiter(map(id, lists), np.int64, len(lists))
    interpolated: np.ndarray = lists[low]
    known: dict[tuple[int, int, float], Tensors] = {}
    for row in np.flatnonzero((ratio != 0) & (identity[low] != identity[high])).tolist():
        one, two, part = int(low[row]), int(high[row]), float(ratio[row])
        key = (int(identity[one]), int(identity[two]), part)
        if key not in known:
            known[key] = between(lists[one], lists[two], part)
        interpolated[row] = known[key]
    return interpolated


def between(low: Tensors, high: Tensors, ratio: float) -> Tensors:
    """Interpolate the sizes of two lists of the same tensors: low + ratio * (high - low)."""
    if [(tensor.name, len(tensor.shape)) for tensor in low] != [(tensor.name, len(tensor.shape)) for tensor in high]:
        return low

    def shape(small: TensorInfo, large: TensorInfo) -> tuple[int, ...]:
        sizes = zip(small.shape, large.shape, strict=True)
        return tuple(max(round(least + (most - least) * ratio), 0) for least, most in sizes)

    return tuple(small._replace(shape=shape(small, large)) for small, large in zip(low, high, strict=True))


def _edges_of_all_frames(
    names: np.ndarray, edges: pd.DataFrame, frames: pd.DataFrame, start: np.ndarray, count: np.ndarray
) -> pd.DataFrame:
    at, until, begin = (frames[name].to_numpy(np.int64) for name in ("at", "until", "begin"))
    source, target, state, back = (edges[name].to_numpy() for name in ("source", "target", "state", "back"))
    of = np.repeat(np.arange(len(frames)), until - at)  # the frame of each row
    one, two = of[source], of[target]
    from_, to = source - at[one], target - at[two]  # places in those frames

    def place(frame: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """Return rows of the expanded operations; -1 for an offset beyond the frame."""
        return np.where(offset < count[frame], start[frame] + offset, -1)

    heads = np.flatnonzero(~frames["tail"].to_numpy())
    count_of_heads = np.cumsum(~frames["tail"].to_numpy()) - 1
    fixed = place(one, from_)
    parts = [(np.where(back > 0, place(heads[count_of_heads[two] - back], from_), fixed), place(two, to), state)]
    order = np.argsort(two, kind="stable")
    groups = np.split(order, np.searchsorted(two[order], np.arange(1, len(frames))))
    for like in np.unique(begin[begin != at]).tolist():
        number = int(np.flatnonzero((at == like) & (begin == like) & (until > at))[0])
        here = groups[number]
        copies = np.flatnonzero((begin == like) & (at != like) & (count > 0))[:, None]
        inside = one[here] == number
        earlier = heads[np.maximum(count_of_heads[copies] - np.where(inside, 0, back[here]), 0)]
        sources = place(earlier, from_[here] + np.zeros_like(earlier))
        # A different kind of frame has that operation elsewhere: it is found by name, counted from the end.
        there = np.minimum(begin[earlier] + from_[here], len(names) - 1)
        differs = ~inside & (back[here] > 0) & ((sources < 0) | (names[there] != names[source[here]]))
        for copy, edge in np.argwhere(differs).tolist():
            before = int(earlier[copy, edge])
            row, whole = int(source[here[edge]]), int(one[here[edge]])
            later = int((names[row + 1 : until[whole]] == names[row]).sum())
            same = np.flatnonzero(names[begin[before] : begin[before] + count[before]] == names[row])
            sources[copy, edge] = start[before] + same[-1 - later] if len(same) > later else -1
        sources = np.where(inside | (back[here] > 0), sources, fixed[here])
        targets = place(copies + np.zeros_like(earlier), to[here] + np.zeros_like(earlier))
        parts.append((sources.ravel(), targets.ravel(), np.broadcast_to(state[here], targets.shape).ravel()))
    source, target, state = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    kept = (source >= 0) & (target >= 0)
    order = np.flatnonzero(kept)[np.lexsort((source[kept], target[kept]))]
    return edges_frame(source[order], target[order], state[order])


def select_flow(flow: Flow, calls: pd.DataFrame, keep: np.ndarray, phase: str | None, frame: int | None) -> Flow:
    """Select the operations of a phase and a frame, and their edges.

    Operations of a call that is not kept move to its nearest kept ancestor.

    Args:
        flow: flow of the calls.
        calls: a trace's calls table.
        keep: mask of the kept calls.
        phase: phase of the operations; None for all.
        frame: frame of the operations; None for all.
    """
    if keep.all() and phase is None and frame is None:
        return flow
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
    return Flow(ops.assign(call=call, after=after.astype(np.int64)), selected.edges)


def flow_inside(flow: Flow, kept: np.ndarray) -> Flow:
    """Select the operations in kept calls, given by number, and their edges."""
    return _flow_where(flow, flow.ops["call"].isin(kept).to_numpy())


def flow_between(flow: Flow, first: int, last: int) -> Flow | None:
    """Select the operations that ran after call `first` and up to the call behind `last`; None if there are none."""
    here = flow.ops["after"].between(first, last).to_numpy()
    return _flow_where(flow, here) if here.any() else None


def _flow_where(flow: Flow, here: np.ndarray) -> Flow:
    return Flow(rows_of_ops(flow.ops, np.flatnonzero(here)), _edges_between(flow.edges, here))


def _edges_between(edges: pd.DataFrame, here: np.ndarray) -> pd.DataFrame:
    """Select and renumber the edges of kept operations; -1 for an end that is left out."""
    new_row = np.full(len(here) + 1, -1)  # the last element maps -1 to -1
    new_row[:-1][here] = np.arange(here.sum())
    numbered = edges_frame(new_row[edges["source"]], new_row[edges["target"]], edges["state"].to_numpy())
    kept = numbered[(numbered["source"] >= 0) | (numbered["target"] >= 0)]
    different: pd.DataFrame = kept.drop_duplicates(ignore_index=True)
    return different


def renumber_calls(flow: Flow, before: npt.ArrayLike, now: npt.ArrayLike) -> Flow:
    """Replace the call numbers `before` by `now`."""
    old, new = np.asarray(before), np.asarray(now)
    if np.array_equal(old, new):
        return flow
    number = dict(zip([-1, *old.tolist()], [-1, *new.tolist()], strict=True))
    calls = {name: flow.ops[name].map(number) for name in ("call", "after")}
    return Flow(flow.ops.assign(**calls), flow.edges)


def _take(lists: list[Tensors], indices: np.ndarray) -> np.ndarray:
    values = np.empty(len(lists), dtype=object)
    for index, value in enumerate(lists):
        values[index] = value
    taken: np.ndarray = values[indices]
    return taken


def call_edges(calls: pd.DataFrame, flow: Flow | None) -> pd.DataFrame:
    """Return the calls that read what other calls returned, with no operation between.

    Tensors written in place, such as a KV cache, and operations of a caller between its calls are left out.

    Args:
        calls: a trace's calls table.
        flow: the trace's flow; None if not recorded.

    Returns:
        Columns `source` and `target`: rows of calls without child calls, both of one rank, thread, run and frame. Empty
        without a flow.
    """
    if flow is None:
        empty: pd.DataFrame = pd.DataFrame({"source": [], "target": []}, dtype="int64")
        return empty
    edges = flow.edges[(flow.edges["source"] >= 0) & (flow.edges["target"] >= 0) & ~flow.edges["state"]]
    row = pd.Index(calls["call"]).get_indexer(flow.ops["call"])
    pairs = pd.DataFrame({name: row[edges[name].to_numpy()] for name in ("source", "target")})
    pairs = pairs[(pairs["source"] >= 0) & (pairs["target"] >= 0) & (pairs["source"] != pairs["target"])]
    pairs = pairs.drop_duplicates(ignore_index=True)
    is_leaf = np.ones(len(calls), dtype=bool)
    parent = parent_rows(calls)
    is_leaf[parent[parent >= 0]] = False
    context = calls.groupby(["rank", "thread", "run", "frame"], dropna=False).ngroup().to_numpy()
    source, target = pairs["source"].to_numpy(), pairs["target"].to_numpy()
    kept: pd.DataFrame = pairs[is_leaf[source] & is_leaf[target] & (context[source] == context[target])]
    return kept
