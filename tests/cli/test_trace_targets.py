"""Subcommands of `talkerviz trace`: targets, their short forms, their options, and a function's arguments."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from command_line import Capture, talkerviz

from talkerviz.api import Trace
from talkerviz.cli import COMMANDS

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}
READS_ARGUMENTS = """
import argparse
import sys

import torch
from torch import nn

imported_with = sys.argv[1:]


def make():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1)
    steps = parser.parse_args().steps
    net = nn.Linear(4, 4)

    def run():
        assert sys.argv[1:] == imported_with
        for _ in range(steps):
            net(torch.ones(1, 4))

    return net, run
"""
READS_NONE = """
import torch
from torch import nn


def make():
    net = nn.Linear(4, 4)
    return net, lambda: net(torch.ones(1, 4))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    Path("llama").mkdir()
    Path("llama/config.json").write_text(json.dumps(LLAMA))
    for name, text in {"steps": READS_ARGUMENTS, "without_steps": READS_NONE}.items():
        Path(f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize("form", [["call"], []], ids=["call", "short"])
def test_arguments_after_the_function_are_its_own(
    form: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert talkerviz(monkeypatch, "trace", *form, "--no-flow", "-o", "r.parquet", "steps:make", "--steps", "3") == 0
    trace = Trace.load("r.parquet")
    assert len(trace.calls) == 3
    assert trace.facts["command"].endswith("-o r.parquet steps:make --steps 3")


def test_help_after_the_function_is_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert talkerviz(monkeypatch, "trace", "steps:make", "--help") == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("usage: steps.py [-h] [--steps STEPS]")
    assert shown.err == ""


def test_options_before_the_target_move_with_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert talkerviz(monkeypatch, "trace", "--depth", 0, "--no-flow", "llama", "--batch", 3, "--prompt-tokens", 5) == 0
    trace = Trace.load("run.parquet")
    assert trace.facts["inputs"]["input_ids"] == [3, 5]
    assert trace.calls["frame"].nunique() == 8


def test_a_model_generates_the_tokens_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert talkerviz(monkeypatch, "trace", "model", "llama", "--max-new-tokens", 3, "--no-flow") == 0
    trace = Trace.load("run.parquet")
    assert trace.facts["inputs"]["input_ids"] == [1, 12]
    assert trace.calls["frame"].nunique() == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nosuch", "nosuch: no such folder, and no known target; give talker, code2wav, a folder with a config.json, "),
        ("steps.py", "steps.py: name a function in it, as steps:FUNCTION"),
        ("call nosuch:f", "target 'nosuch:f': No module named 'nosuch'"),
        ("call steps", "target 'steps': name a function, as package.module:function"),
        (
            "without_steps:make -o r.parquet",
            "it does not read sys.argv, so nothing reads -o r.parquet; write options of",
        ),
        (
            "--preset tiny without_steps:make",
            "--preset: only for `trace talker` and `trace code2wav`, not for `trace call`; ",
        ),
        ("model llama --frames 3", "--frames: only for `trace talker` and `trace code2wav`, not for `trace model`"),
        ("talker --batch 2", "--batch: only for `trace model`, not for `trace talker`"),
        (
            "call --nosuch without_steps:make",
            "--nosuch: no such option of `trace call`; write options of the function after",
        ),
        ("--nosuch", "No such option: --nosuch; see talkerviz trace talker --help"),
        ("model missing", "missing: no such file"),
        ("model llama --device meta --max-new-tokens 3", "--max-new-tokens: on the meta device it makes one forward"),
        ("model llama --batch 99999999", "batch must be at most 4096, not 99999999"),
        ("model", "Missing argument 'DIR'; see talkerviz trace model --help"),
    ],
)
def test_a_wrong_target_or_option_is_one_line(
    arguments: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert talkerviz(monkeypatch, "trace", *arguments.split()) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert (shown.out, shown.err.count("\n")) == ("", 1)


def test_each_target_has_only_its_options(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = {}
    for target in ("talker", "code2wav", "model", "call"):
        assert talkerviz(monkeypatch, "trace", target, "-h") == 0
        shown[target] = capsys.readouterr().out
    assert all("--warmup" in text and "Recorded modules" in text for text in shown.values())
    having = {
        option: {target for target, text in shown.items() if option in text}
        for option in ("--frames", "--batch", "--max-new-tokens", "--speaker", "--checkpoint", "--seed")
    }
    assert having == {
        "--frames": {"talker", "code2wav"},
        "--batch": {"model"},
        "--max-new-tokens": {"model"},
        "--speaker": {"talker"},
        "--checkpoint": {"talker", "code2wav"},
        "--seed": {"talker", "code2wav", "model"},
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_h_is_help(command: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert talkerviz(monkeypatch, command, "-h") == 0
    assert f"Usage: talkerviz {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("talkerviz do", {"doctor"}),
        ("talkerviz trace ", {"talker", "code2wav", "model", "call"}),
        ("talkerviz trace --pre", {"--preset"}),
        ("talkerviz trace model llama --max", {"--max-new-tokens"}),
        ("talkerviz trace --clock cu", {"cuda", "cuda-all"}),
    ],
)
def test_the_shell_completes_commands_and_options(
    line: str, completed: set[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("_TALKERVIZ_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    assert talkerviz(monkeypatch) == 0
    assert set(capsys.readouterr().out.split()) == completed
