"""The loop that speaks: prompt in, frames of 16 codes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .cache import KVCache
from .code_predictor import TalkerCodePredictorModelForConditionalGeneration
from .prompt import Prompt
from .sampling import GREEDY, Sampling, choose, penalise_repeats, suppressed_codes
from .talker import TalkerForConditionalGeneration


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

    Raises ValueError where the frames do not fit in the positions the talker was trained for.
    """
    config = talker.config
    embeds = prompt.inputs_embeds
    device, dtype = embeds.device, embeds.dtype
    # The last frame's codes are not read back.
    positions = embeds.shape[1] + frames - 1
    if positions > config.text.max_position_embeddings:
        raise ValueError(f"{positions} positions: the talker has {config.text.max_position_embeddings}")
    cache = KVCache(config.text, positions, device, dtype)
    frame_cache = KVCache(config.code_predictor, config.num_code_groups, device, dtype)
    suppressed = torch.tensor(suppressed_codes(config, ignore_eos), device=device)
    generator = torch.Generator(device).manual_seed(sampling.seed) if sampling.do_sample else None

    spoken: list[Tensor] = []
    for frame in range(frames):
        # Root and models are called by keyword and return dataclasses, as in transformers: see record/.
        out = talker(inputs_embeds=embeds, cache=cache)
        logits = out.logits[:, -1].float()
        if spoken and sampling.repetition_penalty != 1:
            first_codes = torch.cat([codes[:, :1] for codes in spoken], dim=1)
            logits = penalise_repeats(logits, first_codes, sampling.repetition_penalty)
        first_code = choose(logits.index_fill(1, suppressed, -torch.inf), sampling, generator)
        if not ignore_eos and first_code.item() == config.codec_eos_token_id:
            break

        first_embed = talker.model.codec_embedding(first_code)
        start = torch.cat((out.last_hidden_state[:, -1:], first_embed), dim=1)
        codes, residual_embeds = predict_residual_codes(talker.code_predictor, start, frame_cache, sampling, generator)
        spoken.append(torch.cat((first_code, codes), dim=1))
        if on_frame is not None:
            on_frame(frame + 1)
        if frame + 1 == frames:
            break

        last_embed = talker.code_predictor.model.codec_embedding[-1](codes[:, -1:])
        code_embeds = torch.cat((first_embed, residual_embeds, last_embed), dim=1)
        text_left = frame < prompt.trailing_text.shape[1]
        text = prompt.trailing_text[:, frame : frame + 1] if text_left else prompt.tts_pad
        embeds = code_embeds.sum(dim=1, keepdim=True) + text

    if not spoken:
        return torch.empty(0, config.num_code_groups, dtype=torch.long, device=device)
    return torch.cat(spoken)


def predict_residual_codes(
    predictor: TalkerCodePredictorModelForConditionalGeneration,
    start: Tensor,
    cache: KVCache,
    sampling: Sampling,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """A frame's codes 1 to 15 [1, 15], and the embeddings of 1 to 14 [1, 14, hidden].

    `start` [1, 2, hidden] is the talker's last hidden state and the embedded first code.
    """
    # transformers fixes these for the predictor, whatever the talker samples with.
    sampling = replace(sampling, temperature=1.0, top_k=50, top_p=0.8)
    cache.length = 0
    out = predictor(inputs_embeds=start, cache=cache, group=1)
    codes = [choose(out.logits[:, -1].float(), sampling, generator)]
    embeds = []
    for group in range(2, len(predictor.lm_head) + 1):
        out = predictor(code=codes[-1], cache=cache, group=group)
        embeds.append(out.inputs_embeds)
        codes.append(choose(out.logits[:, -1].float(), sampling, generator))
    return torch.cat(codes, dim=1), torch.cat(embeds, dim=1)
