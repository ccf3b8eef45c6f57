"""From the thinker's outputs to the talker's prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from talkerviz.talker.model.config import TalkerConfig


@dataclass(frozen=True)
class ThinkerOutputs:
    """What the talker needs of the thinker, W being `thinker_hidden_size`.

    special: embeddings of tts bos, eos and pad [1, 3, W].
    user: embeddings of the user's P tokens [1, P, W].
    user_hidden: hidden states of the same tokens at layer `accept_hidden_layer` [1, P, W].
    multimodal: which of them are audio, image or video [1, P], bool, on the CPU whatever the others are on.
    assistant: embeddings of the T tokens of the answer [1, T, W], the three role tokens first.
    positions: time, height and width of the user's tokens [3, 1, P]; None if they simply follow each other, as text
        and sound do.
    """

    special: Tensor
    user: Tensor
    user_hidden: Tensor
    multimodal: Tensor
    assistant: Tensor
    positions: Tensor | None = None


@dataclass(frozen=True)
class Prompt:
    """What the talker starts from, H being its hidden size; the batch B is 1 but for `batch_prompts`.

    inputs_embeds: the positions of its first pass [B, P + 9, H].
    trailing_text: text still to be spoken, one position added to each later frame's input [B, T - 3, H].
    tts_pad: what is added once the text is used up [B, 1, H].
    positions: time, height and width of the first pass [3, B, P + 9], frames going on from the largest; None if
        positions simply follow each other.
    padding: how many positions at the start of each row are none [B]; None if all are full.
    """

    inputs_embeds: Tensor
    trailing_text: Tensor
    tts_pad: Tensor
    positions: Tensor | None = None
    padding: Tensor | None = None

    @property
    def next_position(self) -> Tensor:
        """The first frame's position that follows, on all three axes: [1, B or 1, 1]."""
        if self.positions is None:
            return torch.full((1, 1, 1), self.inputs_embeds.shape[1], device=self.inputs_embeds.device)
        return self.positions.amax(dim=(0, 2), keepdim=True) + 1


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
        positions=_positions(thinker.positions, text_track.shape[1], pad.device),
    )


def _positions(user: Tensor | None, then: int, device: torch.device) -> Tensor | None:
    """Of the user's tokens [3, 1, P] and `then` more, which go on from the largest: [3, 1, P + then]."""
    if user is None:
        return None
    user = user.to(device)
    more = user.max() + 1 + torch.arange(then, device=device)
    return torch.cat((user, more.to(user.dtype).expand(3, 1, -1)), dim=2)


def batch_prompts(prompts: Sequence[Prompt]) -> Prompt:
    """Several prompts of one talker as rows of one, padded on the left; each row is spoken as it is alone."""
    lengths = [prompt.inputs_embeds.shape[1] for prompt in prompts]
    texts = [prompt.trailing_text.shape[1] for prompt in prompts]
    device = prompts[0].tts_pad.device
    rows, trailing, positions = [], [], []
    for prompt, length, text in zip(prompts, lengths, texts, strict=True):
        left = max(lengths) - length
        rows.append(F.pad(prompt.inputs_embeds, (0, 0, left, 0)))
        trailing.append(torch.cat((prompt.trailing_text, prompt.tts_pad.expand(-1, max(texts) - text, -1)), dim=1))
        own = prompt.positions
        own = torch.arange(length, device=device).expand(3, 1, -1) if own is None else own
        positions.append(F.pad(own, (left, 0)))
    padding = torch.tensor([max(lengths) - length for length in lengths], device=device)
    pads = torch.cat([prompt.tts_pad for prompt in prompts])
    return Prompt(torch.cat(rows), torch.cat(trailing), pads, torch.cat(positions, dim=1), padding)


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
