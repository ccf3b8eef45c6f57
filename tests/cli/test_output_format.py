"""The format of an output: as its file ends, and no bytes on a terminal."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from command_line import Capture, talkerviz
from sample_trace import sample_trace

from talkerviz.cli.options import format_of
from talkerviz.render.tables.query_result import ANSWERS


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    sample_trace().save(tmp_path / "run.parquet")
    return tmp_path / "run.parquet"


@pytest.mark.parametrize(
    ("name", "fmt"),
    [
        ("r.svg", "svg"),
        ("R.PNG", "png"),
        ("r.mmd", "mermaid"),
        ("r.md", "markdown"),
        ("r.tex", "latex"),
        ("r.speedscope.json", "speedscope"),
        ("r.pt.trace.json", "tensorboard"),
        ("folder.svg/r.csv", "csv"),
    ],
)
def test_a_file_says_its_format(name: str, fmt: str) -> None:
    assert format_of(None, name) == fmt
    assert format_of("dot", name) == "dot"


def test_of_each_command(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, chart = trace.with_name("r.csv"), trace.with_name("d.dot")
    assert talkerviz(monkeypatch, "render", trace, "-o", table) == 0
    assert table.read_text().startswith('"module","class",')
    assert talkerviz(monkeypatch, "diff", trace, trace, "-o", chart) == 0
    assert chart.read_text().startswith("digraph")
    assert format_of(None, "a.json", tuple(ANSWERS)) == "json"
    assert format_of(None, "a.parquet", tuple(ANSWERS)) == "parquet"


@pytest.mark.parametrize(
    "args", [["trace", "-o", "-"], ["render", "{}", "-f", "png"], ["diff", "{}", "{}", "-f", "pdf"]]
)
def test_bytes_are_not_for_a_terminal(
    args: list[str], trace: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert talkerviz(monkeypatch, *(arg.replace("{}", str(trace)) for arg in args)) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "write it to a file with -o FILE" in shown.err
