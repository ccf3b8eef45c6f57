"""Layers one behind the other, on a rank each: what one makes of a batch it sends to the next.

    torchrun --standalone --nproc-per-node 4 -m talkerviz trace -o run.parquet examples.pipeline:stage
    talkerviz merge run.rank*.parquet -o run.parquet
    talkerviz show run.parquet --ranks
    talkerviz render run.parquet -f timeline -o ranks.svg

Ranks wait in `recv` until the first batch has come to them, which is the pipeline's bubble.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

WIDTH, POSITIONS, BATCHES = 768, 64, 6


class Stage(nn.Module):
    """One rank's part."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.rank, self.size = rank, size
        self.layers = nn.Sequential(*(layer for _ in range(2) for layer in (nn.Linear(WIDTH, WIDTH), nn.GELU())))
        self.sent: list[dist.Work] = []

    def forward(self, x: Tensor) -> Tensor:
        """A batch, of which all but the first rank are sent what the one before made of it."""
        if self.rank > 0:
            dist.recv(x, self.rank - 1)
        y = self.layers(x)
        if self.rank < self.size - 1:
            self.sent.append(dist.isend(y, self.rank + 1))
        return y


def stage() -> tuple[nn.Module, Callable[[], None]]:
    """For `talkerviz trace`."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = Stage(dist.get_rank(), dist.get_world_size())

    @torch.no_grad()
    def run() -> None:
        for _ in range(BATCHES):
            model(torch.randn(POSITIONS, WIDTH))
        while model.sent:
            model.sent.pop(0).wait()

    return model, run
