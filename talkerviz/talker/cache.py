"""The keys and values of the tokens seen so far."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import StackConfig


class KVCache:
    """Keys and values of every layer, allocated once for a whole run.

    Two tensors [layers, 1, key-value heads, positions, head_dim]; `length` positions of them are in use.
    """

    def __init__(self, config: StackConfig, positions: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.num_hidden_layers, 1, config.num_key_value_heads, positions, config.head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values [1, heads, new, head_dim]; return all of them up to the new ones.

        `length` stays: the stack moves it on when its last layer is done.
        """
        start, end = self.length, self.length + keys.shape[2]
        self.keys[layer, :, :, start:end] = keys
        self.values[layer, :, :, start:end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
