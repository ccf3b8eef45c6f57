"""Mermaid document in the style of the project's origin, byte for byte.

Its faults are kept: calls in order of return, one id for all calls of a module, frames under "Prefill", no names of
more than four parts, and nothing after 200 nodes.
"""

from __future__ import annotations

from collections.abc import Iterator

from talkerviz.render.escape import mermaid_label
from talkerviz.trace import TensorInfo, TraceRecord
from talkerviz.trace.runs import as_one_run

_MAX_NODES = 200
_MAX_DOTS = 3
_CLASS_PREFIX = "Qwen3OmniMoe"
_CLASS_LENGTH = 20


def render_legacy_mermaid(trace: TraceRecord) -> str:
    """Render a trace as that document."""
    trace = as_one_run(trace)
    calls = trace.calls
    rows = list(zip(calls["path"], calls["class"], calls["inputs"], calls["outputs"], strict=True))
    shown = [rows[row] for row in _in_order_of_return(trace) if rows[row][0].count(".") <= _MAX_DOTS]
    lines = []
    before = None
    for path, class_name, inputs, outputs in shown[:_MAX_NODES]:
        node = f"P_{_identifier(path)}"
        lines.append(f'{node}["{_label(path, class_name, inputs, outputs)}"]')
        if before:
            lines.append(f"{before} --> {node}")
        before = node
    if len(shown) > _MAX_NODES:
        lines.append('P_truncated["... truncated (max 200 nodes / 499 edges)"]')
        lines.append(f"{before} --> P_truncated")
    body = "".join(f"        {line}\n" for line in lines)
    root = str(trace.facts.get("root", "model"))
    family = "Qwen3 Omni " if root == "talker" else ""
    title = f"# {family}Model Structure - {mermaid_label(root).capitalize()}\n\n"
    return f"{title}```mermaid\nflowchart TD\n    subgraph PPhase [Prefill Phase]\n{body}    end\n```\n"


def _in_order_of_return(trace: TraceRecord) -> Iterator[int]:
    """Yield row numbers, each after those of the calls inside it."""
    open_rows: list[tuple[int, int]] = []
    for row, depth in enumerate(trace.calls["depth"]):
        while open_rows and open_rows[-1][0] >= depth:
            yield open_rows.pop()[1]
        open_rows.append((depth, row))
    while open_rows:
        yield open_rows.pop()[1]


def _label(path: str, class_name: str, inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...]) -> str:
    parts = path.split(".")
    name = path if len(parts) <= 3 else f"{parts[0]}...{'.'.join(parts[-2:])}"
    lines = [mermaid_label(name), mermaid_label(class_name.removeprefix(_CLASS_PREFIX)[:_CLASS_LENGTH])]
    # The original saw neither keyword arguments nor nested tensors.
    first_in = next((tensor for tensor in inputs if tensor.name == "0"), None)
    first_out = next((tensor for tensor in outputs if tensor.name in ("output", "0")), None)
    if first_in and first_out:
        lines.append(f"{first_in.shape_text}->{first_out.shape_text}")
    return r"\n".join(lines)


def _identifier(path: str) -> str:
    return "".join(char if char.isascii() and char.isalnum() else "_" for char in path)
