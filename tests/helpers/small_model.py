"""A model of six modules, its calls as words, and its state before and after a recording."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import nn

import talkerviz as tv

DYNAMO = torch._dynamo.variables.nn_module
PLAIN_CALL = nn.Module.__call__


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Sequential(nn.Tanh(), nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


class Model(nn.Module):
    def __init__(self, block: Callable[[], nn.Module] = Block) -> None:
        super().__init__()
        self.block = block()
        self.last = nn.Sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.block(x))


BLOCK = [" block", "  block.first", "  block.second", "   block.second.0", "   block.second.1"]
CALLS = ["", *BLOCK, " last"]


def made(block: Callable[[], nn.Module] = Block) -> Model:
    torch.manual_seed(0)
    return Model(block)


def values(state: int = 1, rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(state))


def standing() -> list[Any]:
    return [nn.Module.__call__, nn.Module._replicate_for_data_parallel, DYNAMO.unpatched_nn_module_call]


def state(model: nn.Module) -> dict[str, Any]:
    """Every attribute of every module, by identity; of what holds hooks, parameters and children, all that it holds."""
    return {
        f"{path}.{name}": [(key, id(item)) for key, item in value.items()] if isinstance(value, dict) else id(value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
    }


class Noticing(nn.Module):
    """Knows how many of its calls were stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Identity(), nn.Sequential(nn.Identity())
        self.stopped = 0

    def forward(self, x: torch.Tensor, other: Any = None) -> torch.Tensor:
        try:
            return self.second(self.first(x))
        except KeyboardInterrupt:
            self.stopped += 1
            raise


class Row(NamedTuple):
    path: str
    parent: int | None
    depth: int
    thread: int
    start: int
    end: int
    error: str


def rows(trace: tv.Trace) -> list[Row]:
    """Return the calls, checked: parents are one level up, begin before and end after, on the same thread."""
    calls = trace.calls
    path, depth, thread, start, own = (
        calls[name].tolist() for name in ("path", "depth", "thread", "host_start_ns", "host_self_ns")
    )
    parent = [None if number is pd.NA else number for number in calls["parent"].tolist()]
    end = [begin + took for begin, took in zip(start, calls["host_ns"].tolist(), strict=True)]
    error = calls["error"].fillna("").tolist()
    found = [Row(*row) for row in zip(path, parent, depth, thread, start, end, error, strict=True)]
    assert calls["call"].tolist() == list(range(len(found)))
    assert min(own, default=0) >= 0
    for number, row in enumerate(found):
        above = None if row.parent is None else found[row.parent]
        if above is None:
            assert row.depth == 0
        else:
            assert (row.depth, row.thread) == (above.depth + 1, above.thread)
            assert row.parent < number
            assert above.start <= row.start <= row.end <= above.end
    return found


def tree(trace: tv.Trace, thread: int | None = None) -> list[str]:
    """Return a line a call: a blank for each level, its path without the root's name, its error."""
    return [
        " " * row.depth + row.path.removeprefix("model").removeprefix(".") + (f" !{row.error}" if row.error else "")
        for row in rows(trace)
        if thread in (None, row.thread)
    ]


def shapes(tensors: Any) -> list[tuple[str, tuple[int, ...]]]:
    return [(tensor.name, tensor.shape) for tensor in tensors]
