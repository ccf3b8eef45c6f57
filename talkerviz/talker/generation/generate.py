"""The loop that speaks: prompt in, frames of 16 codes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from talkerviz.talker.generation.compile import uncompiled
from talkerviz.talker.generation.cuda_graphs import StaticFrame, capture
from talkerviz.talker.generation.decode_step import (
    SamplingState,
    decode_first_code,
    decode_residual_codes,
    sum_code_embeddings,
)
from talkerviz.talker.generation.prompt import Prompt
from talkerviz.talker.generation.sampling import GREEDY, Sampling, suppressed_codes
from talkerviz.talker.model.cache import KVCache
from talkerviz.talker.model.talker import TalkerForConditionalGeneration


@dataclass(frozen=True)
class Frame:
    """80 ms of speech of each row.

    codes: int64 [batch, 16].
    speaking: bool [batch], on the CPU: False for rows that have ended, whose codes mean nothing.
    """

    codes: Tensor
    speaking: Tensor


@torch.no_grad()
def generate(
    talker: TalkerForConditionalGeneration,
    prompt: Prompt,
    frames: int,
    sampling: Sampling = GREEDY,
    *,
    ignore_eos: bool = False,
    on_frame: Callable[[int], None] | None = None,
) -> Tensor:
    """Speak at most `frames` frames of 80 ms: codes [spoken frames, 16], int64.

    Stops before `frames` at end-of-speech, which is no frame; `ignore_eos` never chooses it, so that all frames
    are spoken. `on_frame` is called with the number of frames done after each of them.

    Raises ValueError for a prompt of several rows, and where the frames do not fit in the positions the talker was
    trained for.
    """
    if prompt.inputs_embeds.shape[0] != 1:
        raise ValueError(f"the prompt has {prompt.inputs_embeds.shape[0]} rows: use generate_batch")
    return generate_batch(talker, prompt, frames, sampling, ignore_eos=ignore_eos, on_frame=on_frame)[0]


@torch.no_grad()
def generate_batch(
    talker: TalkerForConditionalGeneration,
    prompt: Prompt,
    frames: int,
    sampling: Sampling = GREEDY,
    *,
    ignore_eos: bool = False,
    on_frame: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """Speak every row of a prompt from `batch_prompts`: of each its codes [spoken frames, 16], as it has them alone.

    Raises ValueError where the frames do not fit in the positions the talker was trained for.
    """
    spoken: list[list[Tensor]] = [[] for _ in prompt.inputs_embeds]
    for done, frame in enumerate(stream(talker, prompt, frames, sampling, ignore_eos=ignore_eos), start=1):
        for codes, row, speaking in zip(frame.codes, spoken, frame.speaking.tolist(), strict=True):
            if speaking:
                row.append(codes)
        if on_frame is not None:
            on_frame(done)
    nothing = torch.empty(0, talker.config.num_code_groups, dtype=torch.long, device=prompt.inputs_embeds.device)
    return [torch.stack(row) if row else nothing for row in spoken]


@torch.no_grad()
def stream(
    talker: TalkerForConditionalGeneration,
    prompt: Prompt,
    frames: int,
    sampling: Sampling = GREEDY,
    *,
    ignore_eos: bool = False,
) -> Iterator[Frame]:
    """The frames of `generate` or `generate_batch`, each as soon as it is spoken; ends when no row speaks.

    Raises ValueError, with the first frame asked for, where the frames do not fit in the positions the talker was
    trained for.
    """
    config = talker.config
    embeds = prompt.inputs_embeds
    batch, device, dtype = embeds.shape[0], embeds.device, embeds.dtype
    if frames < 1:
        return
    # The last frame's codes are not read back.
    positions = embeds.shape[1] + frames - 1
    if positions > config.text.max_position_embeddings:
        raise ValueError(f"{positions} positions: the talker has {config.text.max_position_embeddings}")
    state = SamplingState(
        sampling,
        torch.tensor(suppressed_codes(config, ignore_eos), device=device),
        torch.zeros(batch, config.text.vocab_size, dtype=torch.bool, device=device),
        # A row draws what it draws alone.
        [torch.Generator(device).manual_seed(sampling.seed) for _ in range(batch * sampling.do_sample)],
        talker.argmax,
    )
    cache = KVCache(config.text, positions, device, dtype, batch, prompt.padding)
    frame_cache = KVCache(config.code_predictor, config.num_code_groups, device, dtype, batch)
    ended = torch.zeros(batch, dtype=torch.bool)

    def all_ended(first_code: Tensor) -> bool:
        if not ignore_eos:
            ended.logical_or_((first_code[:, 0] == config.codec_eos_token_id).cpu())
        return bool(ended.all())

    with uncompiled(talker):
        hidden, first_code = decode_first_code(talker, embeds, cache, prompt.positions, state)
    if all_ended(first_code):
        return
    codes, most_embeds = decode_residual_codes(talker, hidden, first_code, frame_cache, state)
    yield Frame(codes, ~ended)
    if frames == 1:
        return
    if talker.use_cuda_graphs:
        static = StaticFrame(talker, cache, frame_cache, state, prompt.next_position)
        static.spoken.copy_(sum_code_embeddings(talker, codes, most_embeds))
        graph = capture(static)
    # Without positions of its own the prompt's are its tokens' places, and the talker goes on from there.
    next_position = None if prompt.positions is None else prompt.next_position
    for frame in range(frames - 1):
        text_left = frame < prompt.trailing_text.shape[1]
        text = prompt.trailing_text[:, frame : frame + 1] if text_left else prompt.tts_pad
        if talker.use_cuda_graphs:
            static.text.copy_(text)
            graph.replay()
            codes = static.codes.clone()
            if all_ended(codes):
                return
        else:
            embeds = sum_code_embeddings(talker, codes, most_embeds) + text
            position_ids = None if next_position is None else (next_position + frame).expand(3, -1, -1)
            hidden, first_code = decode_first_code(talker, embeds, cache, position_ids, state)
            if all_ended(first_code):
                return
            codes, most_embeds = decode_residual_codes(talker, hidden, first_code, frame_cache, state)
        yield Frame(codes, ~ended)
