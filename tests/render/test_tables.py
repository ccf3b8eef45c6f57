"""Tables in every format: what they hold, golden files, escaping, side by side."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from golden_files import check_golden
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis_examples import examples
from markdown_it import MarkdownIt
from rich.console import Console
from sample_trace import call, make_trace, sample_trace

from talkerviz.analysis.pivot import pivot
from talkerviz.analysis.summary import BY
from talkerviz.api import Trace
from talkerviz.render.escape import one_line, spreadsheet_cell
from talkerviz.render.options import RenderOptions
from talkerviz.render.registry import TABLES, render
from talkerviz.render.tables.summary import table_of, table_title
from talkerviz.render.terminal.summary_table import render_table
from talkerviz.render.text import factor_text, size_text

SUFFIX = {"markdown": "md", "csv": "csv", "json": "json", "latex": "tex", "html": "html"}
NASTY = [
    "a|b", "a\\|b", "\\", "`code`", "``", "*it* __b__ ~~s~~", "_x_", "self_attn", "[a](b)", "![a](b)", "[a][b]", "[^1]",
    "<b>&amp;</b>", "<!-- x", "</td></table>", "$x$", "100%", "#1 {a}", "a~b^c", "[1]", "*", "-- ---", "two\nlines",
    "\r\n", 'a,"b"', "'", "Слой-层", "\x00\x1b\u202e", "", " ", ":smile: @me http://a.b", "x" * 200, "\\textbf{a}",
]  # fmt: skip
names = st.text(max_size=20) | st.sampled_from(NASTY)


def printed(renderable: object, width: int) -> str:
    console = Console(width=width, color_system=None, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def measured_trace() -> Trace:
    """Return the sample with what a device, `--cost` and `--memory` add; of the head's calls not all was measured."""
    trace = sample_trace()
    calls = trace.calls.copy()
    head = (calls["path"] == "net.head").to_numpy()
    calls["device_ns"] = calls["host_ns"] // 2
    calls["flops"] = (calls["host_ns"] * 1_000_000).mask(head)
    calls["bytes_read"] = calls["host_ns"] * 1000
    calls["bytes_written"] = calls["host_ns"] * 500
    calls["memory_peak_bytes"] = calls["host_ns"] * 10
    peaks = {"flops": 4e15, "bandwidth": 4e12}
    return replace(trace, calls=calls, facts={**trace.facts, "peaks": peaks, "own_cost_ns": 400})


def talker_trace() -> Trace:
    """Two layers of a talker and of its code predictor, in two passes each."""
    rows = [call(0, None, 0, "talker.text_projection", "Resize", 50, 50, phase="setup", frame=None)]
    for number, (phase, host) in enumerate([("prefill", 800), ("decode", 100)]):
        top = len(rows)
        rows.append(call(top, None, 0, "talker", "Talker", host, host // 4, phase=phase, frame=number))
        for layer in range(2):
            path = f"talker.model.layers.{layer}.mlp"
            own = host * 3 // 8
            rows.append(call(len(rows), top, 1, path, "Mixture", own, own, phase=phase, frame=number))
        for step in range(2):
            top = len(rows)
            inner = {"phase": "predictor.decode" if step else "predictor.prefill", "frame": number, "step": step}
            rows.append(call(top, None, 0, "talker.code_predictor", "Predictor", 200, 40, **inner))
            for layer in range(2):
                path = f"talker.code_predictor.model.layers.{layer}.mlp"
                rows.append(call(len(rows), top, 1, path, "MLP", 80, 80, **inner))
    return make_trace(rows, root="talker", scenario={"frames": 2})


def test_prefill_against_decode() -> None:
    found = pivot(talker_trace()).set_index("module")
    assert found.columns.tolist() == [
        *("prefill.calls", "prefill.mean_ns", "prefill.share"),
        *("decode.calls", "decode.mean_ns", "decode.share"),
    ]
    # Of prefill 800 and twice 200 are self time, of decode 100 and twice 200.
    assert found.loc["talker.model.layers.*.mlp"].tolist() == pytest.approx([2, 300, 0.5, 2, 37, 74 / 499])
    assert found.loc["talker"].tolist() == pytest.approx([1, 800, 200 / 1200, 1, 100, 25 / 499])
    predictor = found.loc["talker.code_predictor.model.layers.*.mlp"].tolist()
    assert predictor == pytest.approx([4, 80, 320 / 1200, 4, 80, 320 / 499])
    assert found.index.tolist() == [
        "talker.model.layers.*.mlp",
        "talker.code_predictor.model.layers.*.mlp",
        "talker",
        "talker.code_predictor",
    ]


def test_talker_against_code_predictor() -> None:
    found = pivot(talker_trace(), across="part").set_index("module")
    assert found.index.tolist() == ["talker.model.layers.*.mlp", "talker"]
    assert found["talker.calls"].tolist() == [4, 2]
    assert found["code predictor.calls"].tolist() == [8, 4]
    assert found["code predictor.mean_ns"].tolist() == [80, 200]
    by_class = pivot(talker_trace(), "class", "part").set_index("class")
    assert by_class.loc["MLP"].isna().tolist() == [True, True, True, False, False, False]


def test_sides_sort() -> None:
    trace = talker_trace()
    assert pivot(trace, sort="total")["module"].tolist()[:2] == ["talker", "talker.code_predictor"]
    assert pivot(trace, sort="calls")["module"][0] == "talker.code_predictor.model.layers.*.mlp"


def test_sides_of_another_model_are_its_phases() -> None:
    rows = [call(n, None, 0, "net", "Net", 10, 10, phase=phase) for n, phase in enumerate(["a.x", "b.x", "b.x"])]
    found = pivot(make_trace(rows))
    assert found[["a.x.calls", "b.x.calls"]].iloc[0].tolist() == [1, 2]


def test_what_cannot_be_set_side_by_side() -> None:
    trace = talker_trace()
    with pytest.raises(ValueError, match="cannot group by 'frame' side by side: choose from module, class"):
        pivot(trace, "frame")
    with pytest.raises(ValueError, match="cannot set side by side 'x': choose from phase, part"):
        pivot(trace, across="x")
    with pytest.raises(ValueError, match="the trace has no two phases, but prefill"):
        pivot(trace.select(phase="prefill"))
    with pytest.raises(ValueError, match="the trace has no two parts, but none"):
        pivot(make_trace([]), across="part")


def test_of_a_trace() -> None:
    trace = sample_trace()
    assert trace.table("class", sort="calls", top=2)["class"].tolist() == ["Linear", "Block"]
    assert len(trace.table()) == 9
    with pytest.raises(ValueError, match="top: must be at least 1, not 0"):
        trace.table(top=0)


@pytest.mark.parametrize("fmt", TABLES)
def test_golden_tables(fmt: str) -> None:
    check_golden(f"table.{SUFFIX[fmt]}", render(measured_trace(), fmt, RenderOptions(top=5)).decode())


@pytest.mark.parametrize("fmt", TABLES)
def test_golden_side_by_side(fmt: str) -> None:
    beside = RenderOptions(by="class", across="part")
    check_golden(f"table_side_by_side.{SUFFIX[fmt]}", render(talker_trace(), fmt, beside).decode())


@pytest.mark.parametrize("width", [80, 120, 200])
def test_golden_terminal(width: int) -> None:
    trace = measured_trace()
    text = printed(render_table(table_of(trace, RenderOptions()), "module", 5, width), width)
    beside = RenderOptions(across="phase")
    text += printed(render_table(table_of(talker_trace(), beside), "module", None, width, table_title(beside)), width)
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(map(len, lines)) <= width
    check_golden(f"table_{width}.txt", "\n".join(lines) + "\n")


@pytest.mark.parametrize("by", BY)
def test_machines_get_every_number(by: str) -> None:
    trace = measured_trace()
    summary = trace.table(by)
    rows = list(csv.DictReader(io.StringIO(render(trace, "csv", RenderOptions(by=by)).decode())))
    objects = json.loads(render(trace, "json", RenderOptions(by=by)))
    for found in (rows, objects):
        assert [list(row) for row in found] == [summary.columns.tolist()] * len(summary)
    for name in ("calls", "total_ns", "share", "device_ns", "flops", "busy_ns"):
        wanted = [None if pd.isna(value) else float(value) for value in summary[name]]
        assert [row[name] for row in objects] == pytest.approx(wanted)
        assert [float(row[name]) if row[name] else None for row in rows] == pytest.approx(wanted)


@pytest.mark.parametrize("fmt", TABLES)
@pytest.mark.parametrize("by", BY)
def test_an_empty_trace_is_an_empty_table(fmt: str, by: str) -> None:
    assert render(make_trace([]), fmt, RenderOptions(by=by))


def test_what_was_not_measured_is_empty() -> None:
    trace = measured_trace()
    row = next(row for row in csv.DictReader(io.StringIO(render(trace, "csv").decode())) if row["module"] == "net.head")
    assert (row["flops"], row["busy_ns"], row["intensity"], row["bytes"]) == ("", "", "", "5250000")
    heading, _, *cells = markdown_rows(render(trace, "markdown").decode())
    assert "busy [ms]" not in heading
    head = dict(zip(heading, next(row for row in cells if row[0] == "net.head"), strict=True))
    assert (head["FLOP [G]"], head["FLOP/byte"], head["bytes [kB]"]) == ("", "", "5,250.000")


def markdown_rows(text: str) -> list[list[str]]:
    """Return a table's rows as GitHub shows them; the second is the line below the headings."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows and token.level > 2:
            assert all(part.type in ("text", "text_special") for part in token.children or ())
            rows[-1].append("".join(part.content for part in token.children or ()))
    return [rows[0], [], *rows[1:]]


class HtmlRows(html.parser.HTMLParser):
    """Cells of a page's table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        self._in_cell = tag in ("td", "th")
        if tag == "tr":
            self.rows.append([])
        if self._in_cell:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data


LATEX = {
    r"\textbackslash ": "\\", r"\textasciitilde ": "~", r"\textasciicircum ": "^", r"\&": "&", r"\%": "%", r"\$": "$",
    r"\#": "#", r"\_": "_", r"\{": "{", r"\}": "}", r"$\to$": "→", "{}": "", r"\space ": " ", r"\space": " ",
}  # fmt: skip


def latex_rows(text: str) -> list[list[str]]:
    """Cells of a table, each made of what LaTeX prints as it is and of commands for all else."""
    body = text.split("\\midrule\n")[1].split("\\bottomrule")[0]
    assert not re.search(r"\\\\\s*[\[*]", body)
    rows = []
    for line in body.splitlines():
        parts = re.findall("|".join(map(re.escape, LATEX)) + r"| & | \\\\$|[^\\&%$#_{}^~]", line)
        assert "".join(parts) == line
        cells = "".join(LATEX.get(part, "\0" if part == " & " else "" if part == " \\\\" else part) for part in parts)
        rows.append(cells.split("\0"))
    return rows


@settings(max_examples=examples(30), deadline=None)
@given(st.lists(names, min_size=1, max_size=6, unique=True))
@example(NASTY)
def test_names_are_shown_as_they_are(paths: list[str]) -> None:
    rows = [call(n, None, 0, path, "X", 10, 10 * (99 - n), phase=path) for n, path in enumerate(paths)]
    trace = make_trace(rows)
    shown = [" ".join(one_line(path).split()) for path in paths]

    page = HtmlRows(render(trace, "html").decode())
    assert page.tags <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "p",
    }
    read = {
        "markdown": markdown_rows(render(trace, "markdown").decode())[2:],
        "latex": latex_rows(render(trace, "latex").decode()),
        "html": page.rows[1:],
    }
    for cells in read.values():
        assert [" ".join(row[0].split()) for row in cells] == shown
    assert [row["module"] for row in json.loads(render(trace, "json"))] == paths
    table = csv.DictReader(io.StringIO(render(trace, "csv").decode(), newline=""))
    assert [row["module"] for row in table] == [spreadsheet_cell(path) for path in paths]


def test_a_long_table_may_break_over_pages() -> None:
    rows = [call(n, None, 0, f"net.{n}x", "X", 10, 10) for n in range(41)]
    assert b"\\begin{longtable}{llrrrrrrrrrl}" in render(make_trace(rows), "latex")
    assert b"\\begin{tabular}" in render(make_trace(rows), "latex", RenderOptions(top=40))


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex")
@pytest.mark.parametrize("rows", [1, 41])
def test_latex_takes_it(rows: int, tmp_path: Path) -> None:
    names = [NASTY[n % len(NASTY)].encode("ascii", "ignore").decode() or "x" for n in range(rows)]
    trace = make_trace([call(n, None, 0, f"{n}.{name}", "X", 10, 10) for n, name in enumerate(names)])
    head = r"\documentclass{article}\usepackage{booktabs, longtable}\begin{document}"
    (tmp_path / "table.tex").write_text(f"{head}\n{render(trace, 'latex').decode()}\\end{{document}}\n")
    made = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "table.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert made.returncode == 0, made.stdout[-2000:]


def test_latex_says_where_letters_need_more() -> None:
    plain, more = (render(make_trace([call(0, None, 0, name, "X", 10, 10)]), "latex") for name in ("é_µ", "日本"))
    assert b"LuaLaTeX" not in plain
    assert b"LuaLaTeX" in more


def test_times_of_a_table_have_one_unit() -> None:
    rows = [call(n, None, 0, f"net.{n}x", "X", host, 10) for n, host in enumerate([2_000, 3_000, 40_000_000])]
    heading, _, *cells = markdown_rows(render(make_trace(rows), "markdown", RenderOptions(sort="total")).decode())
    assert [name for name in heading if "s]" in name] == [
        *("total [µs]", "self [µs]", "mean [µs]", "p50 [µs]", "p95 [µs]", "p99 [µs]")
    ]
    assert [row[heading.index("total [µs]")] for row in cells] == ["40,000.000", "3.000", "2.000"]


def test_texts() -> None:
    assert [size_text(size) for size in (None, 0, 999, 1_234_567)] == ["", "0 B", "999 B", "1.23 MB"]
    factors = (None, 0.052, 1, 9.996, 99.96, 1234.5)
    assert [factor_text(factor) for factor in factors] == ["", "0.0520×", "1.00×", "10.0×", "100×", "1,234×"]
