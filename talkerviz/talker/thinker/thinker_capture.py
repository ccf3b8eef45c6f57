"""What transformers' thinker makes of a conversation, kept for the talker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talkerviz.talker.files.checkpoint import read_config, weight_files
from talkerviz.talker.generation.prompt import ThinkerOutputs
from talkerviz.talker.thinker.chat_inputs import Turn, load_processor, thinker_inputs


@dataclass(frozen=True)
class Answer:
    """An answer of the thinker, as the talker takes it.

    Attributes:
        thinker: what the talker needs, on the CPU.
        user_ids: the ids of the user's P tokens [1, P].
        assistant_ids: the ids of the answer's T tokens [1, T], the three role tokens first.
        answer: its text.
        finished: whether it ended by itself, not at the greatest number of tokens.
        accept_hidden_layer: where the hidden states are from.
    """

    thinker: ThinkerOutputs
    user_ids: Tensor
    assistant_ids: Tensor
    answer: str
    finished: bool
    accept_hidden_layer: int


@torch.no_grad()
def capture_answer(
    checkpoint: Path,
    conversation: Sequence[Turn],
    *,
    max_new_tokens: int = 1024,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Answer:
    """Let the thinker of a checkpoint's directory answer a conversation, greedily, and keep what the talker needs.

    Of the checkpoint's weights only the thinker's are loaded, in the dtype that they have unless one is given.

    Raises:
        ValueError: the directory has no Qwen3-Omni with its processor, a file in the conversation cannot be read, or
            the thinker says nothing.
    """
    config = _config(checkpoint)
    processor = load_processor(checkpoint)
    inputs = thinker_inputs(processor, conversation)
    thinker = _load_thinker(checkpoint, config, device, dtype)
    inputs = {
        name: tensor.to(device, thinker.dtype if tensor.is_floating_point() else None)
        for name, tensor in inputs.items()
    }
    result = thinker.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=config.im_end_token_id,
        pad_token_id=config.im_end_token_id,
        output_hidden_states=True,
        return_dict_in_generate=True,
    )
    answer_ids = result.sequences[0, inputs["input_ids"].shape[1] :]
    if len(answer_ids) < 2:
        raise ValueError(f"{checkpoint}: the thinker says nothing to this")
    return Answer(
        *_for_talker(thinker, config, inputs, result),
        answer=processor.tokenizer.decode(answer_ids, skip_special_tokens=True),
        finished=bool(answer_ids[-1] == config.im_end_token_id),
        accept_hidden_layer=config.talker_config.accept_hidden_layer,
    )


def _for_talker(
    thinker: Any, config: Any, inputs: Mapping[str, Tensor], result: Any
) -> tuple[ThinkerOutputs, Tensor, Tensor]:
    """The part of a result that transformers' `Qwen3OmniMoeForConditionalGeneration.generate` gives the talker."""
    prompt_ids, ids = inputs["input_ids"], result.sequences
    # A state for each token read: the last one of the answer never is.
    embeddings = torch.cat([states[0] for states in result.hidden_states], dim=1)
    layer = config.talker_config.accept_hidden_layer
    hidden = torch.cat([states[layer] for states in result.hidden_states], dim=1)

    user = _of_user(prompt_ids[0], config)
    user_ids = prompt_ids[:, user]
    placeholders = [getattr(config.thinker_config, f"{kind}_token_id") for kind in ("audio", "image", "video")]
    lengths = inputs.get("feature_attention_mask")
    # The thinker's own function: transformers' talker fails in it where audio and images meet, for its config does
    # not say what a window of audio is.
    positions, _ = thinker.get_rope_index(
        user_ids,
        image_grid_thw=inputs.get("image_grid_thw"),
        attention_mask=torch.ones_like(user_ids),
        audio_seqlens=None if lengths is None else lengths.sum(-1),
    )
    begin = _begin_of_answer(prompt_ids[0], config)
    special_ids = [config.tts_bos_token_id, config.tts_eos_token_id, config.tts_pad_token_id]
    special = thinker.get_input_embeddings()(torch.tensor([special_ids], device=ids.device))
    outputs = ThinkerOutputs(
        special=special.cpu(),
        user=embeddings[:, user].cpu(),
        user_hidden=hidden[:, user].cpu(),
        multimodal=torch.isin(user_ids, torch.tensor(placeholders, device=ids.device)).cpu(),
        assistant=embeddings[:, begin:].cpu(),
        positions=positions.long().cpu(),
    )
    return outputs, user_ids.cpu(), ids[:, begin:-1].cpu()


def _of_user(ids: Tensor, config: Any) -> Tensor:
    """Which of a prompt's tokens [n] are in turns of the user: their indices. Raises ValueError if none is."""
    places = torch.arange(len(ids), device=ids.device)
    begins = torch.where(ids == config.im_start_token_id, places, 0).cummax(0).values
    found = torch.nonzero(ids[(begins + 1).clamp_max(len(ids) - 1)] == config.user_token_id)[:, 0]
    if not len(found):
        raise ValueError(
            f"the prompt has no turn of the user: token {config.im_start_token_id} and then {config.user_token_id}"
        )
    return found


def _begin_of_answer(ids: Tensor, config: Any) -> int:
    """Where the turn to be answered begins in a prompt [n]. Raises ValueError if there is none."""
    begins = (ids[:-1] == config.im_start_token_id) & (ids[1:] == config.assistant_token_id)
    if not begins.any():
        raise ValueError(
            f"the prompt has no turn to answer: token {config.im_start_token_id} and then {config.assistant_token_id}"
        )
    return int(torch.nonzero(begins)[-1, 0])


def _config(checkpoint: Path) -> Any:
    from transformers import Qwen3OmniMoeConfig

    said = read_config(checkpoint)
    try:
        return Qwen3OmniMoeConfig.from_dict(said)
    except Exception as error:  # validation errors of several classes
        raise ValueError(f"{checkpoint / 'config.json'}: {error}") from error


def _load_thinker(checkpoint: Path, config: Any, device: str | torch.device, dtype: torch.dtype | None) -> Any:
    from transformers import GenerationConfig, Qwen3OmniMoeThinkerForConditionalGeneration

    weight_files(checkpoint)
    for part in (config, config.thinker_config):
        if hasattr(part, "transformers_weights"):  # which may name another file than these
            del part.transformers_weights
    try:
        thinker, loading = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(
            checkpoint,
            config=config.thinker_config,
            dtype=dtype or "auto",
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # of many kinds, by what is amiss in which of its files
        raise ValueError(f"{checkpoint}: the thinker's weights cannot be loaded: {error}") from error
    # transformers fills these with random numbers.
    if missing := sorted([*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])]):
        raise ValueError(f"{checkpoint}: {len(missing)} of the thinker's tensors are missing, the first {missing[0]}")
    # What the checkpoint has is for the whole model; transformers' whole model does not give it to its thinker.
    thinker.generation_config = GenerationConfig()
    return thinker.to(device)
