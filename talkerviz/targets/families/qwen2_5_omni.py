"""The talker of Qwen2.5-Omni: one code a pass, and token2wav, a diffusion transformer and a vocoder, for the sound."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from talkerviz.targets.families.family import Family, Fields, Speech, device_of

_REFERENCE_MEL_FRAMES = 300  # of the voice's sample, as long as those in the checkpoint's spk_dict.pt: about 3 s
_REPLY_TOKENS = 20  # of the thinker's reply, one of which each frame takes, until the last is repeated
# Qwen/Qwen2.5-Omni-7B, config.json, talker_config; token2wav has the sizes that transformers has as defaults.
_TALKER: Fields = {
    "vocab_size": 8448,
    "embedding_size": 3584,
    "hidden_size": 896,
    "intermediate_size": 18944,
    "num_hidden_layers": 24,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
_FULL: Fields = {"talker": _TALKER, "token2wav": {}}
_LITE: Fields = {
    "talker": {
        **_TALKER,
        "embedding_size": 512,
        "hidden_size": 128,
        "intermediate_size": 1024,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
    },
    "token2wav": {
        "dit_config": {"hidden_size": 128, "num_attention_heads": 4, "head_dim": 32, "emb_dim": 64},
        "bigvgan_config": {"upsample_initial_channel": 128},
    },
}
_TINY: Fields = {
    "talker": {
        **_LITE["talker"],
        "embedding_size": 32,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
    "token2wav": {
        "dit_config": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 1,
            "head_dim": 32,
            "emb_dim": 16,
            "look_ahead_layers": [1],
            "look_backward_layers": [0],
            "enc_channels": [8, 8, 8, 8, 24],
            "enc_dim": 16,
            "enc_emb_dim": 16,
            "enc_attention_channels": 8,
            "enc_res2net_scale": 2,
            "enc_se_channels": 8,
        },
        "bigvgan_config": {"upsample_initial_channel": 64, "resblock_kernel_sizes": [3]},
    },
}


def _build(fields: Fields, dtype: torch.dtype) -> nn.Module:
    from transformers import (
        Qwen2_5OmniTalkerConfig,
        Qwen2_5OmniTalkerForConditionalGeneration,
        Qwen2_5OmniToken2WavConfig,
        Qwen2_5OmniToken2WavModel,
    )

    talker = Qwen2_5OmniTalkerForConditionalGeneration._from_config(
        Qwen2_5OmniTalkerConfig(**fields["talker"]), dtype=dtype
    )
    # transformers runs it in float32 whatever the talker is in.
    token2wav = Qwen2_5OmniToken2WavModel._from_config(
        Qwen2_5OmniToken2WavConfig(**fields["token2wav"]), dtype=torch.float32
    )
    return nn.ModuleDict({"talker": talker, "token2wav": token2wav})


def _speak(model: Any, speech: Speech) -> Tensor:
    talker, token2wav = model["talker"], model["token2wav"]
    device, config, generator = device_of(model), talker.config, speech.generator()

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    def ids(prompt: int, *last: int) -> Tensor:
        return torch.tensor([[prompt] * speech.text_tokens + [*last]], device=device)

    dtype = next(talker.parameters()).dtype
    # After the prompt come the begin of text and its first token, as the whole model prepares them.
    positions = speech.text_tokens + 2
    codes = talker.generate(
        input_ids=ids(talker.codec_mask_token, talker.codec_pad_token, talker.codec_bos_token),
        input_text_ids=ids(0, talker.text_bos_token, 0),
        inputs_embeds=draw(1, positions, config.embedding_size).to(dtype),
        thinker_reply_part=draw(1, _REPLY_TOKENS, config.embedding_size).to(dtype),
        attention_mask=torch.ones(1, positions, dtype=torch.long, device=device),
        # Codes alone: random weights may give ids of the end or of padding, which are no codes.
        suppress_tokens=[*range(talker.codec_pad_token, config.vocab_size)],
        max_new_tokens=speech.frames,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=talker.codec_pad_token,
    )
    dit = token2wav.config.dit_config
    codes = codes[:, positions:].clamp(max=dit.num_embeds - 1)
    audio: Tensor = token2wav(
        codes,
        conditioning=draw(1, dit.enc_emb_dim),
        reference_mel=draw(1, _REFERENCE_MEL_FRAMES, dit.mel_dim),
    )
    return audio


QWEN2_5_OMNI = Family(
    name="qwen2.5-omni",
    checkpoint="Qwen/Qwen2.5-Omni-7B",
    codec="token2wav (DiT, BigVGAN)",
    frame_rate_hz=50,  # a code is two frames of the mel spectrogram, of 240 samples each at 24 kHz
    codes_a_frame=1,
    presets={"tiny": _TINY, "lite": _LITE, "full": _FULL},
    build=_build,
    speak=_speak,
    passes={"talker.model": 1},
    codec_path="token2wav",
)
