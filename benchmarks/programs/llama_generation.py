"""Greedy generation with a small language model of transformers."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    hidden_size=128, intermediate_size=256, num_hidden_layers=12, num_attention_heads=4, vocab_size=1000
)
model = LlamaForCausalLM(config).eval()
model.generate(torch.randint(3, 1000, (1, 16)), max_new_tokens=96, min_new_tokens=96, do_sample=False)
