"""`talkerviz run`: programs as they are, their models, their output and their exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Capture, talkerviz
from repo_paths import ROOT

from talkerviz.api import Trace

PROGRAM = """
import argparse
import sys
import torch
from torch import nn


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--end", default="")
    args = parser.parse_args()
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    for _ in range(args.steps):
        net(torch.ones(1, 4))
    print(sys.argv, __name__, sys.path[0] == sys.modules["__main__"].__file__.rpartition("/")[0])
    if args.end == "raise":
        raise KeyError("wrong")
    if args.end:
        sys.exit(int(args.end) if args.end.isdigit() else args.end)


if __name__ == "__main__":
    main()
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    return file


def test_a_script_with_its_own_arguments(program: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    assert talkerviz(monkeypatch, "run", "-o", "a.parquet", program, "--steps", 3) == 0
    shown = capfd.readouterr()
    assert shown.out == f"{[str(program), '--steps', '3']} __main__ True\n"
    assert "Time by phase" in shown.err
    assert shown.err.endswith("9 calls -> a.parquet\n")
    trace = Trace.load("a.parquet")
    assert trace.calls["path"].tolist() == ["net", "net.0", "net.1"] * 3
    assert trace.calls["frame"].tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_a_module(program: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    package = program.parent / "package"
    package.mkdir()
    program.rename(package / "__main__.py")
    assert talkerviz(monkeypatch, "run", "-m", "package", "--steps", 1) == 0
    assert str([str(package / "__main__.py"), "--steps", "1"]) in capfd.readouterr().out
    assert len(Trace.load("run.parquet").calls) == 3


def test_a_console_script(program: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    program.write_text(f"#!{sys.executable}\n{PROGRAM}")
    installed = program.rename(program.with_name("trainer"))
    installed.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.chdir("/")
    assert talkerviz(monkeypatch, "run", "-o", program.parent / "a.parquet", "trainer") == 0
    assert capfd.readouterr().out.startswith(f"['{installed}']")


@pytest.mark.parametrize(("end", "code"), [("3", 3), ("0", 0), ("bad weather", 1), ("raise", 1)])
def test_exit_codes_pass_through_and_the_trace_is_kept(
    program: Path, end: str, code: int, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    assert talkerviz(monkeypatch, "run", program, "--end", end) == code
    error = capfd.readouterr().err
    assert len(Trace.load("run.parquet").calls) == 6
    if end == "raise":
        assert error.startswith(f'Traceback (most recent call last):\n  File "{program}", line 24, in <module>\n')
        assert "KeyError: 'wrong'" in error
        assert "talkerviz/" not in error.partition("Time by phase")[0]
    elif not end.isdigit():
        assert error.startswith(f"{end}\nTime by phase")


def test_in_a_process_of_its_own_output_and_traceback_are_those_of_python(program: Path) -> None:
    # The program sets what torch reads when it is imported.
    lines = ["import os", "os.environ['OMP_NUM_THREADS'] = '2'", PROGRAM, "print(torch.get_num_threads())", "broken("]
    program.write_text("\n".join(lines[:-1]))
    plain, recorded = (
        subprocess.run([sys.executable, *first, "program.py"], capture_output=True, text=True, check=False)
        for first in ([], ["-m", "talkerviz", "run"])
    )
    assert (recorded.stdout, recorded.returncode) == (plain.stdout, 0)
    program.write_text("\n".join(lines))
    plain, recorded = (
        subprocess.run([sys.executable, *first, "program.py"], capture_output=True, text=True, check=False)
        for first in ([], ["-m", "talkerviz", "run"])
    )
    assert recorded.returncode == plain.returncode == 1
    assert recorded.stderr.startswith(plain.stderr)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["missing.py"], "missing.py: no such script, and no installed command of that name"),
        (["."], ".: is a directory; name a script in it"),
        ([], "run: no program; give a script, a console script or -m MODULE"),
        (["-m", "no.such"], "-m no.such: no module of that name"),
        (["-o", "-", "program.py"], "-o -: the program's output is its own; name a file, such as run.parquet"),
        (["-o", "no/run.parquet", "program.py"], "no/run.parquet: no such folder"),
        (["--model", "unet", "program.py"], "--model unet: no such model; program.py called net"),
        (["program.py", "--steps", "0"], "program.py: it called no module"),
    ],
)
def test_bad_input_is_one_line(
    program: Path, args: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    assert talkerviz(monkeypatch, "run", *args) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"talkerviz: {message}")
    assert not Path("run.parquet").exists()


def test_threads_of_the_program_are_waited_for(program: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    program.write_text(
        "import threading, time, torch\n"
        "net = torch.nn.Linear(4, 4)\n"
        "def later():\n    time.sleep(0.2)\n    net(torch.ones(1, 4))\n"
        "threading.Thread(target=later).start()\n"
    )
    assert talkerviz(monkeypatch, "run", program) == 0
    assert Trace.load("run.parquet").calls["path"].tolist() == ["net"]


def test_the_example_of_a_training_loop(program: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    assert talkerviz(monkeypatch, "run", ROOT / "examples" / "training_program.py") == 0
    assert capfd.readouterr().out.endswith("of 128 right\n")
    calls = Trace.load("run.parquet").calls
    assert set(calls["phase"]) == {"data", "forward", "backward", "optimizer", "other", "validation"}
    assert {"AdamW", "AdamW.body", "AdamW.head"} <= set(calls["path"])
    assert calls["frame"][calls["path"] == "AdamW"].tolist() == list(range(8))


def test_the_example_of_a_pipeline(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert talkerviz(monkeypatch, "run", ROOT / "examples" / "pipeline_program.py", "--steps", 5) == 0
    calls = Trace.load("run.parquet").calls
    top = calls[calls["depth"] == 0]
    assert top["path"].tolist() == ["text_encoder", *["denoiser"] * 5, "decoder"]
    assert top["frame"].fillna(-1).tolist() == [-1, 0, 1, 2, 3, 4, -1]


def test_the_example_of_a_deadline(program: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    assert talkerviz(monkeypatch, "run", "--deadline", "200ms", ROOT / "examples" / "deadline_program.py") == 0
    assert talkerviz(monkeypatch, "show", "--late", "run.parquet") == 0
    assert "frame 40 took" in capfd.readouterr().out
