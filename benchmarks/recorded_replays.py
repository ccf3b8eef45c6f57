"""Recorded against unrecorded frames that are replayed as CUDA graphs.

    PYTHONPATH=. python benchmarks/recorded_replays.py [--kind full:bfloat16] [-o reports/h200/recorded-replays.md]

Needs a CUDA device. Runs take turns in one process; a frame's time is the median of a run's frames.
"""

from __future__ import annotations

import argparse
import statistics
from contextlib import nullcontext
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from speaking import native_talker, need_cuda, replayed

import talkerviz as tv
from talkerviz.recorder.phases.talker import TalkerPhases
from talkerviz.talker import generate_scenario
from talkerviz.talker.generation.cuda_graphs import WARM_UPS
from talkerviz.talker.generation.scenario import Scenario


def ms_of_a_frame(talker: Any, config: Any, clock: str | None, scenario: Scenario) -> float:
    """Return the median milliseconds of a frame after the first two, with this clock or unrecorded."""
    times: list[float] = []

    def on_frame(done: int) -> None:
        torch.cuda.synchronize()
        times.append(perf_counter())

    phases = partial(TalkerPhases, warm_ups=WARM_UPS)
    with tv.recording(talker, "talker", phases, clock) if clock else nullcontext():
        generate_scenario(talker, "native", scenario, config, on_frame=on_frame)
    return statistics.median(later - before for before, later in pairwise(times[2:])) * 1e3


def page(kind: str, times: dict[str, list[float]]) -> str:
    """Format the times of each clock."""
    plain = statistics.median(times["unrecorded"])
    return "\n".join(
        [
            "# Recorded replays of CUDA graphs",
            "",
            f"{date.today()}, {torch.cuda.get_device_name()}, torch {torch.__version__}. `{kind}`, one stream; made by "
            "`python benchmarks/recorded_replays.py`.",
            "",
            "| recorded with | ms a frame | ratio |",
            "| --- | ---: | ---: |",
            *(
                f"| {name} | {statistics.median(found):.3f} | {statistics.median(found) / plain:.3f} |"
                for name, found in times.items()
            ),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kind", default="full:bfloat16", help="PRESET:DTYPE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, default=Path("reports/h200/recorded-replays.md"))
    options = parser.parse_args()
    need_cuda()
    talker, config = native_talker(options.kind, "cuda")
    scenario = Scenario(frames=16)
    times: dict[str, list[float]] = {"unrecorded": [], "cpu": [], "cuda": []}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with replayed(talker):
        generate_scenario(talker, "native", scenario, config)  # libraries load
        for _ in range(options.rounds):
            for name, found in times.items():
                found.append(ms_of_a_frame(talker, config, None if name == "unrecorded" else name, scenario))
            options.output.write_text(page(options.kind, times), encoding="utf-8")
    print(options.output.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
