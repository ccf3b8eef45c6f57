"""Frame time of the fused talker by block size, warps and early start of its kernels, replayed as a CUDA graph.

    PYTHONPATH=. python benchmarks/fused_sizes.py [--kind full:bfloat16] [--frames 24] [--rounds 2]
        [-o reports/h200/fused-sizes.md]

Needs a CUDA device. `talkerviz/talker/kernels/launch.py` should have the fastest setting.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import date
from pathlib import Path
from unittest.mock import patch

import torch
from speaking import Way, native_talker, need_cuda, replayed, time_once
from torch import Tensor

from talkerviz.talker import generate_scenario
from talkerviz.talker.generation.scenario import Scenario
from talkerviz.talker.kernels import fuse_talker, launch

CUTS = [(32, 8, True), (32, 8, False), (32, 4, True), (16, 4, True), (16, 2, True), (8, 1, True)]
"""KiB of weights a program, its warps, and whether kernels begin early; the first setting is the reference.

The second setting runs the same kernels, so its codes must be equal: else a kernel reads values too early.
"""


@contextmanager
def cut(kib: int, warps: int, early: bool) -> Iterator[None]:
    """Launch kernels with other settings inside the block."""
    with (
        patch.object(launch, "BLOCK_BYTES", kib << 10),
        patch.object(launch, "WARPS", warps),
        nullcontext() if early else patch.object(launch, "supports_dependent_launch", lambda device: False),
    ):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kind", default="full:bfloat16", help="PRESET:DTYPE")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, default=Path("reports/h200/fused-sizes.md"))
    options = parser.parse_args()
    need_cuda()
    fused, config = native_talker(options.kind, "cuda")
    fuse_talker(fused)
    scenario = Scenario(frames=options.frames)
    lines = [
        "# How fused kernels are best cut",
        "",
        f"{date.today()}, torch {torch.__version__}, {torch.cuda.get_device_name()}. `{options.kind}`, one stream, "
        f"{options.frames} frames replayed; a frame's time is the median of {options.rounds} runs, each the median of "
        "its frames after the first. Made by `python benchmarks/fused_sizes.py`.",
        "",
        "| KiB a program | warps | begin early | ms a frame | of the first |",
        "| ---: | ---: | --- | ---: | ---: |",
    ]
    first, codes = None, list[Tensor | None]()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for kib, warps, early in CUTS:
        way = Way(
            lambda on_frame: generate_scenario(fused, "native", scenario, config, on_frame), lambda: replayed(fused)
        )
        try:
            with cut(kib, warps, early):
                for _ in range(1 + options.rounds):
                    time_once(way, "cuda")
        except Exception as error:  # another setting may work
            traceback.print_exc()
            cells = [type(error).__name__, ""]
            codes.append(None)
        else:
            took = statistics.median(way.frames[1:])  # the first run compiles
            first = first or took
            cells = [f"{took * 1e3:.3f}", f"{took / first:.2f}"]
            codes.append(way.codes)
        lines.append(f"| {kib} | {warps} | {'yes' if early else 'no'} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")  # kept if a later setting fails
        if len(codes) == 2 and (codes[0] is None or codes[1] is None or not torch.equal(codes[0], codes[1])):
            sys.exit("benchmarks/fused_sizes.py: kernels that begin early give other codes; see above")


if __name__ == "__main__":
    main()
