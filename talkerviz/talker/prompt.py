"""From the thinker's outputs to the talker's prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .config import TalkerConfig


@dataclass(frozen=True)
class ThinkerOutputs:
    """What the talker needs of the thinker, W being `thinker_hidden_size`.

    special: embeddings of tts bos, eos and pad [1, 3, W].
    user: embeddings of the user's P tokens [1, P, W].
    user_hidden: hidden states of the same tokens at layer `accept_hidden_layer` [1, P, W].
    multimodal: which of them are audio, image or video [1, P], bool, on the CPU whatever the others are on.
    assistant: embeddings of the T tokens of the answer [1, T, W], the three role tokens first.
    """

    special: Tensor
    user: Tensor
    user_hidden: Tensor
    multimodal: Tensor
    assistant: Tensor


@dataclass(frozen=True)
class Prompt:
    """What the talker starts from, H being its hidden size.

    inputs_embeds: the positions of its first pass [1, P + 9, H].
    trailing_text: text still to be spoken, one position added to each later frame's input [1, T - 3, H].
    tts_pad: what is added once the text is used up [1, 1, H].
    """

    inputs_embeds: Tensor
    trailing_text: Tensor
    tts_pad: Tensor


@torch.no_grad()
def assemble_prompt(talker: Any, config: TalkerConfig, thinker: ThinkerOutputs, speaker: int) -> Prompt:
    """Assemble the prompt for a speaker's codec token (a value of `config.speaker_id`).

    The talker is either implementation: only module names both have are used. Raises ValueError for fewer than
    four assistant tokens, the three of the role and one to speak.
    """
    if thinker.assistant.shape[1] < 4:
        raise ValueError(f"the assistant part needs 4 tokens or more, not {thinker.assistant.shape[1]}")
    bos, eos, pad = talker.text_projection(thinker.special).chunk(3, dim=1)
    user = _user_part(talker, thinker)
    assistant = talker.text_projection(thinker.assistant)
    codec_tokens = [
        config.codec_nothink_id,
        config.codec_think_bos_id,
        config.codec_think_eos_id,
        speaker,
        config.codec_pad_id,
        config.codec_bos_id,
    ]
    codec = talker.model.codec_embedding(torch.tensor([codec_tokens], device=pad.device))
    # Two tracks, summed: the text above, and from the fourth position on the codec tokens below it.
    text_track = torch.cat((assistant[:, :3], pad.expand(-1, 4, -1), bos, assistant[:, 3:4]), dim=1)
    codec_track = torch.cat((torch.zeros_like(codec[:, :3]), codec), dim=1)
    return Prompt(
        inputs_embeds=torch.cat((user, text_track + codec_track), dim=1),
        trailing_text=torch.cat((assistant[:, 4:], eos), dim=1),
        tts_pad=pad,
    )


def _user_part(talker: Any, thinker: ThinkerOutputs) -> Tensor:
    """Text comes as embeddings; audio, image and video come as the thinker understood them: [1, P, H]."""
    multimodal = thinker.multimodal[0].tolist()
    heard = [place for place, is_heard in enumerate(multimodal) if is_heard]
    read = [place for place, is_heard in enumerate(multimodal) if not is_heard]
    parts = []
    if heard:
        parts.append(talker.hidden_projection(thinker.user_hidden[0, heard]))
    if read:
        parts.append(talker.text_projection(thinker.user[0, read]))
    projected = torch.cat(parts)
    positions = torch.tensor(heard + read, device=projected.device)
    return torch.empty_like(projected).index_copy_(0, positions, projected)[None]
