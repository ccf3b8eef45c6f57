"""Dia of Nari Labs: an encoder of text and a decoder that gives nine codes a pass, each codebook delayed by its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from talkerviz.targets.families.family import Family, Fields, Speech, device_of

_CODEBOOK_SIZE = 1024  # codes of DAC; the decoder's vocabulary has ids for the begin, the end and padding beside them
_GUIDANCE_SCALE = 3.0  # generation_config.json of the checkpoint: each pass is of two rows, with the text and without
# nari-labs/Dia-1.6B-0626, config.json.
_TALKER: Fields = {
    "encoder_config": {
        "num_hidden_layers": 12,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "intermediate_size": 4096,
        "vocab_size": 256,
    },
    "decoder_config": {
        "num_hidden_layers": 18,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "cross_num_attention_heads": 16,
        "cross_head_dim": 128,
        "cross_num_key_value_heads": 16,
        "cross_hidden_size": 1024,
        "vocab_size": 1028,
        "num_channels": 9,
        "pad_token_id": 1025,
        "eos_token_id": 1024,
        "bos_token_id": 1026,
    },
    "delay_pattern": [0, 8, 9, 10, 11, 12, 13, 14, 15],
}
# descript/dac_44khz, config.json; what is not here is transformers' default.
_CODEC: Fields = {
    "sampling_rate": 44100,
    "downsampling_ratios": [2, 4, 8, 8],
    "upsampling_ratios": [8, 8, 4, 2],
    "n_codebooks": 9,
    "codebook_size": _CODEBOOK_SIZE,
    "codebook_dim": 8,
    "encoder_hidden_size": 64,
    "hidden_size": 1024,
    "decoder_hidden_size": 1536,
}
_FULL: Fields = {"talker": _TALKER, "codec": _CODEC}


def _smaller(width: int, layers: tuple[int, int], heads: int, codec_width: int) -> Fields:
    """Return the fields of a smaller preset.

    Args:
        width: hidden size of the decoder; the encoder's is half of it.
        layers: layers of the encoder and of the decoder.
        heads: attention heads of both.
        codec_width: hidden size of the codec's decoder.
    """
    encoder = {
        "num_hidden_layers": layers[0],
        "hidden_size": width // 2,
        "intermediate_size": 2 * width,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // 2 // heads,
    }
    decoder = {
        "num_hidden_layers": layers[1],
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": width // heads,
        "cross_num_attention_heads": heads,
        "cross_num_key_value_heads": heads,
        "cross_head_dim": width // heads,
        "cross_hidden_size": width // 2,
    }
    talker = {
        **_TALKER,
        "encoder_config": {**_TALKER["encoder_config"], **encoder},
        "decoder_config": {**_TALKER["decoder_config"], **decoder},
    }
    codec = {"encoder_hidden_size": 4, "hidden_size": 64, "decoder_hidden_size": codec_width}
    return {"talker": talker, "codec": {**_CODEC, **codec}}


def _build(fields: Fields, dtype: torch.dtype) -> nn.Module:
    from transformers import DacConfig, DacModel, DiaConfig, DiaForConditionalGeneration

    talker = DiaForConditionalGeneration._from_config(DiaConfig(**fields["talker"]), dtype=dtype)
    codec = DacModel._from_config(DacConfig(**fields["codec"]), dtype=dtype)
    return nn.ModuleDict({"talker": talker, "codec": codec})


def _speak(model: Any, speech: Speech) -> Tensor:
    talker, codec = model["talker"], model["codec"]
    device, config = device_of(model), talker.config.decoder_config
    tokens = speech.tokens(talker.config.encoder_config.vocab_size, device)
    delays = torch.tensor(talker.config.delay_pattern, device=device)
    steps = torch.arange(int(delays.max()) + 1, device=device)
    # As the processor does: a codebook begins after as many steps as its delay. [1, 1 + greatest delay, codebooks]
    begun = steps[:, None] <= delays
    start = torch.where(begun, config.bos_token_id, config.pad_token_id)[None]
    codes = talker.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        decoder_input_ids=start,
        decoder_attention_mask=torch.ones(start.shape[:2], dtype=torch.long, device=device),
        # The last frame is whole when its most delayed code is there.
        max_new_tokens=speech.frames + int(delays.max()),
        do_sample=False,
        guidance_scale=_GUIDANCE_SCALE,
    )
    frames = torch.arange(speech.frames, device=device)
    # [1, frames, codebooks]; the end of speech and padding are no codes.
    undelayed = codes[:, 1 + frames[:, None] + delays, torch.arange(len(delays), device=device)]
    undelayed = undelayed.where(undelayed < _CODEBOOK_SIZE, 0)
    audio: Tensor = codec.decode(audio_codes=undelayed.transpose(1, 2)).audio_values
    return audio


DIA = Family(
    name="dia",
    checkpoint="nari-labs/Dia-1.6B-0626",
    codec="DAC",
    frame_rate_hz=44100 / 512,  # DAC has 512 samples a frame
    codes_a_frame=9,
    presets={
        "tiny": _smaller(32, (1, 2), 2, 64),
        "lite": _smaller(256, (12, 18), 8, 256),
        "full": _FULL,
    },
    build=_build,
    speak=_speak,
    passes={"talker.model.decoder": 1},
    codec_path="codec",
)
