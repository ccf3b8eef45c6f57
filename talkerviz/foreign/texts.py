"""Tokens, and what goes with them."""

from __future__ import annotations

import torch
from torch import Tensor

from talkerviz.foreign.ask import Ask, parts_of

TOKENS = 12
_SPECIAL = ("_id", "_index", "_ids", "_pad")


def safe_tokens(ask: Ask, count: int = TOKENS, kinds: str = "text decoder language") -> Tensor:
    """Tokens [1, count] that stand for nothing but text."""
    size = ask.of(kinds, "vocab_size", "n_tokens", "num_tokens", default=100)
    size = min(size) if isinstance(size, (list, tuple)) else size
    special: set[int] = set()
    for part in parts_of(ask.config):
        for name, value in vars(part).items():
            if name.endswith(_SPECIAL):
                special |= {
                    one for one in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(one, int)
                }
    plain = [token for token in range(min(int(size), 1000)) if token not in special] or [0]
    return torch.tensor(plain)[ask.whole(0, len(plain), 1, count)]


def first_tokens(ask: Ask, count: int = 4) -> Tensor:
    """Tokens [1, count] that a decoder begins with."""
    start = ask.size("decoder text", "decoder_start_token_id", "bos_token_id", default=0)
    return torch.cat([torch.tensor([[start]]), safe_tokens(ask, count - 1, "decoder text")], dim=1)


def with_places(tokens: Tensor, token: int, count: int) -> Tensor:
    """The tokens with places for something else, after the first few of them."""
    return torch.cat([tokens[:, :4], torch.full((1, count), token), tokens[:, 4:]], dim=1)


def boxes(ask: Ask, count: int = TOKENS) -> Tensor:
    """Where each word stands on a page [1, count, 4]: left, top, right, bottom, in thousandths of it."""
    corners = ask.whole(0, 500, 1, count, 2)
    return torch.cat([corners, corners + ask.whole(1, 400, 1, count, 2)], dim=-1)
