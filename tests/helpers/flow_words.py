"""The flow of tensors as words, to be compared with flows worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import talkerviz as tv
from talkerviz.api import Trace


def paths_of(trace: Trace) -> dict[int, str]:
    return {-1: "", **dict(zip(trace.calls["call"], trace.calls["path"].astype(object), strict=True))}


def flow_of(trace: Trace) -> list[str]:
    """`where.name(sources)` of every operation; `*` after a source marks `state`, `:` leads one that is not an `op`."""
    flow = trace.flow
    assert flow is not None
    paths = paths_of(trace)
    sources: list[list[str]] = [[] for _ in range(len(flow.ops))]
    for source, target, state in flow.edges.itertuples(index=False):
        assert source < target
        sources[target].append(f"{source}{'*' if state else ''}")
    return [
        (":" if op.kind != "op" else "")
        + ".".join([*paths[op.call].split(".")[1:], op.name])
        + f"({', '.join(sources[number])})"
        for number, op in enumerate(flow.ops.itertuples())
    ]


def follow(model: nn.Module, run: Callable[[], object], **options: Any) -> Trace:
    """Return the trace of one run, in which tensors are followed."""
    with tv.recording(model, measure="flow", **options) as rec:
        run()
    return rec.trace


@torch.no_grad()
def flow(model: nn.Module, *args: Any, **kwargs: Any) -> list[str]:
    return flow_of(follow(model, lambda: model(*args, **kwargs)))


class Does(nn.Module):
    """Runs a function; the modules given are its own, by name."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Any = None, y: Any = None) -> Any:
        return self.function(self, x, y)


X, Y = torch.arange(8.0).view(2, 4), torch.ones(2, 4)
