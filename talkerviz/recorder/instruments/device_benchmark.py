"""Benchmark of this machine's device: peak FLOP/s and memory bandwidth."""

from __future__ import annotations

import datetime
import functools
import platform
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch

from talkerviz.recorder.instruments.device_peaks import Peaks
from talkerviz.recorder.instruments.device_runtime import accelerator_name

_BENCHMARK_SECONDS = 0.5  # of tries of each operation
_MIN_PRODUCT_SECONDS = 0.02  # long enough to be timed, and for all cores to take part
_MAX_PRODUCT_SIZE_CPU, _MAX_PRODUCT_SIZE_ACCELERATOR = 2048, 8192
# Larger than any cache; small accelerators share their memory with the host.
_COPY_BYTES, _COPY_BYTES_CUDA = 512 << 20, 4 << 30


def measure_peaks(device: str) -> Peaks:
    """Return the peak of square matrix products in each dtype, and of copies of memory that no cache holds."""
    dtypes = (torch.float32, torch.bfloat16)
    flops = {str(dtype).removeprefix("torch."): _measure_products(device, dtype) for dtype in dtypes}
    when = f"measured {datetime.date.today()} with torch {torch.__version__}, {torch.get_num_threads()} threads"
    return Peaks(device_name(device), flops, measure_bandwidth(device), when)


def _measure_products(device: str, dtype: torch.dtype) -> float:
    """Return FLOP/s of the first product that takes long enough to time; it stays small if a CPU emulates bfloat16."""
    on_cpu = torch.device(device).type == "cpu"
    size, largest = 256, _MAX_PRODUCT_SIZE_CPU if on_cpu else _MAX_PRODUCT_SIZE_ACCELERATOR
    while True:
        a, b, out = (torch.zeros(size, size, device=device, dtype=dtype) for _ in range(3))
        multiply = functools.partial(torch.mm, a, b, out=out)
        if size == largest or _best(multiply, device, 0) > _MIN_PRODUCT_SECONDS:
            return 2 * size**3 / _best(multiply, device)
        size *= 2


def measure_bandwidth(device: str) -> float:
    """Return bytes read and written a second, the best of many copies of memory that no cache holds."""
    size = _COPY_BYTES_CUDA if torch.device(device).type == "cuda" else _COPY_BYTES
    source, target = (torch.zeros(size // 4, device=device) for _ in range(2))
    # A copy reads every byte and writes it.
    return 2 * size / _best(lambda: target.copy_(source), device)


def device_name(device: str) -> str:
    """Return the name of a device as its driver or operating system reports it."""
    asked = torch.device(device)
    return _cpu_name() if asked.type == "cpu" else accelerator_name(asked) or device


def _best(work: Callable[[], object], device: str, seconds: float = _BENCHMARK_SECONDS) -> float:
    """Return the least time that the work took in seconds, over at least three tries."""
    best, began = float("inf"), perf_counter()
    tries = 0
    while tries < 3 or perf_counter() - began < seconds:
        start = perf_counter()
        work()
        if torch.device(device).type != "cpu":
            torch.accelerator.synchronize()
        best = min(best, perf_counter() - start)
        tries += 1
    return best


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
