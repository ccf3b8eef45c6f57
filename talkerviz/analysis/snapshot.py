"""What a run called, as text to commit beside a test: every call and its shapes, without times or devices."""

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
_KNOWN = ("path", "class", "phase", "frame", "step", "error")

Call = dict[str, Any]
"""A call as JSON: what is not there is left out; a tensor is its name, shape and dtype."""


def snapshot_calls(trace: TraceRecord) -> list[Call]:
    """The calls of the first whole run, thread by thread, in the order in which they began."""
    runs = whole_runs(trace)
    calls = trace.calls[trace.calls["run"] == runs[0]] if runs else trace.calls
    calls = calls.sort_values("thread", kind="stable")
    names = ["thread", "depth", *_KNOWN]
    rows = zip(*(calls[name].astype(object).where(calls[name].notna(), None) for name in names), strict=True)
    found = []
    for row, inputs, outputs in zip(rows, calls["inputs"], calls["outputs"], strict=True):
        known = {name: value for name, value in zip(names, row, strict=True) if value is not None}
        if not known["thread"]:
            del known["thread"]
        found.append(known | {"inputs": _plain(inputs), "outputs": _plain(outputs)})
    return found


def _plain(tensors: Tensors) -> list[Any]:
    return [[tensor.name, list(tensor.shape), tensor.dtype] for tensor in tensors]


def trace_from_calls(calls: list[Call], name: str = "model") -> TraceRecord:
    """Such calls as a trace without times, for what draws and compares traces.

    Raises:
        KeyError, TypeError, ValueError: they are no such calls.
    """
    rows, around = [], dict[int, list[int]]()
    lists: dict[str, Tensors] = {}
    for number, call in enumerate(calls):
        inside = around.setdefault(call.get("thread", 0), [])
        while inside and calls[inside[-1]]["depth"] >= call["depth"]:
            inside.pop()
        row = {name: call.get(name) for name in _KNOWN} | {"path": call["path"], "class": call["class"]}
        row |= {"call": number, "thread": call.get("thread", 0), "depth": call["depth"]}
        row |= {"parent": inside[-1] if inside else None}
        # A trace shares the few lists that it has between its calls.
        row |= {side: lists.setdefault(str(call[side]), _tensors(call[side])) for side in ("inputs", "outputs")}
        rows.append(row)
        inside.append(number)
    columns = ["call", "thread", "depth", "parent", *_KNOWN, "inputs", "outputs"]
    frame = calls_frame(pd.DataFrame(rows, columns=columns))
    kinds = {call["path"]: call["class"] for call in calls}
    return TraceRecord(frame, tuple(ModuleInfo(path, kind, 0, 0) for path, kind in kinds.items()), {"model": name})


def _tensors(plain: list[Any]) -> Tensors:
    return tuple(TensorInfo(name, tuple(map(int, shape)), str(dtype), "") for name, shape, dtype in plain)


def calls_to_json(calls: list[Call]) -> str:
    """Calls as JSON, a line each, so that a change of the file can be read."""
    lines = ",\n".join(json.dumps(call, ensure_ascii=False) for call in calls)
    return f'{{"format": "{_FORMAT}", "calls": [\n{lines}\n]}}\n'


def read_snapshot(path: Path) -> list[Call]:
    """What `calls_to_json` gave, from a file.

    Raises:
        ValueError: it is no such file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != _FORMAT:
            raise ValueError
        calls: list[Call] = found["calls"]
        trace_from_calls(calls)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not a baseline; write it again with pytest --talkertrace-update") from error
    return calls
