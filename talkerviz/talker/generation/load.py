"""A talker and a code2wav under load: streams that come and go, decoded together, and the times of each.

Shapes: F frames, G code groups.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns, sleep

import torch
from torch import Tensor

from talkerviz.talker.generation.generate import EagerStep, Frame, Row, check_positions, generate
from talkerviz.talker.generation.prompt import ThinkerOutputs, assemble_prompt
from talkerviz.talker.generation.sampling import Sampling
from talkerviz.talker.model.code2wav_config import SAMPLE_RATE
from talkerviz.talker.model.talker import TalkerForConditionalGeneration

FRAME_NS = 80_000_000
"""Speech of a frame, ns."""

Decoder = Callable[[Tensor], Tensor]
"""Decoder of one stream: from the codes of its next chunk [F, G], on the CPU, to samples [n]."""


@dataclass(frozen=True)
class Request:
    """A speech that is asked for.

    Attributes:
        thinker: what to speak.
        frames: maximum number of frames of 80 ms.
        seed: random seed of its samples.
    """

    thinker: ThinkerOutputs
    frames: int
    seed: int


@dataclass(eq=False)
class Answer:
    """The codes of a request, and its times in ns.

    Attributes:
        request: what was asked for.
        stream: number of the stream that asked.
        arrived_ns: when it arrived.
        waiting_ns: time until it was its turn.
        setup_ns: time in the projections that make its prompt.
        prefill_ns: time in the decoder's pass over the prompt.
        first_chunk_ns: time from there to the codes of the first chunk.
        code2wav_ns: time from there to its samples.
        chunks: for each chunk when its samples were there, ns, and their number.
        codes: codes of each frame [G].
    """

    request: Request
    stream: int
    arrived_ns: int
    waiting_ns: int = 0
    setup_ns: int = 0
    prefill_ns: int = 0
    first_chunk_ns: int = 0
    code2wav_ns: int = 0
    chunks: list[tuple[int, int]] = field(default_factory=list)
    codes: list[Tensor] = field(default_factory=list)

    @property
    def first_audio_ns(self) -> int:
        """Time to the first samples, ns."""
        return self.chunks[0][0] - self.arrived_ns

    @property
    def real_time_factor(self) -> float:
        """Seconds of speech in a second, from the arrival to the last samples."""
        return len(self.codes) * FRAME_NS / (self.chunks[-1][0] - self.arrived_ns)

    @property
    def stalls_ns(self) -> list[int]:
        """Silences of a listener, ns: chunks that come later than the sound before them has been played."""
        stalls = []
        played_ns = self.chunks[0][0]
        for ready_ns, samples in self.chunks:
            if ready_ns > played_ns:
                stalls.append(ready_ns - played_ns)
            played_ns = max(played_ns, ready_ns) + samples * 1_000_000_000 // SAMPLE_RATE
        return stalls


@dataclass
class Load:
    """Answers of one number of streams.

    Attributes:
        streams: number of streams.
        answers: one for each request that spoke.
        total_ns: time in all, ns.
        code2wav_ns: time of it in code2wav, ns.
    """

    streams: int
    answers: list[Answer] = field(default_factory=list)
    total_ns: int = 0
    code2wav_ns: int = 0

    @property
    def frames(self) -> int:
        """Number of frames of all answers."""
        return sum(len(answer.codes) for answer in self.answers)

    @property
    def streams_in_time(self) -> int:
        """Number of streams none of whose answers stalled."""
        return self.streams - len({answer.stream for answer in self.answers if answer.stalls_ns})


class _Speech:
    """An answer on its way: its row, and the codes that are not yet sound."""

    def __init__(self, answer: Answer, row: Row, decode: Decoder) -> None:
        self.answer = answer
        self.row = row
        self.decode = decode
        self.pending: list[Tensor] = []
        self.chunk_frames = 1


def measure_load(
    talker: TalkerForConditionalGeneration,
    speaker: int,
    new_decoder: Callable[[], Decoder],
    requests: Sequence[Sequence[Request]],
    sampling: Sampling,
    chunk_frames: int,
    interval_ns: int = 0,
    on_frame: Callable[[int], None] = lambda done: None,
) -> Load:
    """Serve streams at once: rows join when they arrive, one between two frames, and leave when they end.

    A stream's next request arrives when its last one has been answered. The chunks of an answer have 1 frame, then 2, 4
    and so on to `chunk_frames`.

    Args:
        talker: the native talker.
        speaker: the speaker's codec token.
        new_decoder: function that makes the decoder of a stream.
        requests: requests of each stream.
        sampling: sampling of first codes; seeds are the requests'.
        chunk_frames: frames of the longest chunk.
        interval_ns: time between the arrivals of two streams' first requests, ns.
        on_frame: callback for the number of frames done.

    Raises:
        ValueError: a request does not fit in the talker's positions.
    """
    return _Server(talker, speaker, new_decoder, sampling, chunk_frames, on_frame).serve(requests, interval_ns)


class _Server:
    def __init__(
        self,
        talker: TalkerForConditionalGeneration,
        speaker: int,
        new_decoder: Callable[[], Decoder],
        sampling: Sampling,
        chunk_frames: int,
        on_frame: Callable[[int], None],
    ) -> None:
        self.talker = talker
        self.speaker = speaker
        self.new_decoder = new_decoder
        self.chunk_frames = chunk_frames
        self.on_frame = on_frame
        self.step = EagerStep(talker, sampling)
        self.speeches: dict[int, _Speech] = {}
        self.frames = 0
        self.code2wav_ns = 0

    @torch.no_grad()
    def serve(self, requests: Sequence[Sequence[Request]], interval_ns: int) -> Load:
        """Serve all requests."""
        begin_ns = perf_counter_ns()
        later: list[Iterator[Request]] = [iter(stream) for stream in requests]
        arrivals: list[tuple[int, int, Request]] = []  # a heap; of each stream there is one at most

        def ask(stream: int, arrived_ns: int) -> None:
            request = next(later[stream], None)
            if request is not None:
                heapq.heappush(arrivals, (arrived_ns, stream, request))

        for stream in range(len(requests)):
            ask(stream, begin_ns + stream * interval_ns)
        load = Load(len(requests))
        number = 0
        while arrivals or self.speeches:
            ended: list[Answer] = []
            wait_ns = arrivals[0][0] - perf_counter_ns() if arrivals else 1
            if wait_ns <= 0:
                arrived_ns, stream, request = heapq.heappop(arrivals)
                ended += self._join(number, Answer(request, stream, arrived_ns))
                number += 1
            if self.step.rows:
                ended += self._deliver(self.step())
            elif not ended and wait_ns > 0:
                sleep(wait_ns / 1e9)
            for answer in ended:
                if answer.codes:
                    load.answers.append(answer)
                ask(answer.stream, perf_counter_ns())
        load.total_ns, load.code2wav_ns = perf_counter_ns() - begin_ns, self.code2wav_ns
        return load

    def _join(self, number: int, answer: Answer) -> list[Answer]:
        """Read a request's prompt and decode its first frame; return the answer if it has ended."""
        request, begin_ns = answer.request, perf_counter_ns()
        answer.waiting_ns = begin_ns - answer.arrived_ns
        prompt = assemble_prompt(self.talker, self.talker.config, request.thinker, self.speaker)
        check_positions(self.talker, [prompt], request.frames)
        row = self.step.new_row(number, prompt, request.seed, request.frames)
        setup_ns = self._now()
        hidden, first_code = self.step.prefill([row])
        prefill_ns = self._now()
        answer.setup_ns, answer.prefill_ns = setup_ns - begin_ns, prefill_ns - setup_ns
        self.speeches[number] = _Speech(answer, row, self.new_decoder())
        return self._deliver(self.step.first_frame([row], hidden, first_code), only=number)

    def _deliver(self, frame: Frame, only: int | None = None) -> list[Answer]:
        """Hand out a frame's codes, decode chunks that are complete, and return the answers that have ended."""
        codes = dict(zip(frame.rows, frame.codes.cpu(), strict=True))
        ended = []
        for number in list(self.speeches) if only is None else [only]:
            speech = self.speeches[number]
            ends = number not in codes
            if not ends:
                speech.answer.codes.append(codes[number])
                speech.pending.append(codes[number])
                ends = speech.row.frames == speech.answer.request.frames
            if len(speech.pending) == speech.chunk_frames or (ends and speech.pending):
                self._decode(speech)
            if ends:
                del self.speeches[number]
                self.step.rows = [row for row in self.step.rows if row is not speech.row]
                ended.append(speech.answer)
        self.frames += len(codes)
        self.on_frame(self.frames)
        return ended

    def _decode(self, speech: _Speech) -> None:
        """Decode the codes that a speech has gathered."""
        answer, begin_ns = speech.answer, perf_counter_ns()
        samples = speech.decode(torch.stack(speech.pending)).cpu()
        ready_ns = perf_counter_ns()
        self.code2wav_ns += ready_ns - begin_ns
        if not answer.chunks:
            answer.code2wav_ns = ready_ns - begin_ns
            before_ns = answer.waiting_ns + answer.setup_ns + answer.prefill_ns + answer.code2wav_ns
            answer.first_chunk_ns = ready_ns - answer.arrived_ns - before_ns
        answer.chunks.append((ready_ns, len(samples)))
        speech.pending = []
        speech.chunk_frames = min(2 * speech.chunk_frames, self.chunk_frames)

    def _now(self) -> int:
        """Return the time once the device has done what it was asked to."""
        if self.talker.codec_head.weight.is_cuda:
            torch.cuda.synchronize(self.talker.codec_head.weight.device)
        return perf_counter_ns()


def is_as_alone(talker: TalkerForConditionalGeneration, speaker: int, answer: Answer, sampling: Sampling) -> bool:
    """Generate an answer's codes alone, and return True if they are the same."""
    request = answer.request
    prompt = assemble_prompt(talker, talker.config, request.thinker, speaker)
    [codes] = generate(talker, [prompt], request.frames, sampling, seeds=[request.seed])
    return torch.equal(codes.cpu(), torch.stack(answer.codes))
