"""Code2wav: decoder from codes to audio that keeps its state from chunk to chunk of a stream.

A transformer over frames attends to a sliding window of them, transposed convolutions upsample its hidden states to
latent steps, and a decoder of causal convolutions upsamples these to samples (Qwen3-Omni, arXiv:2509.17765). Nothing
looks ahead, so that all a stream needs of its past are the last inputs of each convolution and the last keys and
values of each attention. Module names are the checkpoint's.

Shapes: B rows, F frames of a chunk, Q codebooks, H hidden size, C channels, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talkerviz.talker.model.code2wav_config import Code2WavConfig
from talkerviz.talker.model.layers import RMSNorm, activation
from talkerviz.talker.model.rope import RotaryEmbedding, rotate


class StreamingCode2Wav:
    """Decoder of one stream: any chunks of its codes give the samples of one pass over all of them.

    Sums of other shapes round in other places: samples differ by less than 2e-6 in float32, and by noise 32 dB or more
    below the sound in bfloat16 (found on 250 small random models). The memory that a stream takes does not grow.

        decoder = StreamingCode2Wav(code2wav)
        for codes in chunks:
            samples = decoder.decode(codes)

    Args:
        code2wav: the weights, which any number of streams share.
    """

    def __init__(self, code2wav: Code2Wav) -> None:
        self._code2wav = code2wav
        self._state = code2wav.new_stream()

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Decode the next codes of the stream.

        The first chunk has fewer samples than frames x 1,920, by 555 as published: see `Code2WavConfig.samples_of`.

        Args:
            codes: codes [F, Q], int64, on the CPU.

        Returns:
            Samples [n] of 1/24,000 s from -1 to 1, float32, on the device of code2wav.

        Raises:
            ValueError: codes that code2wav does not have; the stream can go on with others.
        """
        check_codes(codes, self._code2wav.config, self._state.frames)
        device = self._code2wav.code_embedding.weight.device
        if not len(codes):
            return torch.empty(0, device=device)
        samples: Tensor = self._code2wav(codes.T[None].to(device), self._state)
        return samples[0, 0].float()


def check_codes(codes: Tensor, config: Code2WavConfig, first: int = 0) -> None:
    """Check that code2wav has all codes [F, Q], which are on the CPU; `first` is the number of their first frame.

    Raises:
        ValueError: it does not.
    """
    if codes.ndim != 2 or codes.shape[1] != config.num_quantizers:
        raise ValueError(f"codes of shape {list(codes.shape)}: code2wav takes {config.num_quantizers} of each frame")
    # In NumPy, so that a trace of the run does not have these operations.
    values = codes.numpy()
    wrong = np.argwhere((values < 0) | (values >= config.codebook_size))
    if len(wrong):
        frame, group = wrong[0].tolist()
        raise ValueError(
            f"frame {first + frame} has the code {values[frame, group]} in group {group}: "
            f"code2wav knows 0 to {config.codebook_size - 1}"
        )


@dataclass
class Past:
    """Last steps of a layer's input, kept for its next chunk.

    Attributes:
        steps: the steps; None before the first chunk.
    """

    steps: Tensor | None = None

    def prepend_to(self, new: Tensor, keep: int, dim: int = -1) -> Tensor:
        """Return the kept and the new steps along a dimension, and keep the last `keep` of them."""
        steps = new if self.steps is None else torch.cat((self.steps, new), dim)
        kept = min(keep, steps.shape[dim])
        # A copy: a view would hold the memory of the whole chunk.
        self.steps = steps.narrow(dim, steps.shape[dim] - kept, kept).clone()
        return steps


@dataclass
class StreamState:
    """State of a stream between two chunks.

    Attributes:
        frames: number of frames decoded.
        attention: past keys and values of each transformer layer.
        upsample: past inputs of each ConvNeXt block's convolution.
        decoder: past inputs of the convolutions of each of the decoder's modules that have some.
    """

    frames: int = 0
    attention: list[tuple[Past, Past]] = field(default_factory=list)
    upsample: list[Past] = field(default_factory=list)
    decoder: list[list[Past]] = field(default_factory=list)


class Code2Wav(nn.Module):
    """Decoder from codes to audio (Qwen3-Omni, arXiv:2509.17765)."""

    def __init__(self, config: Code2WavConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.pre_transformer = Code2WavTransformerModel(config)
        self.code_embedding = nn.Embedding(config.codebook_size * config.num_quantizers, width)
        self.upsample = nn.ModuleList(
            nn.ModuleList([CausalTransConvNet(width, width, ratio, ratio), ConvNeXtBlock(width)])
            for ratio in config.upsampling_ratios
        )
        channels = [config.decoder_dim // 2**block for block in range(len(config.upsample_rates) + 1)]
        blocks = zip(channels, channels[1:], config.upsample_rates, strict=False)
        self.decoder = nn.ModuleList(
            [
                CausalConvNet(width, channels[0], kernel_size=7),
                *(Code2WavDecoderBlock(wide, narrow, rate) for wide, narrow, rate in blocks),
                SnakeBeta(channels[-1]),
                CausalConvNet(channels[-1], 1, kernel_size=7),
            ]
        )

    def new_stream(self) -> StreamState:
        """Return the state of a stream of which nothing is decoded."""
        blocks = len(self.config.upsample_rates)
        return StreamState(
            attention=[(Past(), Past()) for _ in range(self.config.num_hidden_layers)],
            upsample=[Past() for _ in self.config.upsampling_ratios],
            decoder=[[Past()], *([Past() for _ in range(4)] for _ in range(blocks)), [Past()]],
        )

    def forward(self, codes: Tensor, state: StreamState | None = None) -> Tensor:
        """Decode codes [B, Q, F] to samples [B, 1, n] from -1 to 1; without a state they are a whole stream."""
        state = state or self.new_stream()
        offsets = torch.arange(self.config.num_quantizers, device=codes.device) * self.config.codebook_size
        hidden = self.code_embedding(codes + offsets[:, None]).mean(1)  # [B, F, H]
        hidden = self.pre_transformer(hidden, state.frames, state.attention).transpose(1, 2)  # [B, H, F]
        for stage, past in zip(self.upsample, state.upsample, strict=True):
            upsample, convnext = cast(nn.ModuleList, stage)
            hidden = convnext(upsample(hidden), past)  # [B, H, T]
        first, *blocks, snake, last = self.decoder
        first_past, *block_pasts, last_past = state.decoder
        hidden = first(hidden, *first_past)  # [B, C, T]
        for block, pasts in zip(blocks, block_pasts, strict=True):
            hidden = block(hidden, pasts)
        samples: Tensor = last(snake(hidden), *last_past)
        state.frames += codes.shape[-1]
        return samples.clamp(-1, 1)


class Code2WavTransformerModel(nn.Module):
    """Transformer over frames."""

    def __init__(self, config: Code2WavConfig) -> None:
        super().__init__()
        self.window = config.sliding_window
        self.layers = nn.ModuleList(Code2WavTransformerLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config)

    def forward(self, hidden_states: Tensor, first: int, pasts: Sequence[tuple[Past, Past]]) -> Tensor:
        """Transform hidden states [B, F, H], whose first frame has the number `first` in its stream."""
        frames, device = hidden_states.shape[1], hidden_states.device
        positions = torch.arange(first, first + frames, device=device)
        position_embeddings = self.rotary_emb(hidden_states, positions[None])
        oldest = max(first - self.window + 1, 0)
        mask = None
        if frames > 1:
            ages = positions[:, None] - torch.arange(oldest, first + frames, device=device)
            mask = (ages >= 0) & (ages < self.window)  # [F, kept and new frames]
        for layer, past in zip(self.layers, pasts, strict=True):
            hidden_states = layer(hidden_states, position_embeddings, mask, past)
        out: Tensor = self.norm(hidden_states)
        return out


class Code2WavTransformerLayer(nn.Module):
    """Transformer layer whose residual branches are scaled."""

    def __init__(self, config: Code2WavConfig) -> None:
        super().__init__()
        self.self_attn = Code2WavAttention(config)
        self.mlp = Code2WavMlp(config)
        self.input_layernorm = Code2WavRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Code2WavRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn_layer_scale = Code2WavLayerScale(config.hidden_size)
        self.mlp_layer_scale = Code2WavLayerScale(config.hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        past: tuple[Past, Past],
    ) -> Tensor:
        """Transform hidden states [B, F, H]."""
        mixed = self.self_attn(self.input_layernorm(hidden_states), position_embeddings, mask, past)
        hidden_states = hidden_states + self.self_attn_layer_scale(mixed)
        mixed = self.mlp(self.post_attention_layernorm(hidden_states))
        hidden_states = hidden_states + self.mlp_layer_scale(mixed)
        return hidden_states


class Code2WavAttention(nn.Module):
    """Self-attention in a sliding window.

    Shapes: N query heads, K key-value heads, D head_dim, P kept and new frames.
    """

    def __init__(self, config: Code2WavConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.window = config.sliding_window
        queries, keys = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, config.attention_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, config.attention_bias)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        mask: Tensor | None,
        past: tuple[Past, Past],
    ) -> Tensor:
        """Attend from hidden states [B, F, H] to themselves and the frames before them: [B, F, H].

        `mask` [F, P] is True for the frames to attend to; None for all.
        """
        batch, frames, _ = hidden_states.shape
        heads = (batch, frames, -1, self.head_dim)
        query = rotate(self.q_proj(hidden_states).view(heads).transpose(1, 2), *position_embeddings)  # [B, N, F, D]
        key = rotate(self.k_proj(hidden_states).view(heads).transpose(1, 2), *position_embeddings)  # [B, K, F, D]
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)  # [B, K, F, D]
        keys, values = (
            kept.prepend_to(new, self.window - 1, dim=2) for kept, new in zip(past, (key, value), strict=True)
        )  # [B, K, P, D]
        mixed = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, enable_gqa=query.shape[1] != keys.shape[1]
        )
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, frames, -1))
        return out


class Code2WavMlp(nn.Module):
    """Gated feed-forward network (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: Code2WavConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """Transform [B, F, H]."""
        out: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return out


class Code2WavRMSNorm(RMSNorm):
    """RMSNorm inside the layers, under the class name that transformers has for it."""


class Code2WavLayerScale(nn.Module):
    """Scale of each channel of a residual branch (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Scale [..., H]."""
        return self.scale * x


class CausalConvNet(nn.Module):
    """Convolution over a step and those before it."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, out_channels, kernel_size, dilation=dilation, groups=groups)
        self.steps_before = (kernel_size - 1) * dilation

    def forward(self, hidden_state: Tensor, past: Past) -> Tensor:
        """Convolve [B, C, T]; a stream begins with zeros."""
        if past.steps is None:
            past.steps = hidden_state.new_zeros(*hidden_state.shape[:-1], self.steps_before)
        out: Tensor = self.conv(past.prepend_to(hidden_state, self.steps_before))
        return out


class CausalTransConvNet(nn.Module):
    """Upsampling by a transposed convolution, whose kernel is as long as the stride, or twice as long."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(channels, out_channels, kernel_size, stride=stride)
        self.stride = stride

    def forward(self, hidden_state: Tensor, past: Past | None = None) -> Tensor:
        """Upsample [B, C, T] to [B, C', T · stride].

        `past` is needed where kernels overlap. The first step of a stream is half of an output and gives none.
        """
        if past is not None:
            hidden_state = past.prepend_to(hidden_state, 1)
        # One matrix product: on a CPU torch's transposed convolution takes ten times as long for a few steps.
        weight, bias = self.conv.weight, cast(Tensor, self.conv.bias)  # [C, C', kernel], [C']
        pieces = hidden_state.transpose(1, 2) @ weight.flatten(1)  # [B, T, C' · kernel]
        pieces = pieces.view(*pieces.shape[:2], len(bias), -1, self.stride)  # [B, T, C', halves of the kernel, stride]
        out = pieces[..., 0, :] if past is None else pieces[:, 1:, :, 0] + pieces[:, :-1, :, 1]
        return (out + bias[:, None]).transpose(1, 2).flatten(2)


class ConvNeXtBlock(nn.Module):
    """ConvNeXt block in one dimension (Liu et al. 2022, arXiv:2201.03545)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.dwconv = CausalConvNet(size, size, kernel_size=7, groups=size)
        self.norm = nn.LayerNorm(size, eps=1e-6)
        self.pwconv1 = nn.Linear(size, 4 * size)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * size, size)
        self.gamma = nn.Parameter(torch.ones(size))

    def forward(self, hidden_states: Tensor, past: Past) -> Tensor:
        """Transform [B, H, T]."""
        hidden = self.norm(self.dwconv(hidden_states, past).transpose(1, 2))
        hidden = self.gamma * self.pwconv2(self.act(self.pwconv1(hidden)))
        out: Tensor = hidden_states + hidden.transpose(1, 2)
        return out


class SnakeBeta(nn.Module):
    """Periodic activation x + sin²(x · e^alpha) / e^beta of each channel (Ziyin et al. 2020, arXiv:2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Activate [B, C, T]."""
        alpha, beta = self.alpha.exp()[:, None], self.beta.exp()[:, None]
        # In place, as each new tensor of this size costs as much as the sine. The sum keeps from dividing by 0.
        return (hidden_states * alpha).sin_().square_().mul_(1.0 / (beta + 1e-9)).add_(hidden_states)


class Code2WavDecoderResidualUnit(nn.Module):
    """Residual unit of a dilated convolution and one over channels."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.act1 = SnakeBeta(channels)
        self.conv1 = CausalConvNet(channels, channels, kernel_size=7, dilation=dilation)
        self.act2 = SnakeBeta(channels)
        self.conv2 = CausalConvNet(channels, channels, kernel_size=1)

    def forward(self, hidden_state: Tensor, past: Past) -> Tensor:
        """Transform [B, C, T]."""
        out: Tensor = self.conv2(self.act2(self.conv1(self.act1(hidden_state), past)), Past())
        return out + hidden_state


class Code2WavDecoderBlock(nn.Module):
    """Upsampling to half the channels, and three residual units of growing dilation."""

    def __init__(self, channels: int, out_channels: int, rate: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            [
                SnakeBeta(channels),
                CausalTransConvNet(channels, out_channels, 2 * rate, rate),
                *(Code2WavDecoderResidualUnit(out_channels, dilation) for dilation in (1, 3, 9)),
            ]
        )

    def forward(self, hidden: Tensor, pasts: Sequence[Past]) -> Tensor:
        """Upsample [B, C, T] to [B, C / 2, T · rate]; `pasts` are of the upsampling and of each unit."""
        snake, *convolutions = self.block
        hidden = snake(hidden)
        for convolution, past in zip(convolutions, pasts, strict=True):
            hidden = convolution(hidden, past)
        return hidden
