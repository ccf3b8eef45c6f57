"""The generation loop: from a prompt to frames of codes.

Shapes: B rows, S tokens, G code groups, H hidden size.
"""

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

    Attributes:
        codes: int64 [B, G].
        speaking: bool [B], on the CPU; False for rows that have ended, whose codes have no meaning.
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
    """Generate the codes of one prompt, up to the end of speech.

    Args:
        talker: the native talker.
        prompt: from `assemble_prompt`, of one row.
        frames: maximum number of frames of 80 ms.
        sampling: sampling of first codes; greedy by default.
        ignore_eos: never generate the end of speech, so that there are `frames` frames.
        on_frame: callback for the number of frames done, after each.

    Returns:
        Codes [generated frames, G], int64.

    Raises:
        ValueError: the prompt has several rows, or the frames do not fit in the talker's positions.
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
    """Generate the codes of several prompts at once; in float32 each row gets the codes that it gets alone.

    Args:
        talker: the native talker.
        prompt: from `batch_prompts`.
        frames: maximum number of frames of 80 ms.
        sampling: sampling of first codes; greedy by default.
        ignore_eos: never generate the end of speech.
        on_frame: callback for the number of frames done, after each.

    Returns:
        For each row its codes [generated frames, G], int64.

    Raises:
        ValueError: the frames do not fit in the talker's positions.
    """
    rows: list[list[Tensor]] = [[] for _ in prompt.inputs_embeds]
    for done, frame in enumerate(stream(talker, prompt, frames, sampling, ignore_eos=ignore_eos), start=1):
        for codes, row, speaking in zip(frame.codes, rows, frame.speaking.tolist(), strict=True):
            if speaking:
                row.append(codes)
        if on_frame is not None:
            on_frame(done)
    empty = torch.empty(0, talker.config.num_code_groups, dtype=torch.long, device=prompt.inputs_embeds.device)
    return [torch.stack(row) if row else empty for row in rows]


@torch.no_grad()
def stream(
    talker: TalkerForConditionalGeneration,
    prompt: Prompt,
    frames: int,
    sampling: Sampling = GREEDY,
    *,
    ignore_eos: bool = False,
) -> Iterator[Frame]:
    """Yield each frame once it is decoded, until every row has ended; arguments are those of `generate_batch`.

    Raises:
        ValueError: with the first frame, the frames do not fit in the talker's positions.
    """
    config = talker.config
    embeds = prompt.inputs_embeds  # [B, S, H]
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
        # A generator for each row, so that a row samples what it samples alone.
        [torch.Generator(device).manual_seed(sampling.seed) for _ in range(batch * sampling.do_sample)],
        talker.argmax,
    )
    cache = KVCache(config.text, positions, device, dtype, batch, prompt.padding)
    predictor_cache = KVCache(config.code_predictor, config.num_code_groups, device, dtype, batch)
    ended = torch.zeros(batch, dtype=torch.bool)

    def all_ended(first_code: Tensor) -> bool:
        if not ignore_eos:
            ended.logical_or_((first_code[:, 0] == config.codec_eos_token_id).cpu())
        return bool(ended.all())

    with uncompiled(talker):
        hidden, first_code = decode_first_code(talker, embeds, cache, prompt.positions, state)
    if all_ended(first_code):
        return
    codes, known_embeds = decode_residual_codes(talker, hidden, first_code, predictor_cache, state)
    yield Frame(codes, ~ended)
    if frames == 1:
        return
    if talker.use_cuda_graphs:
        static = StaticFrame(talker, cache, predictor_cache, state, prompt.next_position)
        static.spoken.copy_(sum_code_embeddings(talker, codes, known_embeds))
        graph = capture(static)
    # Without position ids in the prompt the talker counts on from the cache's length.
    next_position = None if prompt.positions is None else prompt.next_position
    for frame in range(frames - 1):
        text_left = frame < prompt.trailing_text.shape[1]
        text = prompt.trailing_text[:, frame : frame + 1] if text_left else prompt.tts_pad  # [B, 1, H]
        if talker.use_cuda_graphs:
            static.text.copy_(text)
            graph.replay()
            codes = static.codes.clone()
            if all_ended(codes):
                return
        else:
            embeds = sum_code_embeddings(talker, codes, known_embeds) + text  # [B, 1, H]
            position_ids = None if next_position is None else (next_position + frame).expand(3, -1, -1)
            hidden, first_code = decode_first_code(talker, embeds, cache, position_ids, state)
            if all_ended(first_code):
                return
            codes, known_embeds = decode_residual_codes(talker, hidden, first_code, predictor_cache, state)
        yield Frame(codes, ~ended)
