"""The format of an output: as its file ends, and no bytes on a terminal."""

from __future__ import annotations

import inspect
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from command_line import Capture, talkerviz
from sample_trace import sample_trace

from talkerviz.api import Trace
from talkerviz.cli.options import format_of
from talkerviz.render.charts.graphviz import LayoutError
from talkerviz.render.options import OPTIONS, RenderOptions
from talkerviz.render.registry import REGISTRY, Format, render
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


@pytest.mark.parametrize("entry", REGISTRY.values(), ids=list(REGISTRY))
def test_every_format_is_one_entry(entry: Format, trace: Path) -> None:
    options = RenderOptions(top=1) if entry.kind == "table" else RenderOptions()
    with suppress(LayoutError):  # PDF needs the system's Graphviz
        assert render(Trace.load(trace), entry.name, options)
    for suffix in entry.suffixes:
        assert format_of(None, f"run{suffix}") == entry.name
    if entry.flat:
        assert render(Trace.load(trace), entry.name, RenderOptions(style="flat"))


def test_every_option_of_render_is_one_field(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert talkerviz(monkeypatch, "render", "--help") == 0
    words = " ".join(capsys.readouterr().out.split())
    for option in OPTIONS.values():
        assert option.flag in words
        assert " ".join(option.help.split()[:4]) in words
        assert f"{option.name}: {option.help}" in str(Trace.render.__doc__)
        assert option.name in inspect.signature(Trace.render).parameters
