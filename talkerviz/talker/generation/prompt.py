"""The talker's prompt, assembled from the thinker's outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from talkerviz.talker.model.config import TalkerConfig


@dataclass(frozen=True)
class ThinkerOutputs:
    """The thinker's outputs that the talker reads, for P tokens of the user and T of the assistant.

    W is the config's `thinker_hidden_size`.

    Attributes:
        special: embeddings of tts_bos, tts_eos and tts_pad [1, 3, W].
        user: embeddings of the user's tokens [1, P, W].
        user_hidden: hidden states of the user's tokens at layer `accept_hidden_layer` [1, P, W].
        multimodal: True for the user's tokens of audio, image or video, bool [1, P], always on the CPU.
        assistant: embeddings of the answer's tokens, the three of the role first [1, T, W].
        positions: time, height and width of the user's tokens [3, 1, P]; None for consecutive positions, as of text
            and audio.
    """

    special: Tensor
    user: Tensor
    user_hidden: Tensor
    multimodal: Tensor
    assistant: Tensor
    positions: Tensor | None = None


@dataclass(frozen=True)
class Prompt:
    """The talker's input before the first frame, of one conversation. H is its hidden size.

    Attributes:
        inputs_embeds: embeddings of the first pass [1, P + 9, H].
        trailing_text: embeddings of the text still to be spoken, one added to each later frame's input [1, T - 3, H].
        tts_pad: embedding added once the text is used up [1, 1, H].
        positions: time, height and width of the first pass [3, 1, P + 9], frames going on from the largest; None for
            consecutive positions.
    """

    inputs_embeds: Tensor
    trailing_text: Tensor
    tts_pad: Tensor
    positions: Tensor | None = None

    @property
    def next_position(self) -> int:
        """Position of the first frame after the prompt, the same in time, height and width."""
        if self.positions is None or self.positions.is_meta:  # the meta device has no values, and shapes need none
            return self.inputs_embeds.shape[1]
        return int(self.positions.max()) + 1


@torch.no_grad()
def assemble_prompt(talker: Any, config: TalkerConfig, thinker: ThinkerOutputs, speaker: int) -> Prompt:
    """Assemble the prompt of one conversation.

    Args:
        talker: either implementation; only modules that both have are called.
        config: the talker's config.
        thinker: the thinker's outputs.
        speaker: the speaker's codec token, a value of `config.speaker_id`.

    Raises:
        ValueError: fewer than four assistant tokens, the three of the role and one to speak.
    """
    if thinker.assistant.shape[1] < 4:
        raise ValueError(f"the assistant part needs 4 tokens or more, not {thinker.assistant.shape[1]}")
    bos, eos, pad = talker.text_projection(thinker.special).chunk(3, dim=1)  # [1, 1, H] each
    user = _project_user(talker, thinker)  # [1, P, H]
    assistant = talker.text_projection(thinker.assistant)  # [1, T, H]
    codec_tokens = [
        config.codec_nothink_id,
        config.codec_think_bos_id,
        config.codec_think_eos_id,
        speaker,
        config.codec_pad_id,
        config.codec_bos_id,
    ]
    codec = talker.model.codec_embedding(torch.tensor([codec_tokens], device=pad.device))  # [1, 6, H]
    # Two tracks of 9 positions, summed: text, and codec tokens from the fourth position on.
    text_track = torch.cat((assistant[:, :3], pad.expand(-1, 4, -1), bos, assistant[:, 3:4]), dim=1)  # [1, 9, H]
    codec_track = torch.cat((torch.zeros_like(codec[:, :3]), codec), dim=1)  # [1, 9, H]
    return Prompt(
        inputs_embeds=torch.cat((user, text_track + codec_track), dim=1),
        trailing_text=torch.cat((assistant[:, 4:], eos), dim=1),
        tts_pad=pad,
        positions=_extend_positions(thinker.positions, text_track.shape[1], pad.device),
    )


def _extend_positions(user: Tensor | None, count: int, device: torch.device) -> Tensor | None:
    """Append `count` positions to the user's [3, 1, P], from the largest on: [3, 1, P + count]."""
    if user is None:
        return None
    user = user.to(device)
    following = user.max() + 1 + torch.arange(count, device=device)
    return torch.cat((user, following.to(user.dtype).expand(3, 1, -1)), dim=2)


def _project_user(talker: Any, thinker: ThinkerOutputs) -> Tensor:
    """Project the user's tokens to [1, P, H]: embeddings of text, hidden states of audio, image and video."""
    multimodal = thinker.multimodal[0].tolist()
    media_indices = [index for index, is_media in enumerate(multimodal) if is_media]
    text_indices = [index for index, is_media in enumerate(multimodal) if not is_media]
    parts = []
    if media_indices:
        parts.append(talker.hidden_projection(thinker.user_hidden[0, media_indices]))
    if text_indices:
        parts.append(talker.text_projection(thinker.user[0, text_indices]))
    projected = torch.cat(parts)
    order = torch.tensor(media_indices + text_indices, device=projected.device)
    return torch.empty_like(projected).index_copy_(0, order, projected)[None]
