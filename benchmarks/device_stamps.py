"""Host cost of a device stamp: the recorder's share, on made-up runtimes whose own functions cost next to nothing.

    PYTHONPATH=. python benchmarks/device_stamps.py

Needs a C compiler and no GPU. A call of a recorded module is timed with `--clock cpu` and with each kind of device
stamp, in turns; a stamp is half of the difference, and includes reading its event and using it again. On a device the
runtime's own record, query and elapsed time come on top: benchmarks/device_events.py measures them.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from time import process_time_ns

import torch
from torch import nn

import talkerviz as tv
from talkerviz.recorder.instruments.device_clock import DeviceClock
from talkerviz.recorder.instruments.device_runtime import DeviceRuntime, native_functions
from talkerviz.recorder.instruments.registry import CLOCKS, Kind

_SOURCE = Path(__file__).parents[1] / "tests" / "helpers" / "fake_runtime.c"
_LEAVES = 100  # modules in the model
_PASSES = 40  # of the model in one timing


class NoEvent:
    """Event whose methods do nothing, for the cost of the recorder alone."""

    def record(self, stream: object) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: object) -> float:
        return 0.001


class Leaf(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def native_runtime(library: Path) -> DeviceRuntime:
    loaded = ctypes.CDLL(str(library))
    # As torch._C._cuda_getCurrentRawStream, this is one function in C: the default stream.
    return DeviceRuntime(
        lambda external: None, (0).__mul__, int, loaded.synchronize, functions=native_functions(library, "cuda")
    )


def object_runtime() -> DeviceRuntime:
    return DeviceRuntime(lambda external: NoEvent(), int, int, lambda device: None)


def clock_of(runtime: Callable[[], DeviceRuntime]) -> Kind:
    return Kind(lambda run: [DeviceClock(run, runtime(), 0)])


def ns_of_a_call(model: nn.Module, clock: str | None) -> float:
    x = torch.zeros(1)
    with tv.recording(model, clock=clock) if clock else nullcontext():
        model(x)
        gc.collect()
        began = process_time_ns()
        for _ in range(_PASSES):
            model(x)
        return (process_time_ns() - began) / (_PASSES * (_LEAVES + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("benchmarks/device_stamps.py: no C compiler to build the made-up runtime; nothing was measured")
    model = nn.Sequential(*[Leaf() for _ in range(_LEAVES)])
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libruntime.so"
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", _SOURCE, "-o", library], check=True)
        kinds = {
            "by a runtime's functions": clock_of(lambda: native_runtime(library)),
            "by event objects": clock_of(object_runtime),
        }
        times: dict[str, list[float]] = {"": [], "cpu": [], **{name: [] for name in kinds}}
        for _ in range(options.rounds):
            for name, found in times.items():
                if name in kinds:
                    CLOCKS["cuda"] = kinds[name]
                found.append(ns_of_a_call(model, "cuda" if name in kinds else name or None))
    unrecorded, plain = min(times.pop("")), min(times.pop("cpu"))
    print(f"a call: {unrecorded:,.0f} ns; recorded with --clock cpu: {plain - unrecorded:,.0f} ns more")
    for name, found in times.items():
        print(f"a stamp {name}: {(min(found) - plain) / 2:,.0f} ns")


if __name__ == "__main__":
    main()
