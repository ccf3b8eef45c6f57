"""Training loops: their phases and rows, and that they train the same weights as without a recording."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from repo_paths import HELPERS, ROOT
from taps import every_way
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import talkerviz as tv
from talkerviz.recorder.training_steps import TRAINING_PHASES


class Net(nn.Module):
    """Two blocks and a head; the blocks may be checkpointed."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.1)) for _ in range(2))
        self.head = nn.Linear(8, 4)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if self.reentrant is None or not self.training:
                x = x + block(x)
            else:
                x = x + checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


def loader() -> DataLoader[Any]:
    torch.manual_seed(1)
    return DataLoader(
        TensorDataset(torch.randn(12, 8, requires_grad=True).detach(), torch.arange(12) % 4), batch_size=4
    )


def train(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    accumulate: int = 1,
    clip: bool = False,
    autocast: bool = False,
    hook: Callable[[nn.Module], None] | None = None,
) -> None:
    if hook is not None:
        hook(net)
    for number, (x, y) in enumerate(loader()):
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            loss = functional.cross_entropy(net(x.requires_grad_()), y)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        if (number + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()


def adamw(net: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=0.1, **options)


def double_gradients(net: nn.Module) -> None:
    """Register hooks of a user: one of a module, and one that changes a gradient."""
    head = net.get_submodule("head")
    head.register_full_backward_hook(lambda module, before, after: None)
    head.get_parameter("weight").register_hook(lambda gradient: gradient * 2)


@every_way
@pytest.mark.parametrize(
    ("reentrant", "optimizer", "options"),
    [
        (None, lambda net: adamw(net, foreach=True), {}),
        (None, lambda net: adamw(net, fused=True), {"clip": True}),
        (None, lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), {"autocast": True}),
        (False, adamw, {"accumulate": 3}),
        (True, adamw, {"hook": double_gradients}),
    ],
    ids=["foreach", "fused and clipped", "autocast", "checkpointed, accumulated", "reentrant, hooks"],
)
def test_weights_are_those_of_an_untraced_run(
    any_tap: str, reentrant: bool | None, optimizer: Any, options: dict[str, Any]
) -> None:
    weights = []
    for traced in (False, True):
        torch.manual_seed(0)
        net = Net(reentrant)
        updates = optimizer(net)
        torch.manual_seed(2)
        with tv.recording() if traced else nullcontext() as rec:
            train(net, updates, **options)
        weights.append([parameter.detach().clone() for parameter in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    trace = rec.trace  # type: ignore[union-attr]
    assert set(trace.calls["phase"]) <= set(TRAINING_PHASES)
    assert not trace.calls["error"].drop_duplicates().isin(["unfinished"]).any()


@every_way
def test_phases_and_frames_of_a_loop(any_tap: str) -> None:
    net = Net()
    with tv.recording() as rec:
        train(net, adamw(net))
    calls = rec.trace.calls
    top = calls[calls["depth"] == 0]
    of_step = top[top["frame"] == 1]
    assert of_step["path"][of_step["phase"] != "other"].tolist() == ["DataLoader", "net", "backward", "AdamW"]
    assert sorted(top["frame"].dropna().unique()) == [0, 1, 2, 3]  # the last is what follows the last update
    # A loader that has no more batches is asked as well.
    assert top["path"][top["path"] != "other"].iloc[-1] == "DataLoader"


@every_way
def test_phases_add_up_to_the_time_of_the_loop(any_tap: str) -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    optimizer = adamw(net)
    with tv.recording() as rec:
        for x, _ in loader():
            net(x).sum().backward()
            time.sleep(0.02)  # a part of the loop that dwarfs the recorder's own time
            optimizer.step()
    calls = rec.trace.calls
    top = calls[calls["depth"] == 0]
    ends = (top["host_start_ns"] + top["host_ns"]).to_numpy()
    gaps = top["host_start_ns"].to_numpy()[1:] - ends[:-1]
    assert gaps.sum() < 0.05 * (ends[-1] - top["host_start_ns"].iloc[0])


@every_way
def test_backward_passes_are_rows_by_module(any_tap: str) -> None:
    net = Net()
    with tv.recording() as rec:
        train(net, adamw(net))
    calls = rec.trace.calls
    backward = calls[(calls["phase"] == "backward") & (calls["frame"] == 1)]
    # Gradients of operations outside modules are in the rows of the modules around them.
    assert list(dict.fromkeys(backward["path"])) == [
        *("backward", "net", "net.head"),
        *("net.blocks.1", "net.blocks.1.2", "net.blocks.1.1", "net.blocks.1.0"),
        *("net.blocks.0", "net.blocks.0.2", "net.blocks.0.1", "net.blocks.0.0"),
    ]
    assert (backward["host_self_ns"] >= 0).all()


@every_way
@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_blocks_are_named(any_tap: str, reentrant: bool) -> None:
    net = Net(reentrant)
    with tv.recording() as rec:
        train(net, adamw(net))
    calls = rec.trace.calls
    again = calls[(calls["phase"] == "recompute") & (calls["frame"] == 1)]
    assert [path for path in again["path"] if path.count(".") == 2] == ["net.blocks.1", "net.blocks.0"]
    by_call = calls.set_index("call")
    around = again["parent"].map(by_call["phase"])
    assert set(around.dropna()) == {"backward", "recompute"}


def test_gradient_accumulation_has_micro_steps() -> None:
    net = Net()
    optimizer = adamw(net)
    with tv.recording() as rec:
        for _ in range(2):
            for x, y in loader():
                functional.cross_entropy(net(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    calls = rec.trace.calls
    passes = calls[(calls["path"] == "net") & (calls["phase"] == "forward")]
    assert passes[["frame", "step"]].to_numpy().tolist() == [[frame, step] for frame in (0, 1) for step in range(3)]


def test_validation_is_told_apart() -> None:
    net = Net()
    optimizer = adamw(net)
    with tv.recording() as rec:
        for _ in range(2):
            net.train()
            train(net, optimizer)
            net.eval()
            with torch.no_grad():
                for x, _ in loader():
                    net(x)
    calls = rec.trace.calls
    passes = calls[calls["path"] == "net"]
    assert passes["phase"][passes["phase"] != "backward"].tolist() == [*["forward"] * 3, *["validation"] * 3] * 2
    assert calls["frame"][calls["phase"] == "validation"].isna().all()


def test_groups_of_parameters() -> None:
    net = Net()
    optimizer = torch.optim.AdamW([{"params": net.blocks.parameters()}, {"params": net.head.parameters(), "lr": 0.5}])
    with tv.recording() as rec:
        train(net, optimizer)
    calls = rec.trace.calls
    assert calls["path"][calls["phase"] == "optimizer"].tolist() == ["AdamW", "AdamW.group_0", "AdamW.group_1"] * 3


def test_a_loop_without_an_optimizer() -> None:
    net = nn.Linear(8, 4)
    with tv.recording() as rec:
        for _ in range(3):
            net(torch.ones(1, 8)).sum().backward()
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter -= 0.1 * parameter.grad
    calls = rec.trace.calls
    assert calls["frame"][calls["phase"] == "forward"].tolist() == [0, 1, 2]


def test_two_optimizers_that_take_turns() -> None:
    judge, artist = nn.Linear(4, 1), nn.Linear(4, 4)
    first, second = adamw(judge), adamw(artist)
    with tv.recording() as rec:
        for x, _ in loader():
            image = artist(x[:, :4])
            judge(image.detach()).mean().backward()
            first.step()
            judge(image).mean().backward()
            second.step()
    calls = rec.trace.calls
    updates = calls[calls["phase"] == "optimizer"]
    assert updates["path"].tolist() == ["AdamW", "AdamW_2"] * 3
    assert updates["frame"].tolist() == [0, 0, 1, 1, 2, 2]
    assert "artist" in calls["path"][calls["phase"] == "backward"].tolist()


def test_gradients_without_training_are_no_loop() -> None:
    net = nn.Linear(4, 4).eval()
    with tv.recording() as rec:
        for _ in range(2):
            x = torch.ones(1, 4, requires_grad=True)
            torch.autograd.grad(net(x).sum(), x)
    assert rec.trace.calls["phase"].tolist() == ["forward"] * 2
    assert rec.trace.calls["frame"].tolist() == [0, 1]


def test_a_backward_pass_that_raises_and_graphs_that_are_kept() -> None:
    net = nn.Linear(4, 4)
    with tv.recording() as rec:
        loss = net(torch.ones(1, 4)).sum()
        loss.backward(retain_graph=True)
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()
        net(torch.ones(1, 4)).sum().backward()
    calls = rec.trace.calls
    assert calls["path"][calls["phase"] == "backward"].tolist().count("backward") == 4
    assert (calls["depth"][calls["path"] == "backward"] == 0).all()


def test_ranks_train_the_same_weights_by_ddp_and_fsdp2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HELPERS}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(HELPERS / "training_ranks.py"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("ddp0", "ddp1", "fsdp0", "fsdp1"):
        result = json.loads((tmp_path / f"{name}.json").read_text())
        assert result["equal"]
        assert result["moved"]
        prefix = "net.module" if name.startswith("ddp") else "net"
        assert {f"{prefix}.{layer}" for layer in (0, 1, 2)} <= set(result["backward"])
        assert [path for path in result["optimizer"] if path == "AdamW"] == ["AdamW"] * 3


def test_rows_of_a_loop_of_transformers_cover_its_time() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, get_linear_schedule_with_warmup

    torch.manual_seed(0)
    config = LlamaConfig(
        **dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), 256), num_hidden_layers=2, head_dim=64
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = get_linear_schedule_with_warmup(optimizer, 2, 8)
    batches = DataLoader([{"input_ids": torch.randint(256, (64,))} for _ in range(64)], batch_size=8)
    logged: list[float] = []
    with tv.recording() as rec:
        began = time.perf_counter_ns()
        for batch in batches:
            loss = model(**batch, labels=batch["input_ids"]).loss
            loss.backward()
            logged.append(float(nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            logged.append(loss.item())
        wall_ns = time.perf_counter_ns() - began
    table = rec.trace.table("phase")
    assert set(table["phase"]) == {"data", "forward", "backward", "optimizer", "other"}
    covered = table["total_ns"].sum() / wall_ns
    assert 0.95 <= covered <= 1.0
