"""Ways to compile the small model or its block."""

from __future__ import annotations

from typing import Any

import torch
from small_model import Block, Model


class Broken(Block):
    """Cannot be one graph."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.second(x)


def wrapped(model: Model, backend: Any) -> None:
    model.block = torch.compile(model.block, backend=backend)


def in_place(model: Model, backend: Any) -> None:
    model.block.compile(backend=backend)


def by_forward(model: Model, backend: Any) -> None:
    model.block.forward = torch.compile(model.block.forward, backend=backend)


def whole(model: Model, backend: Any) -> None:
    model.compile(backend=backend)
