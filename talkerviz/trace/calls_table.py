"""Calls table and table of garbage collections: columns and dtypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from talkerviz.trace.schema import CALLS, COLLECTIONS, Tensors

_CATEGORICAL = ("path", "class", "phase", "peers")
COLUMNS = [name for name in CALLS.names if not name.endswith("_id")]
NULLABLE = [field.name for field in CALLS if field.type == pa.int64() and field.nullable]
"""Columns of nullable integers."""


def calls_frame(columns: Mapping[str, Any] | pd.DataFrame) -> pd.DataFrame:
    """Build the calls table of a trace, with the dtypes that survive a round trip through its file.

    Args:
        columns: column name -> values. Unmeasured columns may be left out; `run` and `rank` are 0 by default, `peers`
            missing.
    """
    length = len(columns["call"])
    no_peers = pd.Categorical.from_codes(np.full(length, -1), pd.Index([], dtype=object))
    columns = {**dict.fromkeys(("run", "rank"), np.zeros(length, dtype=np.int32)), "peers": no_peers, **columns}
    frame = pd.DataFrame({n: columns[n] if n in columns else pd.array([pd.NA] * length, "Int64") for n in COLUMNS})
    for name in _CATEGORICAL:
        frame[name] = _sorted_categories(frame[name])
    numbers = dict.fromkeys(("depth", "thread", "run", "rank"), "int32")
    types = {**dict.fromkeys(NULLABLE, "Int64"), **numbers, "call": "int64", "error": "string"}
    # A column takes as long to convert to the type that it has. By name, since pandas' `str` equals "string".
    has = {name: dtype.name for name, dtype in frame.dtypes.items()}
    typed: pd.DataFrame = frame.astype({name: kind for name, kind in types.items() if has[name] != kind})
    return typed


def _sorted_categories(column: pd.Series) -> pd.Series:
    """Keep used categories only, in alphabetical order, so that equal traces have equal tables."""
    column = column.astype("category").cat.remove_unused_categories()
    return column.cat.reorder_categories(sorted(column.cat.categories))


def collections_frame(parts: Sequence[Mapping[str, Any]] = ()) -> pd.DataFrame:
    """Build the table of garbage collections, in the order in which they began."""
    columns = {
        field.name: np.concatenate([np.empty(0, np.int64), *(part[field.name] for part in parts)]).astype(
            field.type.to_pandas_dtype()
        )
        for field in COLLECTIONS
    }
    order = np.argsort(columns["host_start_ns"], kind="stable")
    frame: pd.DataFrame = pd.DataFrame({name: values[order] for name, values in columns.items()})
    return frame


def lists_array(lists: Sequence[Tensors]) -> pa.Array:
    """Convert tensor lists to an Arrow array of the type of the column `inputs`."""
    offsets = np.cumsum([0, *map(len, lists)], dtype=np.int32)
    tensors = [tensor for tensor_list in lists for tensor in tensor_list]
    field = CALLS.field("inputs").type.value_type
    columns = [pa.array([tensor[index] for tensor in tensors], inner.type) for index, inner in enumerate(field)]
    structs = pa.StructArray.from_arrays(columns, fields=list(field))
    return pa.ListArray.from_arrays(pa.array(offsets), structs).cast(CALLS.field("inputs").type)
