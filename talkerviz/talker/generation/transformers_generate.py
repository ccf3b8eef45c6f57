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
    """`generate.generate` through transformers' own loop: codes [spoken frames, 16], int64.

    It samples from torch's global generator, which is seeded with `sampling.seed` and put back after.
    """
    from transformers import StoppingCriteriaList

    def count(first_codes: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        # The first code of a frame comes one step before its other codes.
        done = first_codes.shape[1] - 1
        if on_frame is not None and done > 0:
            on_frame(done)
        return torch.zeros(len(first_codes), dtype=torch.bool, device=first_codes.device)

    positions = prompt.inputs_embeds.shape[:2]
    device = prompt.inputs_embeds.device
    places: dict[str, Any] = {}
    if prompt.positions is not None:
        # Four axes: those of text come first, and say what may be looked at.
        text = torch.arange(positions[1], device=device, dtype=prompt.positions.dtype)
        places["position_ids"] = torch.cat((text.expand(1, 1, -1), prompt.positions))
    chosen: dict[str, Any] = {"do_sample": False}
    if sampling.do_sample:
        chosen = {
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
            talker_input_ids=torch.full(positions, config.tts_pad_token_id, device=device),
            attention_mask=torch.ones(positions, dtype=torch.long, device=device),
            # A frame's residual codes are computed at the start of the step after it: one step more than frames.
            max_new_tokens=frames + 1,
            eos_token_id=None if ignore_eos else config.codec_eos_token_id,
            pad_token_id=config.codec_pad_id,
            suppress_tokens=suppressed_codes(config, ignore_eos),
            repetition_penalty=sampling.repetition_penalty,
            stopping_criteria=StoppingCriteriaList([count]),
            output_hidden_states=True,  # the code predictor is fed the last of them
            return_dict_in_generate=True,
            **places,
            **chosen,
        )
    # Each step's hidden states end in the codes [1, 16] of the frame before; the first step has none.
    codes: list[Tensor] = [step[-1] for step in result.hidden_states if step[-1] is not None]
    if not codes:
        return torch.empty(0, config.num_code_groups, dtype=torch.long, device=device)
    return torch.cat(codes)
