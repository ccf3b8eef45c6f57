"""The talker: from the thinker's embeddings to the first code's logits and the residual codes.

Shapes: B rows, S new tokens, V codes of the decoder's vocabulary, H hidden size, W the thinker's hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor, nn

from talkerviz.talker.model.cache import Cache
from talkerviz.talker.model.code_predictor import TalkerCodePredictorModelForConditionalGeneration
from talkerviz.talker.model.config import TalkerConfig
from talkerviz.talker.model.decoder import TalkerModel
from talkerviz.talker.model.layers import Linear, activation


class TalkerResizeMLP(nn.Module):
    """Projection of the thinker's vectors to the talker's hidden size."""

    def __init__(self, config: TalkerConfig) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(config.thinker_hidden_size, config.text.intermediate_size)
        self.linear_fc2 = nn.Linear(config.text.intermediate_size, config.text.hidden_size)
        self.act_fn = activation(config.text.hidden_act)

    def forward(self, hidden_state: Tensor) -> Tensor:
        """Project [..., W] to [..., H]."""
        out: Tensor = self.linear_fc2(self.act_fn(self.linear_fc1(hidden_state)))
        return out


@dataclass(frozen=True)
class Acceleration:
    """Ways in which a talker's frames are sped up; none by default.

    Attributes:
        compiled: the layers are compiled with torch.compile, see `compile_talker`.
        fused: each layer runs as a few Triton kernels, see `fuse_talker`.
        graphs: a CUDA graph is replayed for each frame, see `replay_frames`.
    """

    compiled: bool = False
    fused: bool = False
    graphs: bool = False

    def enabled(self) -> list[str]:
        """Return the names of the enabled fields."""
        return [field.name for field in fields(self) if getattr(self, field.name)]


@dataclass(frozen=True)
class TalkerOutput:
    """Output of one pass.

    Attributes:
        logits: logits of the next first code [B, S, V].
        last_hidden_state: hidden states [B, S, H].
    """

    logits: Tensor
    last_hidden_state: Tensor


class TalkerForConditionalGeneration(nn.Module):
    """The Qwen3-Omni talker; its `state_dict` has the checkpoint's names without `talker.`.

    Attributes:
        acceleration: how it is sped up, set by the functions that do it.
    """

    def __init__(self, config: TalkerConfig) -> None:
        super().__init__()
        self.config = config
        self.model = TalkerModel(config.text)
        self.text_projection = TalkerResizeMLP(config)
        self.hidden_projection = TalkerResizeMLP(config)
        self.codec_head = Linear(config.text.hidden_size, config.text.vocab_size)
        self.code_predictor = TalkerCodePredictorModelForConditionalGeneration(config.code_predictor)
        self.acceleration = Acceleration()

    def forward(self, *, inputs_embeds: Tensor, cache: Cache, position_ids: Tensor | None = None) -> TalkerOutput:
        """Run the decoder on new tokens [B, S, H], a prompt or one frame, which follow those in the cache.

        `position_ids` [3, B, S] are as in `TalkerModel`.
        """
        hidden_states = self.model(
            inputs_embeds=inputs_embeds, cache=cache, position_ids=position_ids
        ).last_hidden_state
        return TalkerOutput(self.codec_head(hidden_states), hidden_states)
