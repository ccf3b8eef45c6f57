"""The keys and values of the tokens seen so far."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from talkerviz.talker.model.config import StackConfig


class LayerCache:
    """Keys and values of a layer [batch, key-value heads, positions, head_dim]; the last are yet to be written."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new keys and values [batch, heads, new, head_dim]; return all."""
        self.keys[:, :, -keys.shape[2] :] = keys
        self.values[:, :, -values.shape[2] :] = values
        return self.keys, self.values


class KVCache:
    """Keys and values of every layer, allocated once for a whole run.

    Two tensors [layers, batch, key-value heads, positions, head_dim]; `length` positions of them are in use. With
    `padding` [batch] the first so many positions of each row hold nothing that may be looked at.
    """

    def __init__(
        self,
        config: StackConfig,
        positions: int,
        device: torch.device,
        dtype: torch.dtype,
        batch: int = 1,
        padding: Tensor | None = None,
    ) -> None:
        # With room that is never used, all that is handed out has the same kind of strides, and compiled code fits it.
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, positions + 1, config.head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.padding = padding
        self.length = 0

    def layers(self, new: int) -> Iterator[LayerCache]:
        """Of every layer what it has seen, and room for `new` tokens.

        `length` stays: the stack moves it on when its last layer is done.
        """
        end = self.length + new
        for keys, values in zip(self.keys, self.values, strict=True):
            yield LayerCache(keys[:, :, :end], values[:, :, :end])

    def mask(self, new: int) -> Tensor | None:
        """What each of the next `new` tokens may look at [batch, 1, new, positions]; None if nothing is padded."""
        if self.padding is None:
            return None
        places = torch.arange(self.length + new, device=self.padding.device)
        own = places[self.length :, None]
        seen = (places <= own) & (places >= self.padding[:, None, None])
        # What pads a row looks at itself: with nothing at all to look at its values would not be numbers.
        return (seen | (places == own))[:, None]


class StaticCache:
    """A KVCache whose next place is a tensor: each pass does the same to the same memory, so that it can be replayed.

    One new token a pass. All positions are looked at, those that are not there behind a mask.
    """

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.length = cache.length
        self.place = torch.tensor([cache.length], device=cache.keys.device)
        # What is masked is still multiplied, by zero, so it must be numbers.
        cache.keys[:, :, :, cache.length :] = 0
        cache.values[:, :, :, cache.length :] = 0

    def layers(self, new: int) -> Iterator[StaticLayerCache]:
        """Of every layer all positions, and the place of the one new token."""
        for keys, values in zip(self.cache.keys, self.cache.values, strict=True):
            yield StaticLayerCache(keys, values, self.place)

    def mask(self, new: int) -> Tensor:
        """What the new token may look at [batch or 1, 1, 1, positions]."""
        places = torch.arange(self.cache.keys.shape[3], device=self.place.device)
        seen = (places <= self.place)[None]
        if self.cache.padding is not None:
            seen = seen & (places >= self.cache.padding[:, None])
        return seen[:, None, None]


class StaticLayerCache(LayerCache):
    """The same for a place that is a tensor [1]."""

    def __init__(self, keys: Tensor, values: Tensor, place: Tensor) -> None:
        super().__init__(keys, values)
        self.place = place

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new key and value [batch, heads, 1, head_dim]; return all."""
        self.keys.index_copy_(2, self.place, keys)
        self.values.index_copy_(2, self.place, values)
        return self.keys, self.values
