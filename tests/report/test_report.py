"""The report: its files, and its page in a real browser, opened from the disk as a reader does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from chromium import PATIENCE_MS, needs_browser
from command_line import talkerviz
from mermaid_parser import mermaid_errors, needs_parser
from nasty_text import NASTY
from sample_trace import call, make_trace, sample_trace

from talkerviz import record
from talkerviz.api import Trace
from talkerviz.render import text
from talkerviz.render.charts.graphviz import LayoutError
from talkerviz.report import writer
from talkerviz.report.folder import MANIFEST
from talkerviz.report.html import timeline_slices as slices
from talkerviz.report.html.assets import piece
from talkerviz.report.html.flame import flame_of
from talkerviz.report.html.timeline_slices import Slicer
from talkerviz.report.writer import write_report
from talkerviz.talker.generation.scenario import Scenario
from talkerviz.targets import talker_of, talker_target
from talkerviz.trace.join import join

FILES = {MANIFEST, "index.html", "report.md", "calls.csv", "flowchart.svg", "flowchart.mmd", "trace.json", "facts.json"}
HOSTILE = [*NASTY, "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<!--<script>", "{{data}}"]


@pytest.fixture(scope="module")
def talker() -> Trace:
    """Return the tiny talker's, of four frames, with flow, cost and limits."""
    target = talker_target(talker_of("tiny", "native", "cpu", None, Scenario(frames=4)))
    peaks = {"device": "a device", "flops": 1e11, "bandwidth": 4e10, "source": "a guess"}

    def recorded(measure: str | None) -> Trace:
        facts = {**target.facts, "peaks": peaks}
        clock = "none" if measure else "cpu"
        run = lambda: target.run(lambda _: None)  # noqa: E731
        return record(target.model, run, target.name, target.phases, clock, facts, measure=measure)

    trace = recorded(None)
    for measure in ("flow", "cost"):
        trace = join(trace, recorded(measure))
    return trace


@pytest.fixture(scope="module")
def folder(talker: Trace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    assert write_report(talker, folder) == []
    return folder


def data_of(folder: Path) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', (folder / "index.html").read_text())
    assert found
    return json.loads(found[1])


def test_files(folder: Path, talker: Trace) -> None:
    assert {path.name for path in folder.iterdir()} == FILES
    assert (folder / "index.html").stat().st_size < 3_000_000
    calls = pd.read_csv(folder / "calls.csv")
    assert calls["shapes"].str.contains(r"\+\d").any()  # tensors beside the first
    assert len(calls) == len(talker.calls)
    assert calls["host_ns"].sum() == talker.calls["host_ns"].sum()
    assert calls["path"].tolist() == talker.calls["path"].tolist()
    assert json.loads((folder / "facts.json").read_text()) == talker.facts
    text = (folder / "report.md").read_text()
    for part in ("first frame after", "```mermaid", "**Time by phase**", "**Time by frame**", "predictor.decode"):
        assert part in text


@needs_parser
def test_the_text_has_a_chart_that_parses(folder: Path) -> None:
    assert mermaid_errors([(folder / "report.md").read_text().split("```mermaid\n")[1].split("```")[0]]) == [""]


def test_the_page_has_every_call(folder: Path, talker: Trace) -> None:
    data = data_of(folder)
    found = []
    for part in data["slices"]:
        number, start = 0, part["began"]
        for place, step in enumerate(part["call"]):
            number += step
            start += part["start"][place] if place else 0
            found.append((number, data["names"]["modules"][part["module"][place]], start, part["total"][place]))
    wanted = talker.calls[["call", "path", "host_start_ns", "host_ns"]].itertuples(index=False, name=None)
    assert sorted(found) == list(wanted)
    boxes = [box for chart in data["charts"] for box in chart["boxes"].values()]
    assert {module for box in boxes for module in box["modules"]} == set(range(len(data["names"]["modules"])))
    charts = {chart["name"] for chart in data["charts"]}
    assert {box["link"] for box in boxes if box["link"]} <= charts


def test_flame_adds_up(talker: Trace) -> None:
    flame = flame_of(talker)
    top = [total for total, parent in zip(flame["total"], flame["parent"], strict=True) if parent < 0]
    assert sum(top) == talker.calls["host_ns"][talker.calls["parent"].isna()].sum()
    assert sum(flame["calls"]) == len(talker.calls)
    assert all(parent < node for node, parent in enumerate(flame["parent"]))


def test_a_large_frame_keeps_its_longest_calls(talker: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "MAX_SLICES", 50)
    part = Slicer(talker).slices(1).data
    of_frame = talker.calls[talker.calls["frame"] == 1]
    assert part["left_out"] == len(of_frame) - 50
    assert sorted(part["total"]) == sorted(of_frame["host_ns"].nlargest(50))
    # Each has its caller: the depth never grows by more than one.
    assert all(inner - outer <= 1 for outer, inner in zip(part["depth"], part["depth"][1:], strict=False))


@pytest.mark.parametrize("trace", [make_trace([]), replace(sample_trace(), facts={})], ids=["no calls", "no facts"])
def test_whatever_is_there(trace: Trace, tmp_path: Path) -> None:
    write_report(trace, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= FILES - {"trace.json"}


def test_without_a_layout_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object) -> bytes:
        raise LayoutError("svg needs Graphviz", "digraph {}")

    monkeypatch.setattr("talkerviz.render.charts.graphviz.lay_out", fail)
    notes = write_report(sample_trace(), tmp_path)
    assert len(notes) == 2
    assert (tmp_path / "flowchart.dot").read_text() == "digraph {}"
    assert data_of(tmp_path)["charts"] == []


def test_command(folder: Path, talker: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    talker.save(tmp_path / "run.parquet")
    assert talkerviz(monkeypatch, "report", tmp_path / "run.parquet", "-o", tmp_path / "new" / "folder") == 0
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == FILES
    page = tmp_path / "new" / "folder" / "index.html"
    assert capsys.readouterr().err == f"wrote {page}: {len(talker.calls):,} calls\n"
    assert talkerviz(monkeypatch, "report", tmp_path / "run.parquet", "-o", tmp_path / "run.parquet") == 2
    assert "not a folder" in capsys.readouterr().err


# In the browser.


class Reader:
    """A page that is read, and what went wrong on it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.wrong: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.wrong.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, folder: Path) -> Any:
        self.page.goto((folder / "index.html").as_uri())
        return self.page


@pytest.fixture
def reader(browser: Any) -> Iterator[Reader]:
    page = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme="light", reduced_motion="reduce")
    page.set_default_timeout(PATIENCE_MS)
    reader = Reader(page)
    yield reader
    assert reader.wrong == []
    assert [url for url in reader.requests if not url.startswith("file:")] == []
    page.close()


@needs_browser
def test_opens_alone(reader: Reader, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "index.html", tmp_path)
    page = reader.open(tmp_path)
    assert page.title().startswith("TalkerForConditionalGeneration")
    assert "real time" in page.inner_text("#numbers")
    assert page.locator("#chart .node").count() > 5
    sections = ["overview", "flowchart", "timeline", "flame", "plots", "roofline", "tables", "facts"]
    assert [section.get_attribute("id") for section in page.locator("main section").all()] == sections
    assert page.locator("canvas").count() >= 5
    assert len(reader.requests) == 1


@needs_browser
def test_a_click_on_a_box_opens_its_calls(reader: Reader, folder: Path) -> None:
    data = data_of(folder)
    names = data["names"]
    chart = next(chart for chart in data["charts"] if chart["name"] == "index")
    id, box = next((id, box) for id, box in chart["boxes"].items() if box["link"] and "self_attn" in box["path"])
    page = reader.open(folder)
    page.select_option("#level", "index")
    page.locator(f'#chart .node[data-id="{id}"]').click()
    assert page.inner_text("#panel-title") == box["path"]
    module = box["modules"][0]
    assert names["classes"][module] in page.inner_text("#panel-class")
    assert page.inner_text("#panel-calls-title") == f"{box['calls']} calls in {names['phases'][box['phase']]}"
    if len(box["modules"]) > 1:
        assert names["modules"][module] in page.locator("#panel-calls .tabulator-row").first.inner_text()
    page.get_by_text("Open its inside").click()
    assert page.locator("#crumbs").inner_text().endswith(box["link"])
    assert page.locator('#chart .node[aria-label*="q_proj"]').count() > 0
    page.get_by_role("button", name="Back").click()
    page.keyboard.press("Escape")
    assert page.locator("#panel").is_hidden()


@needs_browser
def test_search_finds(reader: Reader, folder: Path) -> None:
    page = reader.open(folder)
    page.keyboard.press("/")
    page.keyboard.type("predictor layers.1 q_proj")
    assert page.locator("#found li").count() == 1
    page.keyboard.press("Enter")
    assert page.inner_text("#panel-title") == "talker.code_predictor.model.layers.1.self_attn.q_proj"
    page.fill("#search", "no such thing")
    assert page.inner_text("#found") == "nothing found"


def column(page: Any, name: str) -> list[str]:
    cells = page.locator(f'#table .tabulator-cell[tabulator-field="{name}"]')
    cells.first.wait_for()
    return [cell.inner_text() for cell in cells.all()]


@needs_browser
def test_tables_sort_and_filter(reader: Reader, folder: Path) -> None:
    page = reader.open(folder)
    page.get_by_role("tab", name="Classes").click()
    assert column(page, "class")[0] == data_of(folder)["tables"]["class"]["columns"][0]["values"][0]
    heading = page.locator('#table .tabulator-col[tabulator-field="calls"]')
    heading.click()
    counts = [int(text.replace(",", "")) for text in column(page, "calls")]
    assert counts == sorted(counts, reverse=True)
    heading.focus()
    page.keyboard.press("Enter")
    assert [int(text.replace(",", "")) for text in column(page, "calls")] == sorted(counts)
    page.fill("#filter", "norm talker")
    assert page.inner_text("#rows").startswith("0 of ")
    page.fill("#filter", "rmsnorm")
    assert all("RMSNorm" in name for name in column(page, "class"))
    page.get_by_role("tab", name="Calls").click()
    assert re.fullmatch(r"[\d,]+ of [\d,]+ rows", page.inner_text("#rows"))


@needs_browser
def test_theme(reader: Reader, folder: Path) -> None:
    page = reader.open(folder)
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.click("#theme")
    dark = page.evaluate(ground)
    assert light != dark
    page.reload()
    assert page.evaluate(ground) == dark
    page.click("#theme")
    assert page.evaluate(ground) == light
    page.evaluate("localStorage.clear()")
    page.emulate_media(color_scheme="dark")
    page.reload()
    assert page.evaluate(ground) == dark


@needs_browser
def test_another_frame_is_loaded(
    reader: Reader, talker: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_PAGE_SLICES", 10)
    monkeypatch.setattr(writer, "_MAX_PERFETTO_CALLS", 500)
    (note,) = write_report(talker, tmp_path)
    assert note.startswith("trace.json: the first ")
    held = {part["frame"] for part in data_of(tmp_path)["slices"]}
    files = {path.name for path in (tmp_path / "frames").iterdir()}
    assert files == {f"frame-{frame:04d}.js" for frame in range(4) if frame not in held} != set()
    page = reader.open(tmp_path)
    for frame in range(4):
        page.select_option("#frame", index=frame + 1)
        calls = len(talker.calls[talker.calls["frame"] == frame])
        page.locator("#frame-says", has_text=re.compile(f"^{calls} calls$")).wait_for()
    page.click("#frame-before")
    assert page.locator("#frame option:checked").inner_text().startswith("2")
    shutil.rmtree(tmp_path / "frames")
    page.reload()
    missing = next(frame for frame in range(4) if frame not in held)
    page.select_option("#frame", index=missing + 1)
    page.locator("#frame-says", has_text="not beside this page").wait_for()
    assert all("ERR_FILE_NOT_FOUND" in line for line in reader.wrong)
    reader.wrong.clear()


@needs_browser
def test_keyboard_reaches_the_controls(reader: Reader, folder: Path) -> None:
    page = reader.open(folder)
    page.select_option("#frame", index=2)
    page.focus(".skip")
    reached = []
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(e => e.id || e.getAttribute('role'))(document.activeElement)"))
    controls = ["search", "theme", "level", "button", "frame-before", "frame", "frame-after", "timeline-plot"]
    controls += ["flame-phase", "flame-plot", "tab", "filter"]
    assert [control for control in reached if control in controls] == controls
    first = page.locator('#chart [role=button][tabindex="0"]')
    first.focus()
    name = first.get_attribute("aria-label")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") != name
    page.locator('#chart .node[aria-label*="module"]').first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#panel").is_visible()


@needs_browser
def test_names_are_text(reader: Reader, tmp_path: Path) -> None:
    rows = [call(0, None, 0, "net", "Net", 10_000_000, 1_000_000)]
    for number, name in enumerate(HOSTILE, start=1):
        rows.append(call(number, 0, 1, f"net.{name}", name or "Empty", 1000 * number, 1000 * number))
    write_report(make_trace(rows, device=HOSTILE[-4], model=HOSTILE[-3], peaks=None), tmp_path)
    page = reader.open(tmp_path)
    assert page.inner_text("#title") == HOSTILE[-3]
    for name in HOSTILE[-4:]:
        page.fill("#search", name)
        assert name in page.inner_text("#found")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        assert page.inner_text("#panel-title") == f"net.{name}"
    for tab in page.get_by_role("tab").all():
        tab.click()
    page.mouse.move(700, 450)
    for box in page.locator("#timeline-plot, #flame-plot").all():
        box.hover()
    assert page.locator("img").count() == 0


@needs_browser
def test_without_times(reader: Reader, tmp_path: Path) -> None:
    trace = sample_trace()
    unknown = {
        name: pd.array([pd.NA] * len(trace.calls), "Int64") for name in ("host_start_ns", "host_ns", "host_self_ns")
    }
    write_report(replace(trace, calls=trace.calls.assign(**unknown)), tmp_path)
    page = reader.open(tmp_path)
    assert page.locator("#timeline").count() == 0
    assert page.locator("#chart .node").count() > 1
    page.get_by_role("tab", name="Calls").click()
    assert len(column(page, "call")) == len(trace.calls)


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_the_page_writes_numbers_as_python_does() -> None:
    numbers = [0, 1, 5, 42, 999, 999.4, 999.6, 1000, 9994, 9995, 99_949, 99_951, 1e6 - 1, 1e6, 1.5e9, 2e12, 3.21e15]
    kinds = {"time": text.time_text, "amount": text.amount_text, "size": text.size_text}
    factors = [0.0579, 0.05, 1, 1.234, 12.3, 99.94, 99.95, 12_345]
    wanted = {name: [of(number) for number in [*numbers, -5e6]] for name, of in kinds.items()}
    wanted["factor"] = [text.factor_text(factor) for factor in factors]
    wanted["share"] = [text.share_text(factor) for factor in factors]
    wanted["tenths"], wanted["hundredths"] = ([f"{factor:,.{digits}f}" for factor in factors] for digits in (1, 2))
    given = {name: [*numbers, -5e6] if name in kinds else factors for name in wanted}
    around = "const element = { append() {} }, root = { body: { appendChild: one => one } };"
    around += "const document = { createElement: () => element };"
    asked = f"const given = {json.dumps(given)};"
    asked += (
        "console.log(JSON.stringify(Object.fromEntries(Object.entries(given).map(([k, v]) => [k, v.map(texts[k])]))));"
    )
    done = subprocess.run(["node", "-e", around + piece("text.js") + asked], capture_output=True, check=True)
    assert json.loads(done.stdout) == wanted


def test_a_report_of_a_part_that_is_long(talker: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_MAX_PERFETTO_CALLS", 100)
    layers = talker.select(module="talker.model.layers.*")
    notes = write_report(layers, tmp_path)
    assert any(note.startswith("trace.json: the first ") for note in notes)
    assert json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]


def test_nothing_is_left_of_a_report_that_was_there(talker: Trace, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    calls = talker.calls.assign(**dict.fromkeys(("host_start_ns", "host_ns", "host_self_ns"), pd.NA))
    untimed = replace(talker, calls=calls.astype(dict.fromkeys(("host_start_ns", "host_ns", "host_self_ns"), "Int64")))
    write_report(untimed, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == FILES - {"trace.json"}
    assert "trace.json" not in (tmp_path / "report.md").read_text(encoding="utf-8")
