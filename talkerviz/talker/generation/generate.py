"""The generation loop: from prompts to frames of codes.

A frame is one pass of the decoder, which gives its first code, and one of the code predictor for each other code.

Shapes: B rows, S tokens, G code groups, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import overload

import torch
from torch import Tensor

from talkerviz.talker.generation.compile import uncompiled
from talkerviz.talker.generation.cuda_graphs import capture
from talkerviz.talker.generation.prompt import Prompt
from talkerviz.talker.generation.sampling import (
    GREEDY,
    Sampling,
    SamplingState,
    sample_first_code,
    sample_residual_code,
    suppressed_codes,
)
from talkerviz.talker.model.cache import FIRST_POSITIONS, Cache, KVCache, RowCaches, StaticCache
from talkerviz.talker.model.talker import TalkerForConditionalGeneration


@dataclass(frozen=True)
class Frame:
    """80 ms of speech of each row that still speaks.

    Attributes:
        rows: numbers of the prompts, ascending.
        codes: codes of each, int64 [len(rows), G].
    """

    rows: tuple[int, ...]
    codes: Tensor


@overload
def generate(
    talker: TalkerForConditionalGeneration,
    prompts: Prompt,
    frames: int,
    sampling: Sampling = ...,
    *,
    ignore_eos: bool = ...,
    on_frame: Callable[[int], None] | None = ...,
) -> Tensor: ...


@overload
def generate(
    talker: TalkerForConditionalGeneration,
    prompts: Sequence[Prompt],
    frames: int,
    sampling: Sampling = ...,
    *,
    seeds: Sequence[int] | None = ...,
    ignore_eos: bool = ...,
    on_frame: Callable[[int], None] | None = ...,
) -> list[Tensor]: ...


@torch.no_grad()
def generate(
    talker: TalkerForConditionalGeneration,
    prompts: Prompt | Sequence[Prompt],
    frames: int,
    sampling: Sampling = GREEDY,
    *,
    seeds: Sequence[int] | None = None,
    ignore_eos: bool = False,
    on_frame: Callable[[int], None] | None = None,
) -> Tensor | list[Tensor]:
    """Generate the codes of a prompt, or of several at once, each up to its end of speech.

    Args:
        talker: the native talker.
        prompts: from `assemble_prompt`, one or several.
        frames: maximum number of frames of 80 ms.
        sampling: sampling of first codes; greedy by default.
        seeds: random seed of each of several prompts; by default that of `sampling` for all.
        ignore_eos: never generate the end of speech, so that there are `frames` frames.
        on_frame: callback for the number of frames done, after each.

    Returns:
        Codes [generated frames, G], int64; for several prompts a list of them.

    Raises:
        ValueError: the frames do not fit in the talker's positions, or there is not a seed for each prompt.
    """
    several = [prompts] if isinstance(prompts, Prompt) else prompts
    codes: list[list[Tensor]] = [[] for _ in several]
    for done, frame in enumerate(stream(talker, several, frames, sampling, seeds=seeds, ignore_eos=ignore_eos), 1):
        for row, row_codes in zip(frame.rows, frame.codes, strict=True):
            codes[row].append(row_codes)
        if on_frame is not None:
            on_frame(done)
    empty = torch.empty(0, talker.config.num_code_groups, dtype=torch.long, device=talker.codec_head.weight.device)
    stacked = [torch.stack(row) if row else empty for row in codes]
    return stacked[0] if isinstance(prompts, Prompt) else stacked


@torch.no_grad()
def stream(
    talker: TalkerForConditionalGeneration,
    prompts: Sequence[Prompt],
    frames: int,
    sampling: Sampling = GREEDY,
    *,
    seeds: Sequence[int] | None = None,
    ignore_eos: bool = False,
) -> Iterator[Frame]:
    """Yield each frame once it is decoded, until every row has ended; arguments are those of `generate`.

    Raises:
        ValueError: as `generate`, with the first frame.
    """
    if seeds is None:
        seeds = [sampling.seed] * len(prompts)
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts: give one for each")
    if frames < 1 or not prompts:
        return
    check_positions(talker, prompts, frames)
    eager = EagerStep(talker, sampling, ignore_eos=ignore_eos)
    step: Callable[[], Frame] = eager
    rows = [
        eager.new_row(number, prompt, seed, frames)
        for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
    ]
    frame = eager.join(rows)
    for done in range(1, frames + 1):
        if not frame.rows:
            return
        yield frame
        if done == frames:
            return
        if done == 1 and talker.acceleration.graphs:
            step = StaticStep(eager, frames)
        frame = step()


def check_positions(talker: TalkerForConditionalGeneration, prompts: Sequence[Prompt], frames: int) -> None:
    """Check that prompts and their frames fit in the talker's positions.

    Raises:
        ValueError: they do not.
    """
    # The last frame's codes are not read back.
    positions = max(prompt.inputs_embeds.shape[1] for prompt in prompts) + frames - 1
    if positions > talker.config.text.max_position_embeddings:
        raise ValueError(f"{positions} positions: the talker has {talker.config.text.max_position_embeddings}")


@dataclass(eq=False)
class Row:
    """One prompt while it is spoken.

    Attributes:
        number: its number among the prompts.
        prompt: from `assemble_prompt`.
        cache: the decoder's cache.
        generator: source of its samples; None for greedy decoding.
        spoken: first codes that it has generated, bool [1, V], if repeats are penalised.
        frames: number of frames decoded.
        codes: codes of the last one [1, G].
        known_embeds: embeddings of all of these but the last [1, G - 1, H].
    """

    number: int
    prompt: Prompt
    cache: KVCache
    generator: torch.Generator | None
    spoken: Tensor
    frames: int = 0
    codes: Tensor = field(init=False)
    known_embeds: Tensor = field(init=False)

    def next_text(self) -> Tensor:
        """Return the embedding of the text that goes with the next frame [1, 1, H]."""
        text = self.prompt.trailing_text[:, self.frames - 1 : self.frames]
        return text if text.shape[1] else self.prompt.tts_pad


class EagerStep:
    """Decodes a frame of every row at each call, over caches that grow; rows join and leave between frames.

    Attributes:
        rows: the rows that speak; one that is taken out is decoded no more.
    """

    def __init__(self, talker: TalkerForConditionalGeneration, sampling: Sampling, *, ignore_eos: bool = False) -> None:
        config, weight = talker.config, talker.codec_head.weight
        self.talker = talker
        self.sampling = sampling
        self.suppressed = torch.tensor(suppressed_codes(config, ignore_eos), device=weight.device)
        self.eos = None if ignore_eos else config.codec_eos_token_id
        self.rows: list[Row] = []
        self.predictor_cache = new_predictor_cache(talker, 1)

    def new_row(self, number: int, prompt: Prompt, seed: int, frames: int) -> Row:
        """Make the row of a prompt, with a generator of its own, so that it samples what it samples alone."""
        config, weight = self.talker.config, self.talker.codec_head.weight
        # Compiled code would be compiled again for the strides of a cache that has grown.
        most = prompt.inputs_embeds.shape[1] + frames
        positions = most if self.talker.acceleration.compiled else min(most, FIRST_POSITIONS)
        cache = KVCache(config.text, weight.device, weight.dtype, positions=positions)
        generator = torch.Generator(weight.device).manual_seed(seed) if self.sampling.do_sample else None
        spoken = torch.zeros(1, config.text.vocab_size, dtype=torch.bool, device=weight.device)
        return Row(number, prompt, cache, generator, spoken)

    def sampling_state(self, rows: Sequence[Row]) -> SamplingState:
        """Gather the state of the rows' sampling."""
        generators = [row.generator for row in rows if row.generator is not None]
        spoken = concat([row.spoken for row in rows])
        return SamplingState(self.sampling, self.suppressed, spoken, generators, self.talker.acceleration.fused)

    def join(self, rows: Sequence[Row]) -> Frame:
        """Read the prompts of new rows, each by itself, and decode their first frame."""
        return self.first_frame(rows, *self.prefill(rows))

    def prefill(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Read the prompts of new rows; return their last hidden states [B, 1, H] and first codes [B, 1]."""
        passes = []
        with uncompiled(self.talker):  # as each length would be compiled anew
            for row in rows:
                prompt, state = row.prompt, self.sampling_state([row])
                passes.append(decode_first_code(self.talker, prompt.inputs_embeds, row.cache, state, prompt.positions))
                row.cache.offset = prompt.next_position - row.cache.length
        hidden, first_codes = zip(*passes, strict=True)
        return concat(hidden), concat(first_codes)

    def first_frame(self, rows: Sequence[Row], hidden: Tensor, first_codes: Tensor) -> Frame:
        """Decode the residual codes of new rows, which join those that speak."""
        speaking, frame = self._finish(rows, hidden, first_codes)
        self.rows += speaking
        return frame

    def __call__(self) -> Frame:
        """Decode the next frame of every row; rows that end leave."""
        rows = self.rows
        cache = rows[0].cache if len(rows) == 1 else RowCaches([row.cache for row in rows])
        state = self.sampling_state(rows)
        codes, known_embeds = concat([row.codes for row in rows]), concat([row.known_embeds for row in rows])
        with self._kernels(rows):
            embeds = sum_code_embeddings(self.talker, codes, known_embeds) + next_text(rows)  # [B, 1, H]
            hidden, first_code = decode_first_code(self.talker, embeds, cache, state)
        for row, spoken in zip(rows, torch.split(state.spoken, 1), strict=True):
            row.spoken = spoken
        self.rows, frame = self._finish(rows, hidden, first_code)
        return frame

    def _finish(self, rows: Sequence[Row], hidden: Tensor, first_code: Tensor) -> tuple[list[Row], Frame]:
        """Decode the residual codes of rows that do not end; return these rows and their frame."""
        if self.eos is not None:
            going = [index for index, code in enumerate(first_code[:, 0].tolist()) if code != self.eos]
            if len(going) < len(rows):
                rows, hidden, first_code = [rows[index] for index in going], hidden[going], first_code[going]
        if not rows:
            return [], Frame((), first_code.new_empty(0, self.talker.config.num_code_groups))
        if self.predictor_cache.keys.shape[1] != len(rows):
            self.predictor_cache = new_predictor_cache(self.talker, len(rows))
        state = self.sampling_state(rows)
        with self._kernels(rows):
            codes, embeds = decode_residual_codes(self.talker, hidden, first_code, self.predictor_cache, state)
        for row, row_codes, row_embeds in zip(rows, torch.split(codes, 1), torch.split(embeds, 1), strict=True):
            row.codes, row.known_embeds = row_codes, row_embeds
            row.frames += 1
        return list(rows), Frame(tuple(row.number for row in rows), codes)

    def _kernels(self, rows: Sequence[Row]) -> AbstractContextManager[object]:
        """Run several rows of a compiled talker eagerly, as each number of rows would be compiled anew."""
        return uncompiled(self.talker) if len(rows) > 1 else nullcontext()


class StaticStep:
    """Decodes a frame of every row at each call, by replaying a CUDA graph that reads and writes the same memory.

    Rows neither join nor leave: the codes of rows that have ended are computed, and left out.

    Attributes:
        text: the frame's text embedding [B, 1, H], an input.
        embeds: the summed embeddings of the last frame's codes [B, 1, H], input and output.
        codes: the frame's codes [B, G], the output.
    """

    def __init__(self, eager: EagerStep, frames: int) -> None:
        """Copy the state of an eager step after its first frame, with room for `frames` in all, and capture a frame."""
        talker, rows = eager.talker, eager.rows
        self.talker = talker
        self.rows = rows
        self.eos = eager.eos
        self.speaking = [True] * len(rows)
        self.cache = StaticCache([row.cache for row in rows], frames)
        self.predictor_cache = new_predictor_cache(talker, len(rows))
        self.state = eager.sampling_state(rows)
        self.codes = torch.cat([row.codes for row in rows])
        self.embeds = sum_code_embeddings(talker, self.codes, torch.cat([row.known_embeds for row in rows]))
        self.text = torch.zeros_like(self.embeds)
        changed = (self.codes, self.embeds, self.cache.position, self.state.spoken)
        self.graph = capture(self.decode, changed, self.state.generators)

    def decode(self) -> None:
        """Decode a frame from `embeds` and `text`; update `codes` and `embeds`.

        It waits for nothing on the host, and its control flow depends on no tensor's values.
        """
        hidden, first_code = decode_first_code(self.talker, self.embeds + self.text, self.cache, self.state)
        codes, known_embeds = decode_residual_codes(self.talker, hidden, first_code, self.predictor_cache, self.state)
        self.codes.copy_(codes)
        self.embeds.copy_(sum_code_embeddings(self.talker, codes, known_embeds))

    def __call__(self) -> Frame:
        """Decode the next frame of every row."""
        self.text.copy_(next_text(self.rows))
        self.graph.replay()
        for row in self.rows:
            row.frames += 1
        if self.eos is not None:
            going = [code != self.eos for code in self.codes[:, 0].tolist()]
            self.speaking = [before and now for before, now in zip(self.speaking, going, strict=True)]
        numbers = tuple(row.number for row, speaks in zip(self.rows, self.speaking, strict=True) if speaks)
        return Frame(numbers, self.codes.clone() if all(self.speaking) else self.codes[self.speaking])


def decode_first_code(
    talker: TalkerForConditionalGeneration,
    embeds: Tensor,
    cache: Cache,
    state: SamplingState,
    position_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the decoder on prompts or frames [B, S, H]; return the last hidden state [B, 1, H] and code [B, 1]."""
    # Root and models are called by keyword and return dataclasses, as in transformers: see recorder/.
    out = talker(inputs_embeds=embeds, cache=cache, position_ids=position_ids)
    return out.last_hidden_state[:, -1:], sample_first_code(out.logits[:, -1], state)


def decode_residual_codes(
    talker: TalkerForConditionalGeneration, hidden: Tensor, first_code: Tensor, cache: KVCache, state: SamplingState
) -> tuple[Tensor, Tensor]:
    """Run the code predictor on frames' hidden state [B, 1, H] and first code [B, 1], a pass for each code.

    Returns:
        All codes of the frames [B, G], and the embeddings of all but the last [B, G - 1, H].
    """
    predictor = talker.code_predictor
    codes, embeds = [first_code], [talker.model.codec_embedding(first_code)]
    cache.length = 0
    start = torch.cat((hidden, embeds[0]), dim=1)  # [B, 2, H]
    for group in range(1, talker.config.num_code_groups):
        if group == 1:
            out = predictor(inputs_embeds=start, cache=cache, group=1)
        else:
            out = predictor(code=codes[-1], cache=cache, group=group)
            embeds.append(out.inputs_embeds)
        codes.append(sample_residual_code(out.logits[:, -1], state))
    return torch.cat(codes, dim=1), torch.cat(embeds, dim=1)


def sum_code_embeddings(talker: TalkerForConditionalGeneration, codes: Tensor, known_embeds: Tensor) -> Tensor:
    """Sum the embeddings of frames' codes [B, G]: the next frames' input without its text, [B, 1, H].

    `known_embeds` [B, G - 1, H] are from `decode_residual_codes`; the last code's is looked up here.
    """
    last_embed = talker.code_predictor.model.codec_embedding[-1](codes[:, -1:])  # [B, 1, H]
    return torch.cat((known_embeds, last_embed), dim=1).sum(dim=1, keepdim=True)


def new_predictor_cache(talker: TalkerForConditionalGeneration, rows: int) -> KVCache:
    """Make a cache of a frame's codes for the code predictor."""
    config, weight = talker.config, talker.codec_head.weight
    return KVCache(config.code_predictor, weight.device, weight.dtype, rows, config.num_code_groups + 1)


def next_text(rows: Sequence[Row]) -> Tensor:
    """Return the embeddings of the text that goes with the rows' next frames [B, 1, H]."""
    return concat([row.next_text() for row in rows])


def concat(rows: Sequence[Tensor]) -> Tensor:
    """Concatenate rows along the first dimension, without a copy of a single one."""
    return rows[0] if len(rows) == 1 else torch.cat(list(rows))
