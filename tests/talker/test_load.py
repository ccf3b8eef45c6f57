"""Streams that join and leave while others speak: what each says, and the times that are told of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from talker_parity import CONFIG, SPEECH, talker
from torch import Tensor

from talkerviz.talker import GREEDY, Sampling, Scenario, scenario_inputs
from talkerviz.talker.generation.generate import EagerStep
from talkerviz.talker.generation.load import (
    FRAME_NS,
    Answer,
    Request,
    is_as_alone,
    measure_load,
)

VOICE = CONFIG.speaker("ethan")
MS = 1_000_000


def request(number: int, frames: int, dtype: torch.dtype = torch.float32) -> Request:
    scenario = Scenario(prompt_tokens=3 + 2 * number, text_tokens=5 + number, seed=number)
    return Request(scenario_inputs(scenario, CONFIG, "cpu", dtype), frames, seed=number)


def silent() -> Callable[[Tensor], Tensor]:
    """Make a decoder to silence."""
    return lambda codes: torch.zeros(len(codes) * 1920)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sampling", [GREEDY, SPEECH], ids=["greedy", "sampled"])
def test_each_answer_is_what_it_is_alone(sampling: Sampling, dtype: torch.dtype) -> None:
    model = talker("tiny", "native", dtype=dtype)
    asked = [
        [request(0, 7, dtype), request(1, 2, dtype)],
        [request(2, 3, dtype), request(3, 5, dtype)],
        [request(4, 1, dtype)],
    ]
    load = measure_load(model, VOICE, silent, asked, sampling, chunk_frames=4)
    assert sorted(len(answer.codes) for answer in load.answers) == [1, 2, 3, 5, 7]
    assert load.frames == 18
    assert all(is_as_alone(model, VOICE, answer, sampling) for answer in load.answers)


def test_another_answer_is_not_as_alone() -> None:
    model = talker("tiny", "native")
    [answer] = measure_load(model, VOICE, silent, [[request(0, 2)]], GREEDY, chunk_frames=4).answers
    answer.codes[1] = answer.codes[1] + 1
    assert not is_as_alone(model, VOICE, answer, GREEDY)


def test_rows_join_when_they_arrive_and_are_not_computed_once_they_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    model = talker("tiny", "native")
    rows: list[int] = []
    step = EagerStep.__call__

    def counted(self: EagerStep) -> Any:
        rows.append(len(self.rows))
        return step(self)

    monkeypatch.setattr(EagerStep, "__call__", counted)
    measure_load(model, VOICE, silent, [[request(0, 6)], [request(1, 2)], [request(2, 4)]], GREEDY, chunk_frames=4)
    # One joins between two frames. The second has said its two frames with the first frame after it joined.
    assert rows == [1, 2, 2, 2, 2]
    rows.clear()
    spaced = [[request(0, 3)], [request(1, 3)]]
    measure_load(model, VOICE, silent, spaced, GREEDY, chunk_frames=4, interval_ns=3_000 * MS)
    assert rows == [1, 1, 1, 1]


def test_rows_leave_at_the_end_of_their_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    model = talker("tiny", "native")
    [answer] = measure_load(model, VOICE, silent, [[request(0, 5)]], GREEDY, chunk_frames=2).answers
    end = int(answer.codes[2][0])
    assert end not in [int(codes[0]) for codes in answer.codes[:2]]
    monkeypatch.setattr(EagerStep, "__init__", _ending_at(end))
    load = measure_load(model, VOICE, silent, [[request(0, 5)], [request(3, 5)]], GREEDY, chunk_frames=2)
    ended = min(load.answers, key=lambda each: len(each.codes))
    assert [samples // 1920 for _, samples in ended.chunks] == [1, 1]
    assert torch.equal(torch.stack(ended.codes), torch.stack(answer.codes[:2]))


def _ending_at(code: int) -> Callable[..., None]:
    original = EagerStep.__init__

    def init(self: EagerStep, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        self.eos = code

    return init


def test_chunks_grow_from_one_frame_and_times_add_up() -> None:
    model = talker("tiny", "native")
    [answer] = measure_load(model, VOICE, silent, [[request(0, 12)]], GREEDY, chunk_frames=4).answers
    assert [samples // 1920 for _, samples in answer.chunks] == [1, 2, 4, 4, 1]
    parts = (answer.waiting_ns, answer.setup_ns, answer.prefill_ns, answer.first_chunk_ns, answer.code2wav_ns)
    assert sum(parts) == answer.first_audio_ns
    assert all(part > 0 for part in parts)


def test_a_chunk_that_comes_after_the_sound_before_it_is_a_stall() -> None:
    answer = Answer(request(0, 7), stream=0, arrived_ns=1_000 * MS)
    frame = FRAME_NS // MS
    # The second is in time by 30 ms, the third late by 50 ms, and the fourth waits for two frames of the third.
    ready = [1_100, 1_100 + frame - 30, 1_100 + 3 * frame + 50, 1_100 + 3 * frame + 50 + 2 * frame]
    answer.chunks = [(at * MS, frames * 1920) for at, frames in zip(ready, (1, 2, 2, 2), strict=True)]
    answer.codes = [torch.zeros(16)] * 7
    assert answer.first_audio_ns == 100 * MS
    assert answer.stalls_ns == [50 * MS]
    assert answer.real_time_factor == pytest.approx(7 * frame / (ready[-1] - 1_000))


def test_a_request_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="positions: the talker has 65536"):
        measure_load(talker("tiny", "native"), VOICE, silent, [[request(0, 65536)]], GREEDY, chunk_frames=4)
