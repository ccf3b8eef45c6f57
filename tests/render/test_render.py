"""Every renderer: golden files, escaping, and the real parsers."""

from __future__ import annotations

import io
import itertools
import re
from dataclasses import replace
from typing import get_args

import pandas as pd
import pytest
from golden_files import check_golden
from graphviz_engines import ENGINES, drawn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mermaid_parser import mermaid_errors, needs_parser
from nasty_text import NASTY, names
from repo_paths import GOLDEN
from rich.console import Console
from sample_trace import call, make_trace, sample_trace

from talkerviz.analysis.summary import BY, summarise
from talkerviz.api import Trace
from talkerviz.render.charts.graphviz import RenderError, lay_out
from talkerviz.render.charts.mermaid import over_github_limits
from talkerviz.render.charts.mermaid_flat import render_mermaid_flat
from talkerviz.render.options import RenderOptions, Style
from talkerviz.render.registry import render
from talkerviz.render.terminal.call_tree import render_tree
from talkerviz.render.terminal.summary_table import render_table
from talkerviz.render.text import share_text, time_text


def printed(renderable: object, width: int = 200) -> str:
    console = Console(width=width, color_system=None, record=True, file=io.StringIO())
    console.print(renderable)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines()) + "\n"


def nasty_trace(texts: list[str]) -> Trace:
    rows = []
    for number, (path, kind) in enumerate(itertools.pairwise([*texts, "last"])):
        rows.append(call(number, None, 0, path, kind, 10, 10, phase=texts[number % len(texts)], error=kind))
    return make_trace(rows, model=texts[0], root=texts[-1])


def test_golden_mermaid() -> None:
    check_golden("sample.mmd", render_mermaid_flat(sample_trace()))


def test_golden_dot() -> None:
    check_golden("sample.dot", render(sample_trace(), "dot", RenderOptions(style="flat")).decode())


def test_golden_source() -> None:
    check_golden("sample_source.md", render(sample_trace(), "mermaid", RenderOptions(style="source")).decode())


@pytest.mark.parametrize("by", BY)
def test_golden_tables(by: str) -> None:
    check_golden(f"sample_by_{by}.txt", printed(render_table(summarise(sample_trace(), by), by)))


def test_golden_tree() -> None:
    check_golden("sample_tree.txt", printed(render_tree(sample_trace())))


def test_narrow_tables_fit() -> None:
    for by in BY:
        text = printed(render_table(summarise(sample_trace(), by), by, width=80), width=80)
        assert max(map(len, text.splitlines())) <= 80


def test_a_narrow_table_folds_names_and_cuts_no_times() -> None:
    long = call(1, None, 0, "net", "AClassWhoseNameIsLongerThanATerminalIsWide", 2_345_000_000, 2_345_000_000)
    text = printed(render_table(summarise(make_trace([long]), "class"), "class", width=40), width=40)
    assert max(map(len, text.splitlines())) <= 40
    assert text.split().count("2.35") + text.split().count("2.34") == 2
    assert "100.0 %" in text


def test_a_narrow_tree_without_times() -> None:
    calls = sample_trace().calls.copy()
    calls[[name for name in calls if name.endswith("_ns")]] = pd.NA
    text = printed(render_tree(replace(sample_trace(), calls=calls), width=20), width=60)
    assert text.split()[0] == "module"
    assert "share" not in text


@pytest.mark.parametrize(("width", "columns"), [(40, 2), (52, 4), (80, 6)])
def test_a_narrow_tree_keeps_names_and_times(width: int, columns: int) -> None:
    lines = printed(render_tree(sample_trace(), width=width), width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines[1].split()) == columns
    assert any("layers.0-2  3×" in line and "6.00 µs" in line for line in lines)


def test_nothing_is_left_out_of_a_flat_chart() -> None:
    trace = make_trace([call(n, None, 0, "net", "Net", 1, 1) for n in range(1_000)])
    chart = render_mermaid_flat(trace)
    assert len(re.findall(r"^    n\d+\[", chart, re.M)) == 1_000
    assert chart.count(" --> ") == 999
    note = over_github_limits(chart)
    assert note is not None
    assert note.startswith("999 edges")
    assert over_github_limits(render_mermaid_flat(sample_trace())) is None


@pytest.mark.parametrize("clock", ["cpu", "none"])
@needs_parser
def test_mermaid_parses(clock: str) -> None:
    rows = [call(0, None, 0, "net", "Net", 5, 5)]
    if clock == "none":
        rows = [row | {"host_start_ns": None, "host_ns": None, "host_self_ns": None} for row in rows]
    charts = [
        render_mermaid_flat(sample_trace()),
        render_mermaid_flat(make_trace(rows)),
        render_mermaid_flat(make_trace([])),
    ]
    golden = (GOLDEN / "qwen3_omni_talker_mermaid.md").read_text()
    charts.append(golden.split("```mermaid\n")[1].removesuffix("```\n"))
    assert mermaid_errors(charts) == [""] * len(charts)


@needs_parser
def test_the_parser_refuses_what_is_wrong() -> None:
    assert mermaid_errors(['flowchart TD\n  a["b"c"]\n'])[0]


@needs_parser
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(names, min_size=1, max_size=4), min_size=10, max_size=25))
def test_mermaid_parses_whatever_the_names(lists: list[list[str]]) -> None:
    charts = [render_mermaid_flat(nasty_trace(texts)) for texts in [NASTY, *lists]]
    sources = [
        render(nasty_trace(texts), "mermaid", RenderOptions(style="source")).decode() for texts in [NASTY, *lists]
    ]
    charts += [text.split("```mermaid\n")[1].removesuffix("```\n") for text in sources]
    assert mermaid_errors(charts) == [""] * len(charts)


@pytest.mark.parametrize("engine", ["dot", "graphviz-pure"])
def test_engines_draw_every_call(engine: str) -> None:
    if engine not in ENGINES:
        pytest.skip(f"{engine} is not installed")
    nodes, edges = drawn(engine, render(sample_trace(), "dot", RenderOptions(style="flat")).decode())
    assert set(nodes) == {"legend", *(f"n{n}" for n in range(11))}
    assert edges == {f"n{n}->n{n + 1}" for n in range(10)}
    assert "net.layers.2.proj" in nodes["n7"]


@pytest.mark.parametrize("engine", ["dot", "graphviz-pure"])
@settings(max_examples=15, deadline=None)
@given(texts=st.lists(names, min_size=1, max_size=4))
def test_dot_draws_whatever_the_names(engine: str, texts: list[str]) -> None:
    if engine not in ENGINES:
        pytest.skip(f"{engine} is not installed")
    for chosen in (texts, NASTY):
        nodes, _ = drawn(engine, render(nasty_trace(chosen), "dot", RenderOptions(style="flat")).decode())
        assert len(nodes) == len(chosen) + 1


@pytest.mark.parametrize("style", ["nested", "flat"])
def test_pictures(style: Style) -> None:
    assert render(sample_trace(), "svg", RenderOptions(style=style)).lstrip().startswith(b"<?xml")
    assert render(sample_trace(), "png", RenderOptions(style=style)).startswith(b"\x89PNG")


@pytest.mark.skipif("graphviz-pure" not in ENGINES, reason="graphviz-pure is not installed")
def test_without_the_systems_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert b"<svg" in lay_out("digraph { a -> b }", "svg")
    with pytest.raises(RenderError, match="pdf needs the system's Graphviz"):
        lay_out("digraph { a -> b }", "pdf")
    with pytest.raises(RenderError, match="could not draw the svg"):
        lay_out("digraph { a -> ", "svg")


def test_unknown_formats_and_styles() -> None:
    with pytest.raises(RenderError, match="unknown format 'gif': choose from mermaid"):
        render(sample_trace(), "gif")
    with pytest.raises(RenderError, match="style source is Mermaid only, not dot"):
        render(sample_trace(), "dot", RenderOptions(style="source"))


def test_an_empty_trace() -> None:
    empty = make_trace([])
    assert render(empty, "mermaid", RenderOptions(style="flat")).startswith(b"flowchart TD")
    assert b"flowchart TB" in render(empty, "mermaid")
    for style in get_args(Style)[:2]:
        assert b"digraph" in render(empty, "dot", RenderOptions(style=style))
    assert printed(render_tree(empty))
    for by in BY:
        assert printed(render_table(summarise(empty, by), by))


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, ""),
        (0, "0 ns"),
        (999, "999 ns"),
        (1_000, "1.00 µs"),
        (999_999, "1.00 ms"),
        (12_345_678, "12.3 ms"),
        (2e9, "2.00 s"),
    ],
)
def test_times(ns: float | None, text: str) -> None:
    assert time_text(ns) == text


def test_shares() -> None:
    assert (share_text(None), share_text(0.1234)) == ("", "12.3 %")
