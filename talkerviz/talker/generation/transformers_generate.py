"""Generation of codes through transformers' own loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from talkerviz.talker.generation.prompt import Prompt
from talkerviz.talker.generation.sampling import GREEDY, Sampling, suppressed_codes
from talkerviz.talker.model.config import TalkerConfig
from talkerviz.talker.model.transformers_talker import silenced


@torch.no_grad()
def generate_transformers(
    talker: Any,
    config: TalkerConfig,
    prompt: Prompt,
    frames: int,
    sampling: Sampling = GREEDY,
    *,
    ignore_eos: bool = False,
    on_frame: Callable[[int], None] | None = None,
) -> Tensor:
    """Generate the codes of one prompt as `generate` does, through transformers' own loop.

    It samples from torch's global generator, which is seeded with `sampling.seed` and restored after.

    Returns:
        Codes [generated frames, code groups], int64.
    """
    from transformers import StoppingCriteriaList

    def count_frames(first_codes: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        # A frame's first code is generated one step before its residual codes.
        done = first_codes.shape[1] - 1
        if on_frame is not None and done > 0:
            on_frame(done)
        return torch.zeros(len(first_codes), dtype=torch.bool, device=first_codes.device)

    shape = prompt.inputs_embeds.shape[:2]  # [B, S]
    device = prompt.inputs_embeds.device
    position_options: dict[str, Any] = {}
    if prompt.positions is not None:
        # transformers takes four axes: the first is of text, from which the attention mask is made.
        text = torch.arange(shape[1], device=device, dtype=prompt.positions.dtype)
        position_options["position_ids"] = torch.cat((text.expand(1, 1, -1), prompt.positions))
    sampling_options: dict[str, Any] = {"do_sample": False}
    if sampling.do_sample:
        sampling_options = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k or 0,
            "top_p": sampling.top_p,
        }
    with silenced(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(sampling.seed)
        result = talker.generate(
            inputs_embeds=prompt.inputs_embeds,
            trailing_text_hidden=prompt.trailing_text,
            tts_pad_embed=prompt.tts_pad,
            talker_input_ids=torch.full(shape, config.tts_pad_token_id, device=device),
            attention_mask=torch.ones(shape, dtype=torch.long, device=device),
            # One step more than frames: a frame's residual codes are computed at the start of the next step.
            max_new_tokens=frames + 1,
            eos_token_id=None if ignore_eos else config.codec_eos_token_id,
            pad_token_id=config.codec_pad_id,
            suppress_tokens=suppressed_codes(config, ignore_eos),
            repetition_penalty=sampling.repetition_penalty,
            stopping_criteria=StoppingCriteriaList([count_frames]),
            output_hidden_states=True,  # the code predictor is fed the last of them
            return_dict_in_generate=True,
            **position_options,
            **sampling_options,
        )
    # Each step's hidden states end in the codes [1, G] of the frame before; the first step has none.
    codes: list[Tensor] = [step[-1] for step in result.hidden_states if step[-1] is not None]
    if not codes:
        return torch.empty(0, config.num_code_groups, dtype=torch.long, device=device)
    return torch.cat(codes)
