"""Ten programs as they are and through `talkerviz run`: CPU time, and the share of wall time that has a row.

`python benchmarks/programs.py [NAME...]` runs those in `benchmarks/programs/` in turns and writes
`reports/benchmarks/programs.md`.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from talkerviz.analysis.idle_time import idle_time
from talkerviz.api import Trace

ROOT = Path(__file__).parents[1]
PROGRAMS = ROOT / "benchmarks" / "programs"
REPORT = ROOT / "reports" / "benchmarks" / "programs.md"
ROUNDS = 3
"""Runs of each program, traced and untraced in turns; the median is taken."""


def cpu_seconds(command: list[str], folder: Path) -> float:
    """Run a command, and return the CPU time of its process in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def row_of(program: Path) -> str:
    """Measure a program, and return its row of the table."""
    plain, traced, baseline = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        empty = folder / "empty.py"
        # The recorder's own imports and summary: a program that calls one small module.
        empty.write_text("import torch\ntorch.nn.ReLU()(torch.ones(1))\n")
        for _ in range(ROUNDS):
            plain.append(cpu_seconds([sys.executable, str(program)], folder))
            traced.append(cpu_seconds([sys.executable, "-m", "talkerviz", "run", str(program)], folder))
            started = cpu_seconds([sys.executable, "-m", "talkerviz", "run", str(empty)], folder)
            baseline.append(started - cpu_seconds([sys.executable, str(empty)], folder))
        cpu_seconds([sys.executable, "-m", "talkerviz", "run", str(program)], folder)
        trace = Trace.load(folder / "run.parquet")
    idle = idle_time(trace)
    share = 1 - idle.idle_ns / idle.span_ns if idle else float("nan")
    start = median(baseline)
    ratio = (median(traced) - start) / median(plain)
    roots = trace.calls["path"].astype(str).str.partition(".")[0]
    frames = trace.calls["frame"].nunique()
    return (
        f"| {program.stem.replace('_', ' ')} | {len(trace.calls):,} | {roots.nunique()} | {frames} "
        f"| {median(plain):.1f} s | {ratio:.2f} | {start:.1f} s | {share:.1%} |"
    )


def main(names: list[str]) -> None:
    """Measure programs, all by default, and write the table."""
    programs = sorted(program for program in PROGRAMS.glob("*.py") if not names or program.stem in names)
    lines = [
        "# Ten programs, traced unedited",
        "",
        "By `python benchmarks/programs.py`: the CPU time of each program's process, its imports included, and that of",
        "`talkerviz run` over it, without what `run` takes to start and to print its summary: a column of its own.",
        "The last column is the part of the wall time, from the first row to the last, in which a row is open.",
        "",
        "| program | rows | names | frames | untraced | ratio | start and summary | has a row |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for program in programs:
        lines.append(row_of(program))
        print(lines[-1], flush=True)
    REPORT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
