"""The loop that speaks: prompt in, frames of 16 codes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .cache import KVCache
from .compiled import uncompiled
from .prompt import Prompt
from .sampling import GREEDY, Sampling, choose, penalise_repeats, suppressed_codes

if TYPE_CHECKING:
    from .code_predictor import TalkerCodePredictorModelForConditionalGeneration
    from .talker import TalkerForConditionalGeneration


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
    # The last frame's codes are not read back.
    positions = embeds.shape[1] + frames - 1
    if positions > config.text.max_position_embeddings:
        raise ValueError(f"{positions} positions: the talker has {config.text.max_position_embeddings}")
    cache = KVCache(config.text, positions, device, dtype, batch, prompt.padding)
    frame_cache = KVCache(config.code_predictor, config.num_code_groups, device, dtype, batch)
    suppressed = torch.tensor(suppressed_codes(config, ignore_eos), device=device)
    # A row draws what it draws alone.
    generators = [torch.Generator(device).manual_seed(sampling.seed) for _ in range(batch * sampling.do_sample)]
    next_position = None if prompt.positions is None else prompt.positions.amax(dim=(0, 2), keepdim=True) + 1

    spoken: list[Tensor] = []
    ended = torch.zeros(batch, dtype=torch.bool)
    for frame in range(frames):
        position_ids = prompt.positions
        if frame and next_position is not None:
            position_ids = (next_position + (frame - 1)).expand(3, -1, -1)
        # Root and models are called by keyword and return dataclasses, as in transformers: see record/.
        with nullcontext() if frame else uncompiled(talker):
            out = talker(inputs_embeds=embeds, cache=cache, position_ids=position_ids)
        logits = out.logits[:, -1].float()
        if spoken and sampling.repetition_penalty != 1:
            first_codes = torch.cat([codes[:, :1] for codes in spoken], dim=1)
            logits = penalise_repeats(logits, first_codes, sampling.repetition_penalty)
        first_code = choose(logits.index_fill(1, suppressed, -torch.inf), sampling, generators)
        if not ignore_eos:
            ended |= (first_code[:, 0] == config.codec_eos_token_id).cpu()
            if ended.all():
                return

        first_embed = talker.model.codec_embedding(first_code)
        start = torch.cat((out.last_hidden_state[:, -1:], first_embed), dim=1)
        codes, residual_embeds = predict_residual_codes(talker.code_predictor, start, frame_cache, sampling, generators)
        spoken.append(torch.cat((first_code, codes), dim=1))
        yield Frame(spoken[-1], ~ended)
        if frame + 1 == frames:
            return

        last_embed = talker.code_predictor.model.codec_embedding[-1](codes[:, -1:])
        code_embeds = torch.cat((first_embed, residual_embeds, last_embed), dim=1)
        text_left = frame < prompt.trailing_text.shape[1]
        text = prompt.trailing_text[:, frame : frame + 1] if text_left else prompt.tts_pad
        embeds = code_embeds.sum(dim=1, keepdim=True) + text


def predict_residual_codes(
    predictor: TalkerCodePredictorModelForConditionalGeneration,
    start: Tensor,
    cache: KVCache,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
) -> tuple[Tensor, Tensor]:
    """A frame's codes 1 to 15 [batch, 15], and the embeddings of 1 to 14 [batch, 14, hidden].

    `start` [batch, 2, hidden] is the talker's last hidden state and the embedded first code.
    """
    # transformers fixes these for the predictor, whatever the talker samples with.
    sampling = replace(sampling, temperature=1.0, top_k=50, top_p=0.8)
    cache.length = 0
    out = predictor(inputs_embeds=start, cache=cache, group=1)
    codes = [choose(out.logits[:, -1].float(), sampling, generators)]
    embeds = []
    for group in range(2, len(predictor.lm_head) + 1):
        out = predictor(code=codes[-1], cache=cache, group=group)
        embeds.append(out.inputs_embeds)
        codes.append(choose(out.logits[:, -1].float(), sampling, generators))
    return torch.cat(codes, dim=1), torch.cat(embeds, dim=1)
