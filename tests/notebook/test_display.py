"""Display of a trace in a notebook."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from chromium import needs_browser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis_examples import examples
from mermaid_parser import mermaid_errors, needs_parser
from nasty_text import NASTY, names, nasty_trace
from sample_trace import call, make_trace, sample_trace

import talkerviz as tv
from talkerviz.notebook import display
from talkerviz.render.charts.graphviz import LayoutError

ELEMENTS = {"div", "p", "img", "table", "thead", "tbody", "tr", "th", "td"}
ALL = {"text/plain", "text/html", "text/markdown", "image/svg+xml"}


def bundle_of(trace: tv.Trace, **how: list[str]) -> dict[str, str]:
    return trace._repr_mimebundle_(**how)


def test_a_picture_and_a_table() -> None:
    bundle = bundle_of(sample_trace())
    assert set(bundle) == ALL
    assert bundle["text/plain"] == repr(sample_trace())
    drawn = ET.fromstring(bundle["image/svg+xml"])
    words = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"net", "Embedding", "1x4 → 1x4"} <= set(words)
    embedded = re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', bundle["text/html"])
    assert embedded
    assert b64decode(embedded[1]).decode() == bundle["image/svg+xml"]
    table = ET.fromstring(re.findall(r"<table>.*</table>", bundle["text/html"])[0])
    rows = [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
    assert rows[0] == ["module", "class", "calls", "total [µs]", "self [µs]", "mean [µs]", "share [%]", "shapes"]
    assert rows[1][:4] == ["net.head", "Linear", "2", "3.500"]
    assert len(rows) == 1 + 9
    assert "| net.layers.0.proj | Linear    |" in bundle["text/markdown"]
    assert "```mermaid\n" in bundle["text/markdown"]


def test_numbers_are_not_rounded_in_text() -> None:
    # Coordinates have one digit behind the point, what people read has as many as it should.
    drawn = bundle_of(make_trace([call(0, None, 0, "net.1.2345", "Net", 1_234, 1_234)]))["image/svg+xml"]
    assert "1.23 µs" in drawn
    assert "1.2345" in drawn
    assert not re.search(r'="[^"]*\d\.\d\d', re.sub(r"<\?xml.*?>|<!DOCTYPE.*?>", "", drawn, flags=re.DOTALL))


@pytest.mark.parametrize("kind", sorted(ALL))
def test_only_what_is_asked_for(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(bundle_of(sample_trace(), include=[kind])) == {kind}
    assert set(bundle_of(sample_trace(), exclude=[kind])) == ALL - {kind}
    assert bundle_of(sample_trace(), include=["image/png"]) == {}
    monkeypatch.setattr(display, "build_graph", None)  # a line of text draws nothing
    assert bundle_of(sample_trace(), include=["text/plain"]) == {"text/plain": repr(sample_trace())}


def test_long_tables_say_what_is_left_out() -> None:
    rows = [call(n, None, 0, f"net.{n}", "Net", 10 + n, 10 + n) for n in range(14)]
    html = bundle_of(make_trace(rows))["text/html"]
    assert html.count("<tr>") == 1 + 10
    assert "4 more rows: trace.table()." in html


def test_large_models_are_folded() -> None:
    rows = [call(0, None, 0, "net", "Net", 10**9, 10**6)]
    rows += [call(n, 0, 1, f"net.part{n}", f"Kind{n}", 1000, 1000) for n in range(1, 1500)]
    drawn = bundle_of(make_trace(rows))["image/svg+xml"]
    assert 2 < drawn.count('class="node"') <= 24
    assert len(drawn) < 100_000


def test_without_a_layout_the_rest_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise LayoutError("svg needs <Graphviz>:\ninstall it", "digraph {}")

    monkeypatch.setattr("talkerviz.render.charts.graphviz.lay_out", fail)
    bundle = bundle_of(sample_trace())
    assert set(bundle) == ALL - {"image/svg+xml"}
    assert "<img" not in bundle["text/html"]
    assert "There is no picture: svg needs &lt;Graphviz&gt;: install it" in bundle["text/html"]
    assert "<table>" in bundle["text/html"]
    assert "```mermaid" in bundle["text/markdown"]


def test_whatever_fails_a_line_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("build_graph", "summarise"):
        monkeypatch.setattr(display, name, lambda *_: [][0])
    bundle = bundle_of(sample_trace())
    assert bundle["text/plain"] == repr(sample_trace())
    assert set(bundle) == ALL - {"image/svg+xml"}
    for kind in ("text/html", "text/markdown"):
        assert "There is no chart" in bundle[kind]
        assert "There is no table" in bundle[kind]


@pytest.mark.parametrize(
    "trace",
    [make_trace([]), sample_trace().select(phase="setup"), tv.Trace(sample_trace().calls, (), {})],
    ids=["no calls", "one call", "no facts"],
)
def test_whatever_is_there(trace: tv.Trace) -> None:
    bundle = bundle_of(trace)
    assert set(bundle) == ALL
    assert "There is no" not in bundle["text/html"]


def test_without_times() -> None:
    calls = sample_trace().calls.assign(host_ns=None, host_self_ns=None, host_start_ns=None)
    calls = calls.astype(dict.fromkeys(("host_ns", "host_self_ns", "host_start_ns"), "Int64"))
    bundle = bundle_of(tv.Trace(calls, sample_trace().modules, {}))
    assert set(bundle) == ALL
    assert "There is no" not in bundle["text/html"]
    assert "total" not in bundle["text/html"]


@settings(max_examples=examples(15), deadline=None)
@given(texts=st.lists(names, min_size=1, max_size=5))
@example(texts=["]"])  # Graphviz once took it for the end of a label
def test_names_are_text_in_all_of_it(texts: list[str]) -> None:
    bundle = bundle_of(nasty_trace(texts, texts[0]))
    assert "There is no" not in bundle["text/html"].partition("<table>")[2]
    # Whatever names are, there are no elements but these.
    assert set(re.findall(r"<(\w+)", bundle["text/html"])) <= ELEMENTS
    if "image/svg+xml" in bundle:
        ET.fromstring(bundle["image/svg+xml"])


@needs_parser
def test_the_chart_in_markdown_parses() -> None:
    charts = [bundle_of(trace)["text/markdown"] for trace in (sample_trace(), nasty_trace(NASTY))]
    assert mermaid_errors([text.split("```mermaid\n")[1].split("\n```")[0] for text in charts]) == ["", ""]


@needs_browser
def test_nothing_of_it_runs_in_a_browser(browser: Any, tmp_path: Path) -> None:
    hostile = [
        *NASTY,
        '"><img src=x onerror=alert(1)>',
        "</p><script>alert(1)</script>",
        "]]><script>alert(1)</script>",
    ]
    html = bundle_of(nasty_trace(hostile, hostile[-3]))["text/html"]
    (tmp_path / "page.html").write_text(f"<!doctype html><meta charset=utf-8>{html}")
    wrong: list[str] = []
    page = browser.new_page()
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto((tmp_path / "page.html").as_uri())
    width = page.evaluate("document.images[0].naturalWidth")
    images = page.locator("img").count()
    page.close()
    assert wrong == []
    assert images == 1
    assert width > 100
