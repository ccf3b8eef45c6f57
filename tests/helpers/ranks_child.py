"""What `test_distributed.py` has two processes do: `torchrun ... ranks_child.py FOLDER`."""

from __future__ import annotations

import json
import shutil
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor, nn

import talkerviz as tv
from examples import tensor_parallel
from talkerviz.recorder import recording as recorder
from talkerviz.recorder.distributed.clock_sync import exchange_clocks

folder = Path(sys.argv[1])
AHEAD_NS = 5_000_000_000
LATE_SECONDS = 0.05


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        dist.all_reduce(x)
        return x


class Kinds(nn.Module):
    """Calls one of each; `wrong` has one fail."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.alone = dist.new_group([dist.get_rank()])
        self.wrong = False

    def forward(self, x: Tensor) -> Tensor:
        rank, other = dist.get_rank(), 1 - dist.get_rank()
        parts, whole, part = [torch.empty(4), torch.empty(4)], torch.empty(8), torch.empty(2)
        self.inner(x)
        dist.all_reduce(x, group=self.alone)
        dist.all_gather(parts, x)
        dist.all_gather_into_tensor(whole, x)
        dist.reduce_scatter_tensor(part, x)
        dist.all_to_all_single(torch.empty(4), x)
        dist.broadcast(x, 1)
        dist.reduce(x, 0)
        dist.gather(x, parts if rank == 0 else None, dst=0)
        dist.scatter(x, parts if rank == 0 else None, src=0)
        dist.barrier()
        (dist.send if rank == 0 else dist.recv)(x, other, tag=7)
        work = (dist.irecv if rank == 0 else dist.isend)(x, other)
        assert work is not None
        later = dist.all_reduce(x, async_op=True)
        work.wait()
        later.wait()
        later.wait()  # is over by now
        with torch.inference_mode():
            y = functional.all_reduce(x, "sum", dist.group.WORLD)
            y = functional.all_gather_tensor(y + 1, 0, dist.group.WORLD)
        if self.wrong:
            dist.all_gather_into_tensor(torch.empty(3), x)
        return y * 1  # which waits


def is_untouched() -> bool:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    names = ("c10d::allreduce_", "_c10d_functional::wait_tensor")
    return vars(dist.Work)["wait"] is WAIT and not any(has_kernel(name, "BackendSelect") for name in names)


WAIT = vars(dist.Work)["wait"]
dist.init_process_group("gloo")
rank = dist.get_rank()
said: dict[str, Any] = {}

for name, target in (("plain", tensor_parallel.uneven), ("dtensor", tensor_parallel.even)):
    model, run = target()
    for measure in (None, "flow", "cost"):
        file = folder / f"{name}{measure or ''}.parquet"
        tv.record(model, run, file=file, measure=measure, clock="none" if measure else "cpu")

kinds = Kinds()
with tv.recording(kinds) as outer:
    kinds(torch.ones(4))
    with tv.recording(kinds, file=folder / "kinds.parquet") as rec, torch.no_grad():
        kinds(torch.ones(4))
    said["untouched too soon"] = is_untouched()
said["file"] = rec.file.name
outer.trace.save(folder / f"outer.rank{rank}.parquet")
said["untouched"] = is_untouched()

kinds.wrong = True
try:
    tv.record(kinds, lambda: kinds(torch.ones(4)), file=folder / "wrong.parquet")
except Exception as error:
    said["raised"] = type(error).__name__
said["untouched after an error"] = is_untouched()
kinds.wrong = False

compiled = torch.compile(lambda x: functional.all_reduce(x * 2, "sum", dist.group.WORLD) + 1, backend="aot_eager")
compiled(torch.ones(4))
assert tv.record(kinds, lambda: compiled(torch.ones(4)), file=folder / "compiled.parquet") is not None

recorder._BATCH = 8
with tv.recording(kinds, file=folder / "written.parquet"):
    kinds(torch.ones(4))
    kinds(torch.ones(4))
    shutil.copy(folder / f"written.rank{rank}.parquet.partial", folder / f"half.rank{rank}.parquet.partial")


class Groups(nn.Module):
    """Begins a collective in each of two groups of the same ranks, in the other order on rank 1."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = [dist.new_group([0, 1]), dist.new_group([0, 1])]

    def forward(self, x: Tensor) -> Tensor:
        works = [dist.all_reduce(x.clone(), group=group, async_op=True) for group in self.groups[:: 1 - 2 * rank]]
        for work in works:
            assert work is not None
            work.wait()
        return x


class Layer(nn.Linear):
    """A layer that is slow on the second rank."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(LATE_SECONDS * rank)
        return super().forward(x)


groups = Groups()
with tv.recording(groups, file=folder / "groups.parquet"):
    for _ in range(3):
        groups(torch.ones(4))

# The second rank begins to record two collectives later, and ends one earlier; then both record again.
inner = Inner()
with tv.recording(inner, file=folder / "late.parquet") if rank == 0 else nullcontext():
    for _ in range(2):
        inner(torch.ones(4))
    with tv.recording(inner, file=folder / "late.parquet") if rank == 1 else nullcontext():
        for _ in range(3):
            inner(torch.ones(4))
    inner(torch.ones(4))
began = time.monotonic()
with tv.recording(inner, file=folder / "late.parquet") if rank == 0 else nullcontext() as alone:
    inner(torch.ones(4))
said["seconds alone"] = time.monotonic() - began
said["again"] = alone and alone.file.name

ddp = nn.parallel.DistributedDataParallel(nn.Sequential(Layer(8, 8), nn.Linear(8, 8)))
with tv.recording(ddp, file=folder / "ddp.parquet"):
    for _ in range(3):
        ddp(torch.ones(2, 8)).sum().backward()

store = dist.distributed_c10d._get_default_store()
said["clocks"] = [exchange_clocks(store, rank, 2, lambda: perf_counter_ns() + rank * AHEAD_NS) for _ in range(2)]
(folder / f"said{rank}.json").write_text(json.dumps(said))
dist.destroy_process_group()
