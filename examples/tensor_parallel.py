"""Layers split over ranks: each has some of the hidden numbers, and `all_reduce` adds up what they make of them.

    torchrun --standalone --nproc-per-node 2 -m talkerviz trace -o run.parquet examples.tensor_parallel:uneven
    talkerviz merge run.rank*.parquet -o run.parquet
    talkerviz show run.parquet --ranks
    talkerviz render run.parquet -f timeline -o ranks.svg

In `uneven` the last rank has four times as much to do as any other, which the others wait for. `even` is the same
model as torch's own DTensor splits it.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

WIDTH, HIDDEN, LAYERS, POSITIONS, PASSES = 512, 3600, 4, 128, 4


class Mlp(nn.Module):
    """Up, and down again; with `split`, of a part of the hidden numbers."""

    def __init__(self, hidden: int, split: bool) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, hidden)
        self.down = nn.Linear(hidden, WIDTH)
        self.split = split

    def forward(self, x: Tensor) -> Tensor:
        """What all ranks make of it together."""
        y = self.down(torch.relu(self.up(x)))
        if self.split:
            dist.all_reduce(y)
        return y


class Stack(nn.Module):
    """Layers behind each other."""

    def __init__(self, hidden: int, split: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Mlp(hidden, split) for _ in range(LAYERS))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        """Each adds to what it is given."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + layer(norm(x))
        return x


def uneven() -> tuple[nn.Module, Callable[[], None]]:
    """For `talkerviz trace`: plain modules that call `dist.all_reduce`."""
    rank, size = _begin()
    share = HIDDEN // (size + 3)
    return _runs(Stack(4 * share if rank == size - 1 else share, split=True))


def even() -> tuple[nn.Module, Callable[[], None]]:
    """For `talkerviz trace`: DTensor, which calls functional collectives, and waits where a result is used."""
    _, size = _begin()
    model = Stack(HIDDEN, split=False)
    mesh = init_device_mesh("cpu", (size,))
    for layer in model.layers:
        parallelize_module(layer, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return _runs(model)


def _begin() -> tuple[int, int]:
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    return dist.get_rank(), dist.get_world_size()


def _runs(model: nn.Module) -> tuple[nn.Module, Callable[[], None]]:
    x = torch.randn(POSITIONS, WIDTH)

    @torch.no_grad()
    def run() -> None:
        for _ in range(PASSES):
            model(x)

    return model, run
