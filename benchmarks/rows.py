"""Throughput of several rows decoded together on a CPU, as a multiple of one row's.

    PYTHONPATH=. python benchmarks/rows.py [--rows 1 2 4 8] [--rounds 5] [-o reports/benchmarks/rows.md]

The talker has the widths of `full`, and fewer layers, so that it fits beside other programs. Times are CPU time, and
the numbers of rows take turns, so that a loaded machine changes all of them alike.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from time import process_time

import torch

from talkerviz.recorder.instruments.device_benchmark import device_name
from talkerviz.talker import GREEDY, TalkerConfig, assemble_prompt, build_talker, preset
from talkerviz.talker.generation.generate import EagerStep
from talkerviz.talker.generation.scenario import Scenario, scenario_inputs
from talkerviz.talker.model.talker import TalkerForConditionalGeneration

LAYERS = (4, 2)
FRAMES = 2
"""Frames of a round; caches stay short."""


def small_config() -> TalkerConfig:
    """Return the config of `full` with few layers."""
    full = preset("full")
    return replace(
        full,
        text=replace(full.text, num_hidden_layers=LAYERS[0]),
        code_predictor=replace(full.code_predictor, num_hidden_layers=LAYERS[1]),
    )


def speaking(talker: TalkerForConditionalGeneration, rows: int) -> EagerStep:
    """Return rows that have spoken their first frames; their prompts have several lengths."""
    config, weight = talker.config, talker.codec_head.weight
    step = EagerStep(talker, GREEDY, ignore_eos=True)
    joining = []
    for number in range(rows):
        scenario = Scenario(prompt_tokens=11 + number % 5, text_tokens=20 + number % 3, seed=number)
        thinker = scenario_inputs(scenario, config, "cpu", weight.dtype)
        prompt = assemble_prompt(talker, config, thinker, config.speaker(scenario.speaker))
        joining.append(step.new_row(number, prompt, seed=0, frames=40))
    step.join(joining)
    step()
    return step


@torch.no_grad()
def measure(dtype: torch.dtype, rows: list[int], rounds: int) -> Iterator[str]:
    """Yield the lines of the table of one dtype."""
    talker = build_talker(small_config(), dtype=dtype)
    assert isinstance(talker, TalkerForConditionalGeneration)
    steps = {count: speaking(talker, count) for count in sorted({1, *rows})}
    seconds: dict[int, list[float]] = {count: [] for count in steps}
    for _ in range(rounds):
        for count, step in steps.items():
            gc.collect()
            begin = process_time()
            for _ in range(FRAMES):
                step()
            seconds[count].append((process_time() - begin) / FRAMES)
    alone = statistics.median(seconds[1])
    for count, took in seconds.items():
        frame = statistics.median(took)
        yield f"| {str(dtype).removeprefix('torch.')} | {count} | {frame * 1e3:.0f} | {count * alone / frame:.2f}x |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, default=Path("reports/benchmarks/rows.md"))
    options = parser.parse_args()
    lines = [
        "# Several rows at once on a CPU",
        "",
        f"{date.today()}, torch {torch.__version__}, {device_name('cpu')}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{torch.get_num_threads()} thread(s). Widths of `full`, {LAYERS[0]} + {LAYERS[1]} layers, greedy; CPU time "
        f"of a frame of all rows, the median of {options.rounds} rounds. Made by `python benchmarks/rows.py`.",
        "",
        "| dtype | rows | ms a frame of all | frames a second, of one row's |",
        "| --- | ---: | ---: | ---: |",
    ]
    for dtype in (torch.bfloat16, torch.float32):
        for line in measure(dtype, options.rows, options.rounds):
            print(line, flush=True)
            lines.append(line)
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
