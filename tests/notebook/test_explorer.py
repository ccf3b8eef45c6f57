"""The widget: what Python knows of it, and what it does in a real browser, with a stand-in for a notebook."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from chromium import PATIENCE_MS, needs_browser
from nasty_text import NASTY, nasty_trace
from sample_trace import call, make_trace, sample_trace
from torch import nn

import talkerviz as tv
from talkerviz.render.charts.graphviz import LayoutError

pytest.importorskip("anywidget", reason="pip install 'talkerviz[notebook]'")
from traitlets import TraitError

from talkerviz.notebook.explorer import Explorer

TRAITS = ("_data", "selected", "phase", "call", "frame", "span")


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.proj = nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.proj(self.norm(x))


@pytest.fixture(scope="module")
def trace() -> tv.Trace:
    """Four frames of a model of six layers."""
    model = nn.Sequential(*(Layer() for _ in range(6)))
    with tv.recording(model, name="net") as rec:
        model[0].norm(torch.ones(1, 4))
        for _ in range(4):
            model(torch.ones(1, 4))
    return evenly_timed(rec.trace)


def evenly_timed(trace: tv.Trace) -> tv.Trace:
    """Return the same calls, each start and each end 10 us after the one before: room to click between any two."""
    calls = trace.calls.copy()
    starts, ends = [0] * len(calls), [0] * len(calls)
    running: list[int] = []
    ticks = itertools.count(0, 10_000)
    for row, depth in enumerate([*calls["depth"], 0]):
        while running and calls["depth"].iloc[running[-1]] >= depth:
            ends[running.pop()] = next(ticks)
        if row < len(calls):
            starts[row] = next(ticks)
            running.append(row)
    calls["host_start_ns"] = starts
    calls["host_ns"] = [end - start for start, end in zip(starts, ends, strict=True)]
    return replace(trace, calls=calls)


def sent_by(explorer: Explorer, monkeypatch: pytest.MonkeyPatch, content: dict[str, Any]) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(explorer, "send", sent.append)
    explorer._answer(explorer, content, [])
    return sent


def test_what_is_chosen_picks_calls(trace: tv.Trace) -> None:
    explorer = tv.explore(trace)
    assert len(explorer.calls) == len(trace.calls)
    explorer.selected = trace.matching_paths("*.norm")
    assert set(explorer.calls["class"]) == {"LayerNorm"}
    assert len(explorer.calls) == 6 * 4 + 1
    explorer.phase = "forward"
    first = trace.calls.iloc[1]
    explorer.span = [int(first["host_start_ns"]), int(first["host_start_ns"] + first["host_ns"])]
    assert set(explorer.calls["frame"]) == {0}
    assert len(explorer.calls) == 6
    explorer.selected = []
    # A call that only touches the span is in it.
    assert len(explorer.calls) == 1 + 3 * 6


def test_where_no_widget_runs_there_is_a_picture(trace: tv.Trace) -> None:
    explorer = tv.explore(trace)
    shown, _ = explorer._repr_mimebundle_()
    assert shown.keys() == {"application/vnd.jupyter.widget-view+json", "text/html", "text/plain"}
    assert shown["text/html"] == trace._repr_mimebundle_()["text/html"]
    assert shown["text/plain"] == repr(explorer)


def test_a_call_is_shown_where_it_is(trace: tv.Trace) -> None:
    explorer = tv.explore(trace)
    explorer.selected, explorer.phase = ["net"], "forward"
    last = int(trace.calls["call"].iloc[-1])
    explorer.call = last
    assert (explorer.selected, explorer.phase, explorer.frame) == (["net.5.proj"], "", 3)
    assert explorer.calls["call"].tolist() == [last]
    explorer.call = 0
    assert explorer.frame is None


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("selected", ["net.9"], r"no module 'net.9' was called; see trace.matching_paths"),
        ("phase", "decode", r"no phase 'decode' in this trace; choose from forward"),
        ("call", 10**6, "no call 1000000 in this trace"),
        ("frame", 4, "no frame 4 in this trace"),
        ("span", [1], "length 2"),
    ],
)
def test_what_is_not_there_cannot_be_chosen(name: str, value: object, says: str, trace: tv.Trace) -> None:
    explorer = tv.explore(trace)
    before = getattr(explorer, name)
    with pytest.raises(TraitError, match=says):
        setattr(explorer, name, value)
    assert getattr(explorer, name) == before


def test_it_answers_what_it_knows_and_nothing_else(trace: tv.Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    explorer = tv.explore(trace)
    (answer,) = sent_by(explorer, monkeypatch, {"ask": "frame", "frame": 2})
    assert answer["slice"]["frame"] == 2
    assert len(answer["slice"]["call"]) == 19
    box = next(box for chart in explorer._data["charts"] for box in chart["boxes"].values() if box["link"])
    (answer,) = sent_by(explorer, monkeypatch, {"ask": "chart", "chart": box["link"]})
    assert {inner["name"] for inner in answer["chart"]["boxes"].values()} >= {"norm", "proj"}
    for nonsense in ({}, {"ask": "frame", "frame": 99}, {"ask": "chart", "chart": "/etc/passwd"}, {"ask": "eval"}):
        assert sent_by(explorer, monkeypatch, nonsense) == []


def test_without_a_layout_there_is_the_time_line(trace: tv.Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise LayoutError("svg needs Graphviz", "digraph {}")

    drawn = tv.explore(trace)
    monkeypatch.setattr("talkerviz.render.charts.graphviz.lay_out", fail)
    data = tv.explore(trace)._data
    assert (data["charts"], data["why"]) == ([], "svg needs Graphviz")
    assert data["slices"]
    box = next(box for chart in drawn._data["charts"] for box in chart["boxes"].values() if box["link"])
    assert sent_by(drawn, monkeypatch, {"ask": "chart", "chart": box["link"]}) == [{"why": "svg needs Graphviz"}]


@pytest.mark.parametrize("shown", [make_trace([]), replace(sample_trace(), facts={})], ids=["no calls", "no facts"])
def test_whatever_is_there(shown: tv.Trace) -> None:
    explorer = tv.explore(shown)
    json.dumps(explorer._data, allow_nan=False)
    assert len(explorer.calls) == len(shown.calls)
    assert repr(explorer) == f"<Explorer of {shown!r}>"


def test_without_its_packages(trace: tv.Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "talkerviz.notebook.explorer")
    with pytest.raises(ValueError, match=r"explore: .*pip install 'talkerviz\[notebook\]'"):
        tv.explore(trace)


# In the browser.

NOTEBOOK = """<!doctype html><html><body style="margin: 0; background: %s"><div id="cell"></div><script type="module">
const state = await firstState(), heard = {};
let unsaved = {};
const fire = (event, ...what) => (heard[event] ?? []).forEach(does => does(...what));
window.model = {
  get: name => state[name],
  set(name, value) {
    if (JSON.stringify(state[name]) === JSON.stringify(value)) return;
    state[name] = unsaved[name] = value;
    fire(`change:${name}`);
  },
  save_changes() { tellPython(JSON.stringify(unsaved)); unsaved = {}; },
  on(event, does) { (heard[event] ??= []).push(does); },
  off(event, does) { heard[event] = heard[event].filter(other => other !== does); },
  send(content) { askPython(JSON.stringify(content)); },
};
window.fromPython = (name, value) => { state[name] = value; fire(`change:${name}`); };
window.answer = content => fire('msg:custom', content);
window.listeners = () => Object.values(heard).flat().length;
const module = await import(URL.createObjectURL(new Blob([await esm()], { type: 'text/javascript' })));
window.render = () => {
  const cell = document.getElementById('cell');
  cell.replaceChildren();
  window.close_ = module.default.render({ model, el: cell });
};
render();
window.ready = true;
</script></body></html>"""


class Cell:
    """A page with the widget in it, and the two tied together as a notebook would."""

    def __init__(self, page: Any, explorer: Explorer, ground: str) -> None:
        self.page, self._explorer = page, explorer
        self.wrong: list[str] = []
        self.requests: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.wrong.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self.requests.append(request.url))
        page.expose_function("esm", lambda: explorer._esm)
        page.expose_function("firstState", lambda: {name: getattr(explorer, name) for name in TRAITS})
        page.expose_function("tellPython", lambda text: explorer.set_state(json.loads(text)))
        page.expose_function("askPython", lambda text: self.asked.append(text))
        page.set_content(NOTEBOOK % ground)
        page.wait_for_function("window.ready")

    @property
    def explorer(self) -> Explorer:
        """The widget in Python, once the browser has said all that it had to say."""
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
        return self._explorer

    def choose(self, name: str, value: Any) -> None:
        """Choose something in Python, and tell the browser of all that changes."""
        changes: list[tuple[str, Any]] = []
        self.explorer.observe(lambda change: changes.append((change["name"], change["new"])), TRAITS[1:])
        setattr(self.explorer, name, value)
        self.explorer.unobserve_all(TRAITS[1:])
        for change in changes:
            self.page.evaluate("([name, value]) => fromPython(name, value)", change)

    def answer(self, until: Any) -> None:
        """Answer what is asked, as the kernel does in its own time, until an element is there."""
        sent: list[Any] = []
        self._explorer.send = sent.append
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while time.monotonic() < deadline:
            while self.asked:
                self._explorer._answer(self._explorer, json.loads(self.asked.pop(0)), [])
            while sent:
                self.page.evaluate("answer", sent.pop(0))
            if until.count():
                return
            self.page.wait_for_timeout(20)
        raise AssertionError(f"never came: {until}")

    def says(self, text: str) -> Any:
        """Return the text of the time line beside the frame."""
        return self.page.locator("#frame-says", has_text=text)

    def box(self, path: str) -> Any:
        return self.page.locator(f'#chart .node[aria-label^="{path}, "]').first

    @property
    def marked(self) -> set[str]:
        boxes = self.page.locator("#chart .node.chosen, #chart .cluster.chosen").all()
        return {str(box.get_attribute("aria-label")).partition(",")[0] for box in boxes}


@pytest.fixture
def cell(browser: Any, trace: tv.Trace, request: pytest.FixtureRequest) -> Iterator[Cell]:
    shown, ground = getattr(request, "param", (trace, "#fff"))
    page = browser.new_page(viewport={"width": 1000, "height": 1100}, reduced_motion="reduce")
    page.set_default_timeout(PATIENCE_MS)
    made = Cell(page, tv.explore(shown), ground)
    yield made
    page.evaluate("close_()")
    assert made.wrong == []
    assert [url for url in made.requests if not url.startswith("blob:")] == []
    assert page.evaluate("listeners()") == 0
    page.close()


@needs_browser
def test_a_click_on_a_box(cell: Cell, trace: tv.Trace) -> None:
    cell.page.select_option("#level", label="phases")
    box = cell.page.locator('#chart .node[aria-label$=", module"]').last
    box.click()
    assert cell.explorer.selected == ["net"]
    assert cell.explorer.phase == "forward"
    assert cell.page.inner_text("#chosen") == "net in forward"
    cell.page.select_option("#level", label="one level deeper")
    folded = cell.page.locator('#chart .node[aria-label^="net.0-5"]').first
    folded.click()
    assert cell.explorer.selected == [f"net.{layer}" for layer in range(6)]
    assert len(cell.explorer.calls) == 24
    assert cell.marked == {"net.0-5"}
    cell.page.locator('#chart .cluster[aria-label$=", phase"]').first.click(position={"x": 60, "y": 12})
    assert (cell.explorer.selected, cell.explorer.phase) == ([], "forward")
    assert len(cell.explorer.calls) == len(trace.calls)


@needs_browser
def test_the_inside_of_a_box_is_drawn_when_it_is_opened(cell: Cell) -> None:
    cell.page.select_option("#level", label="one level deeper")
    box = cell.page.locator('#chart .node[aria-label^="net.0-5"]').first
    box.dblclick()
    cell.answer(cell.page.locator('#chart .node[aria-label*="proj"]'))
    cell.page.get_by_text("Back").click()
    box.wait_for()
    # It is here now.
    box.dblclick()
    cell.page.locator('#chart .node[aria-label*="proj"]').first.wait_for()
    assert cell.asked == []


def bars(page: Any) -> tuple[float, float, float]:
    """Where the bars begin and end, and how high the first row is."""
    at = page.locator("#timeline-plot canvas").first.bounding_box()
    return at["x"] + 56, at["x"] + at["width"] - 16, at["y"] + 8 + 10


@needs_browser
def test_a_click_on_a_bar_and_a_drag_over_it(cell: Cell, trace: tv.Trace) -> None:
    left, right, y = bars(cell.page)
    root = trace.calls[(trace.calls["path"] == "net") & (trace.calls["frame"] == cell.explorer.frame)].iloc[0]
    cell.page.mouse.click((left + right) / 2, y)
    assert cell.explorer.call == root["call"]
    assert cell.explorer.selected == ["net"]
    begin, whole = int(root["host_start_ns"]), int(root["host_ns"])
    middle = (left + right) / 2
    cell.page.mouse.move(right - 10, y)
    cell.page.mouse.down()
    cell.page.mouse.move(middle + 50, y + 5)
    cell.page.mouse.move(middle, y + 5)
    cell.page.mouse.up()
    span = cell.explorer.span
    assert span[0] == pytest.approx(begin + whole / 2, abs=whole * 0.02)
    assert span[1] == pytest.approx(begin + whole, abs=whole * 0.03)
    assert cell.explorer.call == root["call"]  # a drag is no click
    assert "of time" in cell.page.inner_text("#chosen")
    # A click on nothing, in a gap of the third row, ends it.
    inner = trace.calls[(trace.calls["frame"] == cell.explorer.frame) & (trace.calls["depth"] == 2)]
    gap = int(inner["host_start_ns"].iloc[0] + inner["host_ns"].iloc[0]) + 5_000 - begin
    cell.page.mouse.click(left + (right - left) * gap / whole, y + 40)
    assert cell.explorer.span is None
    assert cell.explorer.call == root["call"]


@needs_browser
def test_frames_are_loaded_when_they_are_shown(cell: Cell) -> None:
    page = cell.page
    for number in range(5):
        page.select_option("#frame", index=number)
        cell.answer(cell.says("19 calls" if number else "1 call"))
        assert cell.explorer.frame == (number - 1 if number else None)
    cell.choose("frame", 0)
    page.wait_for_timeout(20)
    assert page.locator("#frame option:checked").inner_text().startswith("0")


@needs_browser
def test_what_python_chooses_is_marked(cell: Cell, trace: tv.Trace) -> None:
    cell.page.select_option("#level", label="one level deeper")
    cell.choose("selected", ["net.2", "net.3"])
    assert cell.marked == {"net.0-5"}
    assert cell.page.inner_text("#chosen") == "2 modules"
    cell.choose("selected", [])
    assert cell.marked == set()
    cell.choose("call", int(trace.calls["call"].iloc[-1]))
    cell.answer(cell.says("19 calls"))
    assert cell.page.inner_text("#chosen") == f"net.5.proj · call {cell.explorer.call}"
    assert cell.page.locator("#frame option:checked").inner_text().startswith("3")
    begin = int(trace.calls["host_start_ns"].iloc[-1])
    cell.choose("span", [begin, begin + 5_000])
    assert cell.page.inner_text("#chosen").endswith("5.00 µs of time")
    # A second view of it shows the same.
    cell.page.evaluate("close_(); render()")
    cell.answer(cell.says("19 calls"))
    assert cell.page.inner_text("#chosen") == f"net.5.proj · call {cell.explorer.call} · 5.00 µs of time"


def wait_for_ink(cell: Cell, bright: bool) -> None:
    """Wait until the text is bright, or dark: a change of the page is seen a moment later."""
    cell.page.locator("#title", has_text="Net").wait_for()
    ink = "getComputedStyle(document.querySelector('#cell > div').shadowRoot.getElementById('title')).color"
    mean = f"{ink}.slice(4, -1).split(', ').reduce((sum, part) => sum + Number(part), 0) / 3"
    cell.page.wait_for_function(f"({mean} > 128) === {'true' if bright else 'false'}")


@needs_browser
@pytest.mark.parametrize(
    ("cell", "dark"),
    [((sample_trace(), "#fff"), False), ((sample_trace(), "oklch(0.2 0.02 250)"), True)],
    indirect=["cell"],
)
def test_it_has_the_notebooks_colours(cell: Cell, dark: bool) -> None:
    wait_for_ink(cell, bright=dark)
    cell.page.evaluate(f"document.body.style.background = '{'#fff' if dark else '#111'}'")
    wait_for_ink(cell, bright=not dark)


@needs_browser
@pytest.mark.parametrize("cell", [(sample_trace(), "transparent")], indirect=True)
def test_with_nothing_beneath_it_goes_by_the_text_around(cell: Cell) -> None:
    wait_for_ink(cell, bright=False)
    cell.page.evaluate("document.body.style.color = '#ccc'")  # as VS Code has it in the dark
    wait_for_ink(cell, bright=True)


HOSTILE = [*NASTY, "</script><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</style><b>", "${1}", "`"]


@needs_browser
@pytest.mark.parametrize("cell", [(nasty_trace(HOSTILE, HOSTILE[-4]), "#fff")], indirect=True)
def test_names_are_text(cell: Cell) -> None:
    assert cell.page.inner_text("#title") == HOSTILE[-4]
    cell.choose("selected", [f"net.{HOSTILE[-5]}"])
    assert cell.page.inner_text("#chosen") == f"net.{HOSTILE[-5]}"
    left, right, y = bars(cell.page)
    cell.page.mouse.move((left + right) / 2, y)
    cell.page.locator(".tip").first.wait_for()
    root = "document.querySelector('#cell > div').shadowRoot"
    assert cell.page.evaluate(f"{root}.querySelectorAll('img, script, .tip script').length") == 0


@needs_browser
@pytest.mark.parametrize(
    "cell",
    [(make_trace([]), "#fff"), (make_trace([call(0, None, 0, "net", "Net", 10, 10, frame=None)]), "#fff")],
    ids=["no calls", "one call"],
    indirect=True,
)
def test_next_to_nothing(cell: Cell) -> None:
    cell.page.locator("#title", has_text="Net").wait_for()
    assert cell.page.locator("#timeline-plot").count() == len(cell.explorer.calls)
