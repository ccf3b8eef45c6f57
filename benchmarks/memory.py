"""How much memory a recording takes as it grows: resident set at 100,000 and at 1,000,000 calls.

    python benchmarks/memory.py [-o reports/benchmarks/memory.md]

Each size runs in a process of its own: a small model called over and over inside one open call, its trace kept in a
file. `ru_maxrss` is read when the run is over and once more when the file is finished; a process without a recording
gives the floor.
"""

from __future__ import annotations

import argparse
import platform
import resource
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

SIZES = (100_000, 1_000_000)


def child(calls: int, path: str) -> None:
    """Make so many calls, recorded if there is a path; print the resident set's peaks in MiB."""
    import torch
    from torch import nn

    import talkerviz as tv

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for size in range(calls - 1):
                self.inner(x[: size % 50])
            return x

    model, x = Loop(), torch.zeros(64, 8)

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    if path:
        with tv.recording(model, file=path):
            model(x)
            in_the_run = peak()
    else:
        model(x)
        in_the_run = peak()
    print(in_the_run, peak())


def measure(calls: int, recorded: bool) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "run.parquet") if recorded else ""
        command = [sys.executable, __file__, "--child", str(calls), path]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    in_the_run, finished = map(int, said.split())
    return in_the_run, finished


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("reports/benchmarks/memory.md"))
    parser.add_argument("--child", nargs=2)
    options = parser.parse_args()
    if options.child:
        child(int(options.child[0]), options.child[1])
        return
    import torch

    rows = [
        (f"{calls:,}", what, *measure(calls, what == "recorded")) for calls in SIZES for what in ("bare", "recorded")
    ]
    grown = rows[3][3] - rows[1][3]
    lines = [
        "# Memory of a recording",
        "",
        f"{date.today()}, torch {torch.__version__}, Python {platform.python_version()}. Peak resident set in MiB; "
        "made by `python benchmarks/memory.py`.",
        "",
        "| calls | run | when the run is over | when the file is finished |",
        "| ---: | --- | ---: | ---: |",
        *(f"| {calls} | {what} | {in_the_run:,} | {finished:,} |" for calls, what, in_the_run, finished in rows),
        "",
        f"From {SIZES[0]:,} to {SIZES[1]:,} recorded calls it grows by {grown} MiB.",
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
