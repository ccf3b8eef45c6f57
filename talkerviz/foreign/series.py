"""Series of numbers over time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from talkerviz.foreign.ask import Ask


def _past(ask: Ask) -> int:
    lags: list[int] = ask.of("", "lags_sequence", default=[0])
    return ask.size("", "context_length", default=32) + max(lags)


def _values(ask: Ask, length: int) -> list[Tensor]:
    channels = ask.size("", "num_input_channels", "input_size", default=1)
    flat = ask.real(1, length)
    deep = ask.real(1, length, channels)
    return [flat, deep] if hasattr(ask.config, "lags_sequence") and channels == 1 else [deep, flat]


def _times(ask: Ask, length: int) -> Tensor:
    return ask.real(1, length, ask.size("", "num_time_features", default=0))


SERIES: dict[str, Callable[[Ask], list[Any]]] = {
    "past_values": lambda ask: _values(ask, _past(ask)),
    "past_observed_mask": lambda ask: [torch.ones_like(_values(ask, _past(ask))[0])],
    "past_time_features": lambda ask: [_times(ask, _past(ask))],
    "future_values": lambda ask: [_values(ask, ask.size("", "prediction_length", default=8))[0]],
    "future_time_features": lambda ask: [_times(ask, ask.size("", "prediction_length", default=8))],
    "past_values_padding": lambda ask: [torch.zeros(1, _past(ask), dtype=torch.long)],
    "freq": lambda ask: [torch.zeros(1, 1, dtype=torch.long)],
}
