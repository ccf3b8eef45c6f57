"""Training on two ranks by DDP and FSDP2, untraced and traced: `torchrun ... training_ranks.py FOLDER`."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import talkerviz as tv

folder = Path(sys.argv[1])


def weights_after_training(shards: bool, traced: bool) -> tuple[list[torch.Tensor], Any]:
    torch.manual_seed(0)
    net: nn.Module = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
    if shards:
        for layer in (net[0], net[2]):  # type: ignore[index]
            fully_shard(layer)
        fully_shard(net)
    else:
        net = DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    with tv.recording() if traced else nullcontext() as rec:
        for step in range(3):
            torch.manual_seed(100 * step + dist.get_rank())
            net(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    parameters = [getattr(p, "full_tensor", lambda p=p: p)().detach().clone() for p in net.parameters()]
    return parameters, rec and rec.trace


dist.init_process_group("gloo")
for shards in (False, True):
    plain, _ = weights_after_training(shards, False)
    traced, trace = weights_after_training(shards, True)
    calls = trace.calls
    result = {
        "equal": all(torch.equal(a, b) for a, b in zip(plain, traced, strict=True)),
        "moved": not torch.equal(plain[0], torch.zeros_like(plain[0])),
        "backward": calls["path"][calls["phase"] == "backward"].tolist(),
        "optimizer": calls["path"][calls["phase"] == "optimizer"].tolist(),
    }
    (folder / f"{'fsdp' if shards else 'ddp'}{dist.get_rank()}.json").write_text(json.dumps(result))
dist.destroy_process_group()
