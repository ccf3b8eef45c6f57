"""Replacements for the `forward` of a fused talker's modules."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from talkerviz.talker.kernels.angles import fused_angles
from talkerviz.talker.kernels.attention import add_attention
from talkerviz.talker.kernels.codes import fused_embedding
from talkerviz.talker.kernels.experts import add_experts
from talkerviz.talker.kernels.mlp import add_mlp
from talkerviz.talker.kernels.rows import normalise_rows, project_rows
from talkerviz.talker.model.cache import KVCache, LayerCache
from talkerviz.talker.model.code_predictor import TalkerCodePredictorModel
from talkerviz.talker.model.decoder import DecoderLayer, ModelOutput, run_layers
from talkerviz.talker.model.layers import Linear, RMSNorm
from talkerviz.talker.model.moe import TalkerTextSparseMoeBlock
from talkerviz.talker.model.rope import RotaryEmbedding, TalkerRotaryEmbedding

_TOKENS = 2
"""Maximum tokens of a dense layer's kernels: a frame's first pass of the code predictor has two."""


def _is_fused(x: Tensor) -> bool:
    """Return True if the kernels run x [B, S, H].

    They do not where a dispatch mode counts or follows operations, since it does not see inside a kernel.
    """
    return x.shape[0] == 1 and x.shape[1] <= _TOKENS and not is_in_torch_dispatch_mode()


def layer_forward(
    layer: DecoderLayer,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    cache: LayerCache,
) -> Tensor:
    """Run a decoder layer."""
    mixture = isinstance(layer.mlp, TalkerTextSparseMoeBlock)
    if (hidden_states.shape[1] > 1 and mixture) or not _is_fused(hidden_states):
        return type(layer).forward(layer, hidden_states, position_embeddings, cache)
    x = hidden_states.contiguous()
    x = add_attention(x, layer.self_attn, layer.input_layernorm, position_embeddings, cache)
    if isinstance(layer.mlp, TalkerTextSparseMoeBlock):
        return add_experts(x, layer.mlp, layer.post_attention_layernorm)
    return add_mlp(x, layer.mlp, layer.post_attention_layernorm)


def norm_forward(norm: RMSNorm, hidden_states: Tensor) -> Tensor:
    """Run the norm after a stack's layers."""
    if not _is_fused(hidden_states):
        return type(norm).forward(norm, hidden_states)
    return normalise_rows(hidden_states.contiguous(), norm)


def head_forward(head: Linear, input: Tensor) -> Tensor:
    """Run a head."""
    if not _is_fused(input):
        return type(head).forward(head, input)
    return project_rows(input.contiguous(), [head.weight])


def embedding_forward(embedding: nn.Embedding, input: Tensor) -> Tensor:
    """Look up the embedding of a code."""
    if input.numel() > 1 or is_in_torch_dispatch_mode():
        return type(embedding).forward(embedding, input)
    return fused_embedding(embedding.weight, input)


def predictor_forward(positions: Tensor) -> Callable[..., ModelOutput]:
    """Return the forward of the code predictor's stack, with its positions [1, P] computed once."""

    def forward(self: TalkerCodePredictorModel, *, inputs_embeds: Tensor, cache: KVCache) -> ModelOutput:
        if not _is_fused(inputs_embeds):
            return type(self).forward(self, inputs_embeds=inputs_embeds, cache=cache)
        position_ids = positions[:, cache.length : cache.length + inputs_embeds.shape[1]]
        return run_layers(self.layers, self.norm, self.rotary_emb, inputs_embeds, position_ids, cache)

    return forward


def known_angles_forward(angles: tuple[Tensor, Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the forward of the code predictor's rotary embedding: cos and sin of all positions, computed once."""

    def forward(self: RotaryEmbedding, hidden_states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        return angles if _is_fused(hidden_states) else type(self).forward(self, hidden_states, position_ids)

    return forward


def angles_forward(rotary: TalkerRotaryEmbedding, hidden_states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Run the decoder's rotary embedding."""
    if position_ids.shape[1:] != (1, 1) or not _is_fused(hidden_states):
        return type(rotary).forward(rotary, hidden_states, position_ids)
    return fused_angles(rotary, hidden_states, position_ids)
