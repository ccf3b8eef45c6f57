"""A small trace with everything a renderer meets, made by hand so that its times never change."""

from __future__ import annotations

from typing import Any

import pandas as pd

from talkerviz.api import Trace
from talkerviz.trace import ModuleInfo, TensorInfo
from talkerviz.trace.calls_table import calls_frame


def tensor(name: str, *shape: int) -> TensorInfo:
    return TensorInfo(name, shape, "float32", "cpu")


def call(number: int, parent: int | None, depth: int, path: str, kind: str, host: int, own: int, **more: Any) -> Any:
    row = {
        "call": number,
        "parent": parent,
        "depth": depth,
        "thread": 0,
        "path": path,
        "class": kind,
        "phase": "decode",
        "frame": 0,
        "step": None,
        "run": 0,
        "inputs": (tensor("0", 1, 4),),
        "outputs": (tensor("output", 1, 4),),
        "host_start_ns": number * 1000,
        "host_ns": host,
        "host_self_ns": own,
        "error": None,
    }
    return row | more


def make_trace(rows: list[Any], **facts: Any) -> Trace:
    columns = ["call", "parent", "depth", "thread", "path", "class", "phase", "frame", "step", "run"]
    columns += ["inputs", "outputs"]
    columns += ["host_start_ns", "host_ns", "host_self_ns", "error"]
    modules = tuple(ModuleInfo(path, "Module", 0, 0) for path in dict.fromkeys(row["path"] for row in rows))
    return Trace(calls_frame(pd.DataFrame(rows, columns=columns)), modules, {"root": "net", "model": "Net"} | facts)


def sample_trace() -> Trace:
    setup = {"phase": "setup", "frame": None}
    rows = [
        call(
            0, None, 0, "net.embed", "Embedding", 500, 500, **setup, inputs=(TensorInfo("0", (1, 4), "int64", "cpu"),)
        ),
        call(1, None, 0, "net", "Net", 9_000, 1_000),
    ]
    for layer in range(3):
        block = 2 + 2 * layer
        rows.append(call(block, 1, 1, f"net.layers.{layer}", "Block", 2_000, 800))
        rows.append(call(block + 1, block, 2, f"net.layers.{layer}.proj", "Linear", 1_200, 1_200))
    rows.append(call(8, 1, 1, "net.head", "Linear", 2_000, 2_000, outputs=(tensor("logits", 1, 9), tensor("aux", 2))))
    rows.append(call(9, None, 0, "net", "Net", 3_000, 1_500, frame=1, inputs=(), outputs=()))
    rows.append(call(10, 9, 1, "net.head", "Linear", 1_500, 1_500, frame=1, outputs=(), error="ValueError"))
    return make_trace(rows, device="cpu", dtype="float32")
