"""Frames of the talker on a CPU: eager, compiled and with int8 weights, against transformers' `generate`.

    python benchmarks/talker_cpu.py [--kinds lite:float32 ...] [--threads 1 2] [--frames 8] [--rounds 3]
        [-o reports/benchmarks/talker-cpu.md]

Also how far weights in int8 and in 8-bit floats move logits and codes. Needs 12 GB of free memory for `full`; takes
about fifteen minutes on two cores.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from itertools import pairwise
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from interleaved import processor
from torch import Tensor, nn

from talkerviz.talker import build_talker, generate_scenario, preset
from talkerviz.talker.generation.compile import compile_talker
from talkerviz.talker.generation.scenario import Scenario
from talkerviz.talker.model.config import TalkerConfig
from talkerviz.talker.model.int8 import quantise_talker

KINDS = ("lite:float32", "lite:bfloat16", "full:bfloat16")
THEIRS, OURS, COMPILED = "transformers", "native", "native, `--compile`"
INT8, BOTH = "native, `--weights int8`", "native, `--weights int8 --compile`"
FP8_BLOCK = 128  # transformers' default for weight_block_size


@dataclass
class Way:
    """Variant of the talker, with the median wall and CPU seconds of a frame in each round."""

    talker: nn.Module
    impl: str = "native"
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    codes: Tensor = field(default_factory=lambda: torch.empty(0))


def shared_copy(talker: nn.Module) -> Any:
    """Return a copy that shares the weights."""
    return copy.deepcopy(talker, {id(weight): weight for weight in talker.parameters()})


def int8_copy(talker: Any) -> Any:
    quantised = shared_copy(talker)
    quantise_talker(quantised)
    return quantised


def compiled_copy(talker: Any) -> Any:
    compiled = shared_copy(talker)
    compile_talker(compiled)
    return compiled


def share_weights(target: nn.Module, source: nn.Module) -> None:
    """Replace a module's parameters by those of the same names."""
    for name, weight in source.named_parameters():
        parent, _, leaf = name.rpartition(".")
        target.get_submodule(parent).register_parameter(leaf, weight)  # type: ignore[arg-type]


def ways_of(config: TalkerConfig, dtype: torch.dtype) -> dict[str, Way]:
    ours = build_talker(config, "native", "cpu", dtype)
    theirs = build_talker(config, "transformers", "cpu", dtype)
    share_weights(theirs, ours)
    int8 = int8_copy(ours)
    return {
        THEIRS: Way(theirs, "transformers"),
        OURS: Way(ours),
        COMPILED: Way(compiled_copy(ours)),
        INT8: Way(int8),
        BOTH: Way(compiled_copy(int8)),
    }


def time_once(way: Way, scenario: Scenario, config: TalkerConfig) -> None:
    wall, cpu = list[float](), list[float]()

    def on_frame(done: int) -> None:
        wall.append(perf_counter())
        cpu.append(process_time())

    gc.collect()
    way.codes = generate_scenario(way.talker, way.impl, scenario, config, on_frame)
    for times, medians in ((wall, way.wall), (cpu, way.cpu)):
        # Compilation ends with the third frame.
        medians.append(statistics.median(later - before for before, later in pairwise(times)))


@contextmanager
def on_logits(talker: Any, see: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call a function with the last position's logits of each head's call; what it returns takes their place."""

    def hook(head: nn.Module, args: Any, logits: Tensor) -> Tensor | None:
        return see(logits)

    heads = (talker.codec_head, *talker.code_predictor.lm_head)
    for head in heads:
        head._compiled_call_impl = None  # a hook would be compiled with it
    handles = [head.register_forward_hook(hook) for head in heads]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Parity:
    """Logits of a talker beside those of the original weights, after the same codes.

    Attributes:
        same: codes that are the likeliest in both.
        codes: all codes.
        signal: sum of the squared logits of the original weights.
        difference: sum of the squared differences.
    """

    same: int = 0
    codes: int = 0
    signal: float = 0.0
    difference: float = 0.0

    @property
    def decibels(self) -> float:
        return 10 * math.log10(self.signal / self.difference) if self.difference else math.inf


def parity(talker: Any, original: list[Tensor], scenario: Scenario, config: TalkerConfig) -> Parity:
    """Let a talker decode the frames of the original weights, whose logits are given to it after its own are seen."""
    parity, known = Parity(), iter(original)

    def see(logits: Tensor) -> Tensor:
        wanted = next(known)
        ours, theirs = logits[:, -1].float(), wanted[:, -1].float()
        parity.same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        parity.codes += len(ours)
        parity.signal += float(theirs.square().sum())
        parity.difference += float((ours - theirs).square().sum())
        return wanted

    with on_logits(talker, see):
        generate_scenario(talker, "native", scenario, config)
    return parity


@torch.no_grad()
def round_to_fp8(talker: Any) -> None:
    """Round the projections and experts of all layers to 8-bit floats with a scale for each block, in place."""
    for name, weight in talker.named_parameters():
        if "_proj" not in name or weight.ndim < 2 or "layers." not in name:
            continue
        for matrix in weight.view(-1, *weight.shape[-2:]):
            for rows in matrix.split(FP8_BLOCK):
                for block in rows.split(FP8_BLOCK, dim=1):
                    scale = block.abs().max().float() / torch.finfo(torch.float8_e4m3fn).max
                    block.copy_((block.float() / scale).to(torch.float8_e4m3fn).float() * scale)


def equal_codes(codes: Tensor, expected: Tensor) -> str:
    """Describe how many codes come before the first that differs."""
    differ = (codes != expected).flatten().nonzero()
    count = int(differ[0]) if len(differ) else expected.numel()
    return f"all {count}" if not len(differ) else f"{count} of {expected.numel()}"


def measure(kind: str, frames: int, rounds: int) -> Iterator[list[str]]:
    """Yield the cells of each row of a preset in a dtype."""
    name, dtype = kind.split(":")
    config, scenario = preset(name), Scenario(frames=frames)
    ways = ways_of(config, getattr(torch, dtype))
    for way in ways.values():
        time_once(way, scenario, config)  # compile and warm up
        way.wall.clear()
        way.cpu.clear()
    order, shuffled = list(ways), random.Random(0)
    for _ in range(rounds):
        shuffled.shuffle(order)
        for each in order:
            time_once(ways[each], scenario, config)
    theirs, ours = ways[THEIRS], ways[OURS]
    original: list[Tensor] = []
    with on_logits(ours.talker, lambda logits: original.append(logits.clone())):
        generate_scenario(ours.talker, "native", scenario, config)
    for each, way in ways.items():
        cells = [f"`{name}`", dtype, str(torch.get_num_threads()), each, f"{statistics.median(way.wall) * 1e3:,.0f}"]
        for slow, fast in ((theirs.wall, way.wall), (theirs.cpu, way.cpu)):
            ratios = sorted(one / other for one, other in zip(slow, fast, strict=True))
            cells.append(f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        if way is theirs:
            yield [*cells[:5], "1", "1", "", "", ""]
            continue
        found = parity(way.talker, original, scenario, config)
        yield [*cells, *parity_cells(way.codes, theirs.codes, found)]
    round_to_fp8(ours.talker)
    codes, found = (
        generate_scenario(ours.talker, "native", scenario, config),
        parity(ours.talker, original, scenario, config),
    )
    head = [f"`{name}`", dtype, str(torch.get_num_threads()), "native, fp8 checkpoint", "", "as native", "as native"]
    yield [*head, *parity_cells(codes, theirs.codes, found)]


def parity_cells(codes: Tensor, expected: Tensor, found: Parity) -> list[str]:
    decibels = "equal" if found.decibels == math.inf else f"{found.decibels:.0f} dB"
    return [equal_codes(codes, expected), f"{found.same / found.codes:.0%}", decibels]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kinds", nargs="+", default=KINDS, help="PRESET:DTYPE")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path, default=Path("reports/benchmarks/talker-cpu.md"))
    options = parser.parse_args()
    if options.child:
        for cells in measure(options.kinds[0], options.frames, options.rounds):
            print(json.dumps(cells), flush=True)
        return
    rows: list[str] = []
    for kind in options.kinds:
        for threads in options.threads:
            # Compiled code is made for a number of threads: a process for each.
            size = ["--frames", str(options.frames), "--rounds", str(options.rounds)]
            command = [sys.executable, __file__, "--child", "--kinds", kind, *size]
            with subprocess.Popen(
                command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, stdout=subprocess.PIPE, text=True
            ) as child:
                assert child.stdout is not None
                for line in child.stdout:
                    rows.append("| " + " | ".join(json.loads(line)) + " |")
                    print(rows[-1], flush=True)
            # Written again after each, so that a long run leaves what it has.
            write_report(options.output, rows, options.frames, options.rounds)
            if child.returncode:
                sys.exit(f"benchmarks/talker_cpu.py: {kind} on {threads} threads failed")


def write_report(output: Path, rows: list[str], frames: int, rounds: int) -> None:
    heads = ["preset", "dtype", "threads", "talker", "ms a frame", "wall", "CPU", "equal codes", "likeliest", "logits"]
    lines = [
        "# Frames of the talker on a CPU",
        "",
        f"{date.today()}, torch {torch.__version__}, {processor()}, {os.cpu_count()} cores. One stream, "
        f"{frames} frames, greedy; a frame's time is the median of a run without its first, and a ratio to "
        f"transformers' `generate` the median of {rounds} rounds in mixed order, with the least and the "
        "greatest. All have the same random weights; made by `python benchmarks/talker_cpu.py`.",
        "",
        "| " + " | ".join(heads) + " |",
        "| " + " | ".join("---" if head in {"preset", "dtype", "talker"} else "---:" for head in heads) + " |",
        *rows,
        "",
        "Wall and CPU: speed by the clock and by the processor time of all threads, as multiples of transformers'. "
        "Equal codes: those before the first that differs from transformers'. Likeliest and logits: after the same "
        "codes as with the original weights, the share of codes that are the likeliest in both, and the power of the "
        "logits over that of their difference. Logits of random weights are close to each other, so that codes part "
        "sooner than with trained ones, and all later codes depend on them. The 8-bit floats have a scale for each "
        f"block of {FP8_BLOCK} x {FP8_BLOCK} weights and are multiplied out when they are loaded, so their frames take "
        "as long as others.",
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
