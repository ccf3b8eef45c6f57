"""Capture of a thinker's answer to a conversation, with the embeddings and hidden states for the talker."""

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
    """Answer of the thinker.

    Attributes:
        thinker: the talker's inputs, on the CPU.
        user_ids: token ids of the user [1, P].
        assistant_ids: token ids of the answer [1, T], the three role tokens first.
        answer: text of the answer.
        finished: True if the thinker ended it, not `max_new_tokens`.
        accept_hidden_layer: layer of the hidden states.
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
    """Generate a checkpoint's greedy answer to a conversation, and keep the talker's inputs.

    Args:
        checkpoint: folder of a Qwen3-Omni; only the thinker's weights are loaded.
        conversation: turns of a chat.
        max_new_tokens: maximum number of tokens of the answer.
        device: device of the thinker.
        dtype: dtype of the weights; by default the stored one.

    Raises:
        ValueError: the folder has no Qwen3-Omni with its processor, a file in the conversation cannot be read, or the
            answer is empty.
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
        raise ValueError(f"{checkpoint}: the thinker's answer is empty")
    return Answer(
        *_for_talker(thinker, config, inputs, result),
        answer=processor.tokenizer.decode(answer_ids, skip_special_tokens=True),
        finished=bool(answer_ids[-1] == config.im_end_token_id),
        accept_hidden_layer=config.talker_config.accept_hidden_layer,
    )


def _for_talker(
    thinker: Any, config: Any, inputs: Mapping[str, Tensor], result: Any
) -> tuple[ThinkerOutputs, Tensor, Tensor]:
    """Extract the talker's inputs from a result, as transformers' `Qwen3OmniMoeForConditionalGeneration` does."""
    prompt_ids, ids = inputs["input_ids"], result.sequences
    # A state for each token that was read, which the last token of the answer was not.
    embeddings = torch.cat([states[0] for states in result.hidden_states], dim=1)
    layer = config.talker_config.accept_hidden_layer
    hidden = torch.cat([states[layer] for states in result.hidden_states], dim=1)

    user = _user_indices(prompt_ids[0], config)
    user_ids = prompt_ids[:, user]
    placeholders = [getattr(config.thinker_config, f"{kind}_token_id") for kind in ("audio", "image", "video")]
    lengths = inputs.get("feature_attention_mask")
    # From the thinker: the talker's own function fails for audio with images, as its config lacks the audio window.
    positions, _ = thinker.get_rope_index(
        user_ids,
        image_grid_thw=inputs.get("image_grid_thw"),
        attention_mask=torch.ones_like(user_ids),
        audio_seqlens=None if lengths is None else lengths.sum(-1),
    )
    begin = _answer_start(prompt_ids[0], config)
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


def _user_indices(ids: Tensor, config: Any) -> Tensor:
    """Return the indices of a prompt's tokens [n] that are in turns of the user.

    Raises:
        ValueError: there are none.
    """
    indices = torch.arange(len(ids), device=ids.device)
    turn_starts = torch.where(ids == config.im_start_token_id, indices, 0).cummax(0).values
    user = torch.nonzero(ids[(turn_starts + 1).clamp_max(len(ids) - 1)] == config.user_token_id)[:, 0]
    if not len(user):
        raise ValueError(
            f"the prompt has no turn of the user: token {config.im_start_token_id} and then {config.user_token_id}"
        )
    return user


def _answer_start(ids: Tensor, config: Any) -> int:
    """Return the index in a prompt [n] at which the assistant's last turn begins.

    Raises:
        ValueError: there is none.
    """
    begins = (ids[:-1] == config.im_start_token_id) & (ids[1:] == config.assistant_token_id)
    if not begins.any():
        raise ValueError(
            f"the prompt has no turn to answer: token {config.im_start_token_id} and then {config.assistant_token_id}"
        )
    return int(torch.nonzero(begins)[-1, 0])


def _config(checkpoint: Path) -> Any:
    from transformers import Qwen3OmniMoeConfig

    fields = read_config(checkpoint)
    try:
        return Qwen3OmniMoeConfig.from_dict(fields)
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
    except Exception as error:  # transformers raises many classes here
        raise ValueError(f"{checkpoint}: the thinker's weights cannot be loaded: {error}") from error
    # transformers fills these with random numbers.
    if missing := sorted([*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])]):
        raise ValueError(f"{checkpoint}: {len(missing)} of the thinker's tensors are missing, the first {missing[0]}")
    # The checkpoint's generation config is for the whole model, which does not pass it to its thinker.
    thinker.generation_config = GenerationConfig()
    return thinker.to(device)
