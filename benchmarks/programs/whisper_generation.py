"""Transcription with a small Whisper of transformers: an encoder, then a decoder token by token."""

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

torch.manual_seed(0)
config = WhisperConfig(
    vocab_size=1000,
    d_model=128,
    encoder_layers=4,
    decoder_layers=4,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=256,
    decoder_ffn_dim=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
    suppress_tokens=[],
    begin_suppress_tokens=[],
)
model = WhisperForConditionalGeneration(config).eval()
model.generate(torch.randn(1, 80, 3000), max_new_tokens=64, min_new_tokens=64, do_sample=False)
