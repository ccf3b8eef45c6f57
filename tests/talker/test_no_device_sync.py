"""Frames without device synchronization: nothing is read on the host."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from talker_parity import CONFIG
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from talkerviz.talker import GREEDY, Prompt, Sampling
from talkerviz.talker.generation.generate import EagerStep, Row, StaticStep
from talkerviz.talker.model import moe
from talkerviz.talker.model.cache import KVCache
from talkerviz.talker.model.talker import TalkerForConditionalGeneration

DRAWN = Sampling(do_sample=True, temperature=0.9, top_k=50, top_p=0.9, repetition_penalty=1.05)
DEVICES = [
    "cpu",
    # Tensors on it need no device, but a torch that knows of it.
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.version.cuda, reason="this torch is built without CUDA")),
]


def static_step(device: str, dtype: torch.dtype, batch: int, sampling: Sampling) -> StaticStep:
    """Return a frame to be captured, of tensors that have no numbers, for rows that have spoken one frame."""
    torch.set_default_dtype(dtype)
    with torch.device(device):
        talker = TalkerForConditionalGeneration(CONFIG)
        torch.set_default_dtype(torch.float32)
        eager = EagerStep(talker, sampling)
        eager.rows = [row_after_a_frame(talker, 11 + number) for number in range(batch)]
        step = StaticStep(eager, 9)
        generators: list[Any] = [None] * batch * sampling.do_sample  # torch's own
        step.state = replace(step.state, generators=generators)
        return step


def row_after_a_frame(talker: TalkerForConditionalGeneration, prompt_tokens: int) -> Row:
    hidden = CONFIG.text.hidden_size
    weight = talker.codec_head.weight
    prompt = Prompt(*(weight.new_zeros(1, tokens, hidden) for tokens in (prompt_tokens, 4, 1)))
    cache = KVCache(CONFIG.text, weight.device, weight.dtype)
    cache.length = prompt_tokens
    row = Row(0, prompt, cache, None, torch.zeros(1, CONFIG.text.vocab_size, dtype=torch.bool), frames=1)
    row.codes = torch.zeros(1, CONFIG.num_code_groups, dtype=torch.long)
    row.known_embeds = weight.new_zeros(1, CONFIG.num_code_groups - 1, hidden)
    return row


@pytest.fixture(autouse=True)
def _without_numbers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys.modules["talkerviz.talker.generation.generate"], "capture", lambda *frame: None)
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
        frame = static_step(device, torch.bfloat16, batch, sampling)
        frame.decode()
    assert frame.codes.device.type == device
    assert frame.codes.shape == (batch, 16)


def test_a_look_at_the_numbers_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def looks(x: Tensor, weight: Tensor, expert: Tensor, scale: Tensor | None) -> Tensor:
        expert.max().item()
        return moe._gathered_linear(x, weight, expert)

    monkeypatch.setattr(moe, "_reads_routing", lambda device: False)
    monkeypatch.setattr(moe, "_expert_linear", looks)
    with FakeTensorMode(), torch.no_grad(), pytest.raises(DataDependentOutputException):
        static_step("cpu", torch.float32, 1, GREEDY).decode()
