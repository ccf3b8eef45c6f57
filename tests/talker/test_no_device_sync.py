"""Frames without device synchronization: nothing is read on the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from talker_parity import CONFIG
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from talkerviz.talker import GREEDY, Sampling
from talkerviz.talker.generation.cuda_graphs import StaticFrame
from talkerviz.talker.generation.decode_step import SamplingState
from talkerviz.talker.model import moe
from talkerviz.talker.model.cache import KVCache
from talkerviz.talker.model.talker import TalkerForConditionalGeneration

DRAWN = Sampling(do_sample=True, temperature=0.9, top_k=50, top_p=0.9, repetition_penalty=1.05)
DEVICES = [
    "cpu",
    # Tensors on it need no device, but a torch that knows of it.
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.version.cuda, reason="this torch is built without CUDA")),
]


def made(device: str, dtype: torch.dtype, batch: int, sampling: Sampling) -> StaticFrame:
    """Return a frame to be captured, of tensors that have no numbers."""
    torch.set_default_dtype(dtype)
    with torch.device(device):
        talker = TalkerForConditionalGeneration(CONFIG)
        torch.set_default_dtype(torch.float32)
        # One row is not padded.
        padding = torch.zeros(batch, dtype=torch.long) if batch > 1 else None
        cache = KVCache(CONFIG.text, 20, torch.device(device), dtype, batch, padding)
        cache.length = 11
        within = KVCache(CONFIG.code_predictor, CONFIG.num_code_groups, torch.device(device), dtype, batch)
        spoken = torch.zeros(batch, CONFIG.text.vocab_size, dtype=torch.bool)
        generators: list[Any] = [None] * batch * sampling.do_sample  # torch's own
        choosing = SamplingState(sampling, torch.zeros(5, dtype=torch.long), spoken, generators)
        return StaticFrame(talker, cache, within, choosing, torch.zeros(1, batch, 1, dtype=torch.long))


@pytest.fixture(autouse=True)
def _without_numbers(monkeypatch: pytest.MonkeyPatch) -> Any:
    for kind in (nn.Linear, nn.Embedding):
        monkeypatch.setattr(kind, "reset_parameters", lambda self: None)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", ["_gathered_linear", "_grouped_linear"])
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_frame_reads_nothing_on_the_host(
    device: str, way: str, sampling: Sampling, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A CPU's own way reads the routing.
    monkeypatch.setattr(moe, "_reads_routing", lambda device: False)
    if way == "_grouped_linear":
        monkeypatch.setattr(moe, "_has_grouped_kernel", lambda device, dtype: True)
    with FakeTensorMode(), torch.no_grad():
        frame = made(device, torch.bfloat16, batch, sampling)
        frame()
    assert frame.codes.device.type == device
    assert frame.codes.shape == (batch, 16)


def test_a_look_at_the_numbers_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def looks(x: Tensor, weight: Tensor, expert: Tensor, scale: Tensor | None) -> Tensor:
        expert.max().item()
        return moe._gathered_linear(x, weight, expert)

    monkeypatch.setattr(moe, "_reads_routing", lambda device: False)
    monkeypatch.setattr(moe, "_expert_linear", looks)
    with FakeTensorMode(), torch.no_grad(), pytest.raises(DataDependentOutputException):
        made("cpu", torch.float32, 1, GREEDY)()
