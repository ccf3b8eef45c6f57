"""A loop with a deadline that one frame misses, to be recorded as it is.

talkerviz run --deadline 200ms -o frames.parquet examples/deadline_program.py
talkerviz show --late frames.parquet
"""

import time

import torch
from torch import Tensor, nn

DISTURBED_FRAME, DISTURBANCE_S = 40, 0.4


class Filter(nn.Module):
    """A layer that is slow once."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.frame = nn.Linear(80, 80), -1

    def forward(self, x: Tensor) -> Tensor:
        """Filter a frame of [1, 80] values."""
        self.frame += 1
        if self.frame == DISTURBED_FRAME:
            time.sleep(DISTURBANCE_S)
        return self.mix(x)


torch.manual_seed(0)
vocoder = nn.Sequential(nn.Linear(80, 80), Filter())
with torch.no_grad():
    for _ in range(60):
        vocoder(torch.randn(1, 80))
