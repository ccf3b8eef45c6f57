"""Frame latency and real-time factor of batches of streams.

    PYTHONPATH=. python benchmarks/streams.py [--device cuda] [--kind full:bfloat16] [--streams 1 8 64] [--frames 24]
        [--rounds 3] [-o reports/h200/streams.md]

Prompts have several lengths. On a CUDA device frames are replayed as CUDA graphs too.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import torch
from speaking import OURS, REPLAYED, Way, native_talker, need_cuda, replayed, time_once

from talkerviz.analysis.frame_latency import FRAME_NS
from talkerviz.talker import assemble_prompt, generate
from talkerviz.talker.generation.prompt import Prompt
from talkerviz.talker.generation.scenario import Scenario, scenario_inputs
from talkerviz.talker.model.config import TalkerConfig
from talkerviz.talker.model.talker import TalkerForConditionalGeneration


def prompt_of(talker: TalkerForConditionalGeneration, config: TalkerConfig, number: int) -> Prompt:
    """Assemble a prompt whose length depends on its number."""
    scenario = Scenario(prompt_tokens=11 + number % 5, text_tokens=20 + number % 3, seed=number)
    weight = talker.codec_head.weight
    thinker = scenario_inputs(scenario, config, weight.device, weight.dtype)
    return assemble_prompt(talker, config, thinker, config.speaker(scenario.speaker))


def ways_of(talker: TalkerForConditionalGeneration, prompts: list[Prompt], frames: int, device: str) -> dict[str, Way]:
    """Return the native talker, and on CUDA also replayed as CUDA graphs."""

    def speak(on_frame: Callable[[int], None]) -> torch.Tensor:
        return torch.stack(generate(talker, prompts, frames, ignore_eos=True, on_frame=on_frame))

    ways = {OURS: Way(speak)}
    if device == "cuda":
        ways[REPLAYED] = Way(speak, lambda: replayed(talker))
    return ways


def measure(kind: str, device: str, streams: list[int], frames: int, rounds: int) -> Iterator[str]:
    """Yield the rows of the table; a single stream, the reference, comes first."""
    talker, config = native_talker(kind, device)
    alone: dict[str, float] = {}
    for count in sorted({1, *streams}):
        prompts = [prompt_of(talker, config, number) for number in range(count)]
        for each, way in ways_of(talker, prompts, frames, device).items():
            for _ in range(1 + rounds):
                time_once(way, device)
            took = statistics.median(way.frames[1:])  # the first finds its memory
            alone.setdefault(each, took)
            cells = [f"{count}", each, f"{count * alone[each] / took:.2f}x"]
            if device == "cuda":
                cells += [f"{took * 1e3:.2f}", f"{FRAME_NS / 1e9 / took:.1f}x", f"{count / took:,.0f}"]
            row = f"| {' | '.join(cells)} |"
            print(row, flush=True)
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--kind", default="full:bfloat16", help="PRESET:DTYPE")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, default=Path("reports/h200/streams.md"))
    options = parser.parse_args()
    if options.device == "cuda":
        need_cuda()
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"a CPU, {torch.get_num_threads()} threads"
    heads = ["streams", "talker", "frames in all, of one stream's"]
    if options.device == "cuda":
        heads += ["ms a frame of all", "each, of real time", "frames a second in all"]
    lines = [
        "# Many streams at once",
        "",
        f"{date.today()}, torch {torch.__version__}, {where}. `{options.kind}`, {options.frames} "
        f"frames, greedy, prompts of several lengths; a frame's time is the median of {options.rounds} runs, each the "
        f"median of its frames after the first. Made by `python benchmarks/streams.py --device {options.device}`.",
        "",
        f"| {' | '.join(heads)} |",
        f"| {' | '.join('---' if head == 'talker' else '---:' for head in heads)} |",
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for row in measure(options.kind, options.device, options.streams, options.frames, options.rounds):
        lines.append(row)
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")  # whatever comes of the rest


if __name__ == "__main__":
    main()
