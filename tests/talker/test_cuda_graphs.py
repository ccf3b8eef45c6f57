"""Replayed frames: run step by step here, and as a graph on CUDA."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from talker_parity import CONFIG, SPEECH, talker, tiny_prompt
from talker_prompts import a_prompt, ending_talker, picture

import talkerviz as tv
from talkerviz.recorder.phases.talker import TalkerPhases
from talkerviz.talker import GREEDY, Acceleration, Prompt, Sampling, build_talker, generate
from talkerviz.talker.generation.cuda_graphs import replay_frames

CUDA = torch.cuda.is_available()
needs_cuda = pytest.mark.skipif(not CUDA, reason="no CUDA device")


class NotAGraph:
    """Stands for a graph: a replay is the frame itself."""

    def __init__(self, decode: Callable[[], None], changed: object, generators: object) -> None:
        self.replay = decode


@pytest.fixture
def replaying(monkeypatch: pytest.MonkeyPatch) -> Any:
    model: Any = build_talker(CONFIG)
    monkeypatch.setattr(sys.modules["talkerviz.talker.generation.generate"], "capture", NotAGraph)
    model.acceleration = Acceleration(graphs=True)
    return model


def prompts() -> list[Prompt]:
    model = talker("tiny", "native")
    return [
        tiny_prompt(model, None, prompt_tokens=11, text_tokens=9, seed=0),
        tiny_prompt(model, picture(4, 2, 3, 2), prompt_tokens=12, text_tokens=6, seed=1),
    ]


@pytest.mark.parametrize("sampling", [GREEDY, SPEECH], ids=["greedy", "drawn"])
def test_codes_stay_what_they_are(replaying: Any, sampling: Sampling) -> None:
    for prompt in prompts():
        for frames in (1, 2, 9):  # more than there is text
            expected = generate(talker("tiny", "native"), prompt, frames, sampling, ignore_eos=True)
            assert torch.equal(generate(replaying, prompt, frames, sampling, ignore_eos=True), expected)


def test_rows_of_several_lengths(replaying: Any) -> None:
    expected = generate(talker("tiny", "native"), prompts(), 6, SPEECH, ignore_eos=True)
    for row, wanted in zip(generate(replaying, prompts(), 6, SPEECH, ignore_eos=True), expected, strict=True):
        assert torch.equal(row, wanted)


def test_the_end_of_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    own = a_prompt(talker("tiny", "native"))
    model = ending_talker([own])
    spoken = generate(model, own, 9)
    assert len(spoken) == 2
    monkeypatch.setattr(sys.modules["talkerviz.talker.generation.generate"], "capture", NotAGraph)
    model.acceleration = Acceleration(graphs=True)
    assert torch.equal(generate(model, own, 9), spoken)


def test_its_modules_are_the_same(replaying: Any) -> None:
    """What is captured is what runs uncaptured, call by call."""
    prompt = prompts()[0]
    captured, plain = (
        tv.record(
            model,
            lambda model=model: generate(model, prompt, 3, ignore_eos=True),  # type: ignore[misc]
            name="talker",
            phases=TalkerPhases,
        ).calls
        for model in (replaying, talker("tiny", "native"))
    )
    # The last frame's codes are summed too, for a frame that does not come.
    assert captured["path"].tolist()[:-1] == plain["path"].tolist()
    assert captured["frame"].tolist()[:-1] == plain["frame"].tolist()


def test_a_graph_needs_cuda() -> None:
    with pytest.raises(ValueError, match="CUDA graphs need a CUDA device, and the talker is on cpu"):
        replay_frames(talker("tiny", "native"))


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("sampling", [GREEDY, SPEECH], ids=["greedy", "drawn"])
def test_a_real_graph_speaks_the_same(sampling: Sampling) -> None:
    model: Any = build_talker(CONFIG, device="cuda")
    for rows in (1, 3):
        each = [a_prompt(model, (5 + row, 9), seed=row) for row in range(rows)]
        model.acceleration = Acceleration()
        expected = generate(model, each, 12, sampling, ignore_eos=True)
        replay_frames(model)
        for again in range(2):
            found = generate(model, each, 12, sampling, ignore_eos=True)
            assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True)), again
