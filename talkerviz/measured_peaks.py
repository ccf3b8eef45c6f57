"""Measure what this machine's device can do: matrix products and copies a second."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch

from talkerviz.trace.peaks import Peaks

_SECONDS_EACH = 0.5


def measure_peaks(device: str) -> Peaks:
    """The best of many square matrix products in each dtype, and of many copies of memory that no cache holds."""
    cuda = torch.device(device).type == "cuda"
    size = 8192 if cuda else 2048
    flops = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b, out = (torch.zeros(size, size, device=device, dtype=dtype) for _ in range(3))

        def multiply(a: torch.Tensor = a, b: torch.Tensor = b, out: torch.Tensor = out) -> None:
            torch.mm(a, b, out=out)

        flops[str(dtype).removeprefix("torch.")] = 2 * size**3 / _best(multiply, cuda)
    when = f"measured {datetime.date.today()} with torch {torch.__version__}, {torch.get_num_threads()} threads"
    return Peaks(device_name(device), flops, measure_bandwidth(device), when)


def measure_bandwidth(device: str) -> float:
    """Bytes a second, the best of many copies of memory that no cache holds."""
    cuda = torch.device(device).type == "cuda"
    source, target = (torch.zeros((4 << 30 if cuda else 512 << 20) // 4, device=device) for _ in range(2))
    # A copy reads every byte and writes it.
    return 2 * source.numel() * 4 / _best(lambda: target.copy_(source), cuda)


def device_name(device: str) -> str:
    """What a device calls itself."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else _cpu_name()


def _best(work: Callable[[], object], cuda: bool) -> float:
    """The least seconds that the work took, over half a second of tries."""
    best, began = float("inf"), perf_counter()
    tries = 0
    while tries < 3 or perf_counter() - began < _SECONDS_EACH:
        at = perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        best = min(best, perf_counter() - at)
        tries += 1
    return best


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
