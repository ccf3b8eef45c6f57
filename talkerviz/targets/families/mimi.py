"""Config of a small Mimi, the codec of CSM and Moshi."""

TINY_MIMI = {
    "model_type": "mimi",
    "hidden_size": 32,
    "num_filters": 4,
    "codebook_dim": 16,
    "vector_quantization_hidden_dimension": 16,
    "upsample_groups": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
