"""Frame latency of the native talker, compiled and replayed, and of transformers' `generate`, on the same weights.

    python benchmarks/talker.py [--device cpu] [--without fused ...] [--frames 12] [--rounds 3]
        [-o reports/benchmarks/talker.md]

Needs a quiet machine with 18 GB of free memory; takes about five minutes on two cores. With less memory leave out
`full`: `--kinds lite:float32 lite:bfloat16`.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import sys
from collections.abc import Callable, Collection, Iterator
from datetime import date
from pathlib import Path

import torch
from speaking import OURS, REPLAYED, Way, bytes_of_a_frame, fused_copy, need_cuda, replayed, time_once
from torch import Tensor, nn

from talkerviz.recorder.instruments.device_benchmark import device_name, measure_bandwidth
from talkerviz.talker import build_talker, generate_scenario, preset
from talkerviz.talker.generation.compile import compile_talker, uncompiled
from talkerviz.talker.generation.scenario import Scenario
from talkerviz.talker.model.config import TalkerConfig
from talkerviz.talker.model.talker import TalkerForConditionalGeneration

KINDS = ("lite:float32", "lite:bfloat16", "full:bfloat16")
THEIRS, COMPILED, BOTH = "transformers", "native, `--compile`", "native, `--compile --graphs`"
FUSED, FUSED_REPLAYED = "native, `--fused`", "native, `--fused --graphs`"


def ways_of(
    config: TalkerConfig, dtype: torch.dtype, device: str, frames: int, without: Collection[str] = ()
) -> tuple[dict[str, Way], nn.Module]:
    """Return the variants of the talker without those in `without`, and the native talker itself."""
    scenario = Scenario(frames=frames)

    def speaking(talker: nn.Module, impl: str) -> Callable[[Callable[[int], None]], Tensor]:
        return lambda on_frame: generate_scenario(talker, impl, scenario, config, on_frame)

    ours = build_talker(config, "native", device, dtype)
    assert isinstance(ours, TalkerForConditionalGeneration)
    ways = {
        THEIRS: Way(speaking(build_talker(config, "transformers", device, dtype), "transformers")),
        OURS: Way(speaking(ours, "native"), lambda: uncompiled(ours)),
    }
    if device == "cuda":
        ways[REPLAYED] = Way(ways[OURS].speak, lambda: replayed(ours, lambda: uncompiled(ours)))
    if device == "cuda" and "fused" not in without:
        fused = fused_copy(ours)
        ways[FUSED] = Way(speaking(fused, "native"))
        ways[FUSED_REPLAYED] = Way(ways[FUSED].speak, lambda: replayed(fused))
    if "compile" in without:
        return ways, ours
    try:
        compile_talker(ours)
    except ValueError as error:
        print(f"benchmarks/talker.py: compiled frames are left out: {error}", file=sys.stderr)
        return ways, ours
    ways[COMPILED] = Way(ways[OURS].speak)
    if device == "cuda":
        ways[BOTH] = Way(ways[OURS].speak, lambda: replayed(ours))
    return ways, ours


def agreement(one: Tensor, two: Tensor) -> str:
    if torch.equal(one, two):
        return f"all {one.numel()}"
    differ = (one != two).flatten().nonzero()
    return f"the first {int(differ[0])}"


def measure(
    kind: str, device: str, frames: int, rounds: int, bandwidths: list[float], without: Collection[str]
) -> Iterator[str]:
    """Yield the rows of a preset in a dtype; appends the memory bandwidth measured in each round to `bandwidths`."""
    name, dtype = kind.split(":")
    config = preset(name)
    ways, talker = ways_of(config, getattr(torch, dtype), device, frames, without)
    for way in ways.values():
        time_once(way, device)  # code is made, memory is found
        way.frames.clear()
    order, shuffled = list(ways), random.Random(0)
    for _ in range(rounds):
        shuffled.shuffle(order)
        for each in order:
            time_once(ways[each], device)
        bandwidths.append(measure_bandwidth(device))  # machines that others use too differ from minute to minute
    bandwidth = statistics.median(bandwidths[-rounds:])
    needed = bytes_of_a_frame(talker, config)
    theirs = ways[THEIRS]
    for each, way in ways.items():
        ratios = sorted(slow / fast for slow, fast in zip(theirs.frames, way.frames, strict=True))
        took = statistics.median(way.frames)
        cells = [f"`{name}`", dtype, each, f"{needed / 1e9:.2f}"]
        if device == "cuda":
            cells.append(f"{took * 1e3:.2f}")
        cells += [
            f"**{statistics.median(ratios):.2f}x** ({ratios[0]:.2f} to {ratios[-1]:.2f})" if way is not theirs else "1",
            f"{needed / bandwidth / took:.0%}",
            agreement(theirs.codes, way.codes) if way is not theirs else "",
        ]
        row = "| " + " | ".join(cells) + " |"
        print(row, flush=True)
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kinds", nargs="+", default=KINDS, help="PRESET:DTYPE")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--without", nargs="*", default=(), choices=("compile", "fused"))
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, default=Path("reports/benchmarks/talker.md"))
    options = parser.parse_args()
    if options.device == "cuda":
        need_cuda()
    rows, bandwidths = list[str](), list[float]()
    for kind in options.kinds:
        rows += measure(kind, options.device, options.frames, options.rounds, bandwidths, options.without)
        gc.collect()
    heads = ["preset", "dtype", "talker", "GB a frame", "frames a second", "of memory's bound", "codes that are equal"]
    if options.device == "cuda":
        heads.insert(4, "ms a frame")
    lines = [
        "# How fast the talker speaks",
        "",
        f"{date.today()}, torch {torch.__version__}, {device_name(options.device)}, {torch.get_num_threads()} threads. "
        f"One stream, {options.frames} frames, greedy; a frame's time is the median of a run without its first, and a "
        f"ratio the median of {options.rounds} rounds, with the least and the greatest. "
        f"All have the same random weights; made by `python benchmarks/talker.py --device {options.device}`.",
        "",
        "| " + " | ".join(heads) + " |",
        "| " + " | ".join("---" if head in {"preset", "dtype", "talker"} else "---:" for head in heads) + " |",
        *rows,
        "",
        "GB a frame: the weights that a frame reads at the least, those of the code predictor's layers 15 times, as "
        "each of its passes needs the code before it. Memory's bound: the time that these take at "
        f"{min(bandwidths) / 1e9:.1f} to {max(bandwidths) / 1e9:.1f} GB/s, what copies of memory reach between rounds, "
        "the median for each preset. Frames a second: as a multiple of "
        "transformers'. Equal codes: in bfloat16 a sum in another order is another number now and then, and codes "
        "drawn from random weights part for good where one differs.",
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
