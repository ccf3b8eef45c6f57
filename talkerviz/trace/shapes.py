"""A call's shapes in one short text."""

from __future__ import annotations

from talkerviz.trace.schema import TensorInfo

Tensors = tuple[TensorInfo, ...]


def shapes_text(inputs: Tensors, outputs: Tensors) -> str:
    """The first tensor in and the first out as `1x20x1024 → 1x20x2048`; empty where a call has neither."""
    if not inputs and not outputs:
        return ""
    first_in = inputs[0].shape_text if inputs else ""
    first_out = outputs[0].shape_text if outputs else ""
    return f"{first_in} → {first_out}".strip()
