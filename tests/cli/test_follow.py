"""`talkerviz run --follow`: processes that the program starts, each in a file of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Capture, talkerviz

from talkerviz.api import Trace

PROGRAM = """
import multiprocessing, os, subprocess, sys
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


def work(passes):
    worker = nn.Sequential(nn.Linear(4, 4))
    for _ in range(passes):
        worker(torch.ones(1, 4))


class Features(Dataset):
    def __init__(self):
        self.extractor = nn.Linear(4, 4)

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return self.extractor(torch.ones(4)).detach()


if __name__ == "__main__":
    model = nn.Linear(4, 4)
    model(torch.ones(1, 4))
    for method, passes in (("fork", 2), ("spawn", 3)):
        process = multiprocessing.get_context(method).Process(target=work, args=(passes,))
        process.start()
        process.join()
    for batch in DataLoader(Features(), num_workers=1, batch_size=2):
        model(batch)
    inner = "import torch; embedder = torch.nn.Linear(4, 4); embedder(torch.ones(1, 4))"
    subprocess.run([sys.executable, "-c", inner], check=True)
    subprocess.run([sys.executable, "-c", "import sitecustomize; print(sitecustomize.OWN)"], check=True)
    if os.fork() == 0:
        work(1)
        sys.exit(3)
    os.wait()
    print("done")
"""


def called_roots(trace: Trace) -> list[str]:
    """Return the models of a trace, without pauses of the recorder."""
    return [str(path) for path in trace.calls["path"] if "." not in path]


def test_each_process_has_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    Path("program.py").write_text(PROGRAM)
    own = tmp_path / "environment"
    own.mkdir()
    (own / "sitecustomize.py").write_text("OWN = 'its own sitecustomize'")
    path = os.pathsep.join([str(own), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "talkerviz", "run", "--follow", "program.py"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert (done.stdout, done.returncode) == ("its own sitecustomize\ndone\n", 0), done.stderr
    assert "Traceback" not in done.stderr

    files = sorted(Path().glob("run.pid*.parquet"))
    roots = [called_roots(Trace.load(file)) for file in files]
    loader, workers = ["extractor"] * 6, [["worker"] * passes for passes in (1, 2, 3)]
    assert sorted(roots) == [["embedder"], loader, *workers]
    assert called_roots(Trace.load("run.parquet")) == ["model"] * 4
    assert not list(Path().glob("*.partial")) + list(Path().glob(".run*"))

    assert talkerviz(monkeypatch, "merge", "run.parquet", *files) == 0
    assert capfd.readouterr().out.endswith("-> merged.parquet\n")
    merged = Trace.load("merged.parquet")
    assert sorted(merged.calls["rank"].unique()) == list(range(6))
    # Processes of one host share a clock.
    first = merged.calls.groupby("rank")["host_start_ns"].min()
    assert first.is_monotonic_increasing
    assert talkerviz(monkeypatch, "show", "merged.parquet", "--across", "rank", "--by", "class") == 0


def test_a_program_that_calls_no_module_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("launch.py").write_text(
        "import subprocess, sys\n"
        "program = 'import torch; net = torch.nn.Linear(2, 2); net(torch.ones(1, 2)); sys.exit(5)'\n"
        "sys.exit(subprocess.run([sys.executable, '-c', f'import sys; {program}']).returncode)\n"
    )
    command = [sys.executable, "-m", "talkerviz", "run", "--follow", "-o", "a.parquet", "launch.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert len(list(Path().glob("a*.parquet"))) == 1
    assert re.fullmatch(r"\d+ calls? of process (\d+) -> a\.pid\1\.parquet\n", done.stderr)  # a pause is a row too
    assert done.returncode == 5
