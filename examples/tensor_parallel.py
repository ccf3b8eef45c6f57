"""Tensor parallelism: each rank has some hidden units of each layer, and `all_reduce` sums the partial outputs.

    torchrun --standalone --nproc-per-node 2 -m talkerviz trace call -o run.parquet examples.tensor_parallel:uneven
    talkerviz merge run.rank*.parquet -o run.parquet
    talkerviz show run.parquet --ranks
    talkerviz render run.parquet -f timeline -o ranks.svg

In `uneven` the last rank has four times the work of the others, which wait for it. `even` is the same model split by
torch's DTensor.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

WIDTH, HIDDEN, LAYERS, POSITIONS, PASSES = 512, 3600, 4, 128, 4


class Mlp(nn.Module):
    """Feed-forward layer; with `split`, a rank's part of the hidden units."""

    def __init__(self, hidden: int, split: bool) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, hidden)
        self.down = nn.Linear(hidden, WIDTH)
        self.split = split

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer; with `split`, sum the partial outputs of all ranks."""
        y = self.down(torch.relu(self.up(x)))
        if self.split:
            dist.all_reduce(y)
        return y


class Stack(nn.Module):
    """Stack of residual layers."""

    def __init__(self, hidden: int, split: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Mlp(hidden, split) for _ in range(LAYERS))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers, each added to its input."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + layer(norm(x))
        return x


def uneven() -> tuple[nn.Module, Callable[[], None]]:
    """Build a stack of plain modules that call `dist.all_reduce`, for `talkerviz trace`."""
    rank, size = _begin()
    share = HIDDEN // (size + 3)
    return _runs(Stack(4 * share if rank == size - 1 else share, split=True))


def even() -> tuple[nn.Module, Callable[[], None]]:
    """Build a stack split by DTensor, whose functional collectives wait on first use, for `talkerviz trace`."""
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
