"""A summary as comma-separated values."""

from __future__ import annotations

import io

import pandas as pd
import pyarrow as pa
import pyarrow.csv


def csv_table(summary: pd.DataFrame) -> bytes:
    """All of its columns in their base units; what was not measured is empty."""
    # pandas takes eight times as long, which is seconds for a million calls.
    table = pa.Table.from_pandas(summary, preserve_index=False)
    texts = [field.with_type(pa.string()) if pa.types.is_dictionary(field.type) else field for field in table.schema]
    written = io.BytesIO()
    pyarrow.csv.write_csv(table.cast(pa.schema(texts)), written)
    return written.getvalue()
