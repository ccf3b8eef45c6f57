"""How files for viewers of time lines are written."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import Any

import pandas as pd

from talkerviz.render.layout import RenderError
from talkerviz.trace import Trace

TENSORBOARD_SUFFIX = ".pt.trace.json"
"""How a file's name ends that TensorBoard finds."""


def check_timed(trace: Trace, fmt: str) -> None:
    """Say so if a trace has no times to draw.

    Raises:
        RenderError: it has none.
    """
    if trace.calls["host_ns"].isna().all():
        raise RenderError(f"{fmt} needs times, and this trace has none: record it on a device with --clock auto")


def compact(value: object) -> str:
    """JSON without spaces; letters as they are, since Perfetto shows `\\u` escapes as they stand."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def joined(pieces: Iterable[str]) -> bytes:
    """Pieces of a file behind each other, as UTF-8."""
    raw = io.BytesIO()
    # A name that is no proper text, which a trace in memory can hold, must not stop the rest.
    out = io.TextIOWrapper(raw, encoding="utf-8", errors="replace", newline="\n")
    out.writelines(pieces)
    out.flush()
    return raw.getvalue()


def plain_values(column: pd.Series) -> list[Any]:
    """A column as Python's own values, None where there is none."""
    values: list[Any] = column.astype(object).where(column.notna(), None).tolist()
    return values
