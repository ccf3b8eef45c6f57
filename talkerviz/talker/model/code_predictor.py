"""The code predictor: a frame's residual codes from its hidden state and first code, one pass for each code.

Shapes: B rows, S new tokens, V codes, H hidden size. A frame has G code groups, of which the decoder computes group 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from talkerviz.talker.model.cache import KVCache
from talkerviz.talker.model.config import CodePredictorConfig
from talkerviz.talker.model.decoder import ModelOutput, TalkerCodePredictorDecoderLayer, run_layers
from talkerviz.talker.model.layers import Linear, RMSNorm
from talkerviz.talker.model.rope import RotaryEmbedding


class TalkerCodePredictorModel(nn.Module):
    """A small dense stack and the embeddings of codes 1 to G - 1 (`talker.code_predictor.model`)."""

    def __init__(self, config: CodePredictorConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TalkerCodePredictorDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config)
        self.codec_embedding = nn.ModuleList(
            nn.Embedding(config.vocab_size, config.hidden_size) for _ in range(config.num_code_groups - 1)
        )

    def forward(self, *, inputs_embeds: Tensor, cache: KVCache) -> ModelOutput:
        """Compute the hidden states of new tokens [B, S, H], which follow those in the cache."""
        position_ids = cache.positions(inputs_embeds.shape[1])
        return run_layers(self.layers, self.norm, self.rotary_emb, inputs_embeds, position_ids, cache)


@dataclass(frozen=True)
class CodePredictorOutput:
    """Output of one pass.

    Attributes:
        logits: logits of the next code [B, S, V].
        inputs_embeds: the input embeddings [B, S, H].
    """

    logits: Tensor
    inputs_embeds: Tensor


class TalkerCodePredictorModelForConditionalGeneration(nn.Module):
    """The code predictor with a head for each of the codes 1 to G - 1."""

    def __init__(self, config: CodePredictorConfig) -> None:
        super().__init__()
        self.model = TalkerCodePredictorModel(config)
        self.lm_head = nn.ModuleList(
            Linear(config.hidden_size, config.vocab_size) for _ in range(config.num_code_groups - 1)
        )

    def forward(
        self,
        *,
        cache: KVCache,
        group: int,
        inputs_embeds: Tensor | None = None,
        code: Tensor | None = None,
    ) -> CodePredictorOutput:
        """Compute the logits of the code of `group`, 1 to G - 1.

        The first pass of a frame (group 1) takes `inputs_embeds` [B, 2, H]: the talker's hidden state and the embedded
        first code. Each later pass takes `code` [B, 1], the code of the group before.
        """
        if inputs_embeds is None:
            # Group g's embedding and head have index g - 1, since group 0 belongs to the decoder.
            inputs_embeds = self.model.codec_embedding[group - 2](code)
        hidden_states = self.model(inputs_embeds=inputs_embeds, cache=cache).last_hidden_state
        return CodePredictorOutput(self.lm_head[group - 1](hidden_states), inputs_embeds)
