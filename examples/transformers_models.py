"""Small models of transformers with random weights.

Trace one with `talkerviz trace call examples.transformers_models:llama`.

Each function returns a model and a callable that runs it once; any such function can be a target.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

Target = tuple[nn.Module, Callable[[], object]]


def llama() -> Target:
    """Build a dense decoder that reads 16 tokens and generates 8."""
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 8, "num_key_value_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=1000, num_hidden_layers=8, **sizes)).eval()
    tokens = torch.arange(16)[None]
    return model, lambda: model.generate(tokens, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)


def whisper() -> Target:
    """Build an audio encoder, and a text decoder with cross attention to it."""
    layers = {"encoder_layers": 4, "decoder_layers": 4, "encoder_ffn_dim": 512, "decoder_ffn_dim": 512, "d_model": 128}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 1000}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    model = WhisperForConditionalGeneration(WhisperConfig(max_source_positions=100, **layers, **heads, **ids)).eval()
    sound, tokens = torch.randn(1, 80, 200), torch.arange(8)[None]
    return model, torch.no_grad()(lambda: model(input_features=sound, decoder_input_ids=tokens))


def vit() -> Target:
    """Build a vision transformer that classifies one image."""
    sizes = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
    model = ViTForImageClassification(ViTConfig(**sizes)).eval()
    pixels = torch.randn(1, 3, 224, 224)
    return model, torch.no_grad()(lambda: model(pixel_values=pixels))


def qwen3() -> Target:
    """Return a language model of 28 layers that reads 24 tokens and decodes 15, one pass a token."""
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 8, "num_key_value_heads": 4}
    config = Qwen3Config(vocab_size=2000, num_hidden_layers=28, head_dim=32, **sizes)
    model, prompt = Qwen3ForCausalLM(config).eval(), torch.arange(24)[None]

    @torch.no_grad()
    def decode() -> None:
        tokens, cache = prompt, None
        for _ in range(16):
            out = model(tokens, past_key_values=cache, use_cache=True)
            tokens, cache = out.logits[:, -1:].argmax(-1), out.past_key_values

    return model, decode
