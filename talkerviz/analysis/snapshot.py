"""Snapshot of a run's calls, a text file to commit beside a test: paths and shapes, without times and devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from talkerviz.trace.calls_table import calls_frame
from talkerviz.trace.runs import whole_runs
from talkerviz.trace.schema import ModuleInfo, TensorInfo, Tensors
from talkerviz.trace.trace import TraceRecord

_FORMAT = "talkertrace 1"
_FIELDS = ("path", "class", "phase", "frame", "step", "error")

Call = dict[str, Any]
"""Call as JSON, without missing values; a tensor is its name, shape and dtype."""


def snapshot_calls(trace: TraceRecord) -> list[Call]:
    """Return the calls of the first complete run, thread by thread, in the order in which they began."""
    runs = whole_runs(trace)
    calls = trace.calls[trace.calls["run"] == runs[0]] if runs else trace.calls
    calls = calls.sort_values("thread", kind="stable")
    names = ["thread", "depth", *_FIELDS]
    rows = zip(*(calls[name].astype(object).where(calls[name].notna(), None) for name in names), strict=True)
    result = []
    for row, inputs, outputs in zip(rows, calls["inputs"], calls["outputs"], strict=True):
        known = {name: value for name, value in zip(names, row, strict=True) if value is not None}
        if not known["thread"]:
            del known["thread"]
        result.append(known | {"inputs": _plain(inputs), "outputs": _plain(outputs)})
    return result


def _plain(tensors: Tensors) -> list[Any]:
    return [[tensor.name, list(tensor.shape), tensor.dtype] for tensor in tensors]


def trace_from_calls(calls: list[Call], name: str = "model") -> TraceRecord:
    """Build a trace without times from a snapshot, for charts and comparisons.

    Raises:
        KeyError, TypeError, ValueError: the calls are malformed.
    """
    rows, stacks = [], dict[int, list[int]]()
    lists: dict[str, Tensors] = {}
    for number, call in enumerate(calls):
        open_calls = stacks.setdefault(call.get("thread", 0), [])
        while open_calls and calls[open_calls[-1]]["depth"] >= call["depth"]:
            open_calls.pop()
        row = {name: call.get(name) for name in _FIELDS} | {"path": call["path"], "class": call["class"]}
        row |= {"call": number, "thread": call.get("thread", 0), "depth": call["depth"]}
        row |= {"parent": open_calls[-1] if open_calls else None}
        # A trace shares its lists between calls.
        row |= {side: lists.setdefault(str(call[side]), _tensors(call[side])) for side in ("inputs", "outputs")}
        rows.append(row)
        open_calls.append(number)
    columns = ["call", "thread", "depth", "parent", *_FIELDS, "inputs", "outputs"]
    frame = calls_frame(pd.DataFrame(rows, columns=columns))
    kinds = {call["path"]: call["class"] for call in calls}
    return TraceRecord(frame, tuple(ModuleInfo(path, kind, 0, 0) for path, kind in kinds.items()), {"model": name})


def _tensors(plain: list[Any]) -> Tensors:
    return tuple(TensorInfo(name, tuple(map(int, shape)), str(dtype), "") for name, shape, dtype in plain)


def calls_to_json(calls: list[Call]) -> str:
    """Encode calls as JSON, a line each, so that diffs of the file are legible."""
    lines = ",\n".join(json.dumps(call, ensure_ascii=False) for call in calls)
    return f'{{"format": "{_FORMAT}", "calls": [\n{lines}\n]}}\n'


def read_snapshot(path: Path) -> list[Call]:
    """Read a file of `calls_to_json`.

    Raises:
        ValueError: the file is no snapshot.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError
        calls: list[Call] = content["calls"]
        trace_from_calls(calls)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not a baseline; write it again with pytest --talkertrace-update") from error
    return calls
