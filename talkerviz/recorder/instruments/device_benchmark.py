"""Measure what this machine's device can do: matrix products and copies a second."""

from __future__ import annotations

import datetime
import functools
import platform
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch

from talkerviz.recorder.instruments.device_peaks import Peaks

_SECONDS_EACH = 0.5
_SECONDS_A_PRODUCT = 0.02  # long enough to be timed, and for all cores to take part


def measure_peaks(device: str) -> Peaks:
    """The best of many square matrix products in each dtype, and of many copies of memory that no cache holds."""
    dtypes = (torch.float32, torch.bfloat16)
    flops = {str(dtype).removeprefix("torch."): _measure_products(device, dtype) for dtype in dtypes}
    when = f"measured {datetime.date.today()} with torch {torch.__version__}, {torch.get_num_threads()} threads"
    return Peaks(device_name(device), flops, measure_bandwidth(device), when)


def _measure_products(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of the largest product that does not take long: some CPUs emulate bfloat16."""
    cuda = torch.device(device).type == "cuda"
    size, most = 256, 8192 if cuda else 2048
    while True:
        a, b, out = (torch.zeros(size, size, device=device, dtype=dtype) for _ in range(3))
        multiply = functools.partial(torch.mm, a, b, out=out)
        if size == most or _best(multiply, cuda, 0) > _SECONDS_A_PRODUCT:
            return 2 * size**3 / _best(multiply, cuda)
        size *= 2


def measure_bandwidth(device: str) -> float:
    """Bytes a second, the best of many copies of memory that no cache holds."""
    cuda = torch.device(device).type == "cuda"
    source, target = (torch.zeros((4 << 30 if cuda else 512 << 20) // 4, device=device) for _ in range(2))
    # A copy reads every byte and writes it.
    return 2 * source.numel() * 4 / _best(lambda: target.copy_(source), cuda)


def device_name(device: str) -> str:
    """What a device calls itself."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else _cpu_name()


def _best(work: Callable[[], object], cuda: bool, seconds: float = _SECONDS_EACH) -> float:
    """The least seconds that the work took, over so many seconds of tries."""
    best, began = float("inf"), perf_counter()
    tries = 0
    while tries < 3 or perf_counter() - began < seconds:
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
