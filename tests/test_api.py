"""The surface that programs use: what is in it, what it says of itself, and that each part knows its place."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import Capture, talkerviz
from sample_trace import call, make_trace, sample_trace
from torch import nn

import talkerviz as tv
from talkerviz.api import Trace
from talkerviz.render.options import RenderOptions
from talkerviz.render.registry import BINARY, FORMATS, BinaryFormat, TextFormat

ROOT = Path(tv.__file__).parent
PUBLIC = sorted(name for name in tv.__all__ if not name.startswith("_"))


def test_names_in_the_readme_are_public() -> None:
    text = (ROOT.parent / "README.md").read_text(encoding="utf-8")
    assert all(hasattr(tv, name) for name in tv.__all__)
    functions, methods = (set(re.findall(rf"(?<![\w.]){name}\.(\w+)", text)) for name in ("tv", "trace"))
    assert {"record", "diff"} <= functions <= set(PUBLIC)
    assert {"show", "tree", "render", "report"} <= methods <= set(dir(Trace))


def test_the_reference_has_every_public_name() -> None:
    text = (ROOT.parent / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"auto(?:function|class):: [\w.]+\.(\w+)$", text, re.M))
    assert set(PUBLIC) <= documented


@pytest.mark.parametrize(
    "thing",
    [
        *(getattr(tv, name) for name in PUBLIC),
        *(Trace.render, Trace.select, Trace.table, Trace.show, Trace.tree, Trace.report),
    ],
)
def test_it_says_what_it_does(thing: object) -> None:
    said = inspect.getdoc(thing) or ""
    assert len(said) > 40
    if inspect.isfunction(thing) and thing is not tv.record:  # which refers to `recording`
        assert "Raises:" in said
        missing = [name for name in inspect.signature(thing).parameters if name != "self" and f"{name}:" not in said]
        assert not missing


def test_imported_without_what_notebooks_and_the_command_need() -> None:
    code = "import sys, talkerviz; print({'IPython', 'anywidget', 'ipywidgets', 'typer'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def imported_of(names: str, *command: str, folder: Path | None = None) -> str:
    """Which of these modules a command imports, as a set is printed."""
    code = (
        "import atexit, sys; from talkerviz.cli import main;"
        f"atexit.register(lambda: print({set(names.split())!r} & set(sys.modules), file=sys.stderr)); main()"
    )
    arguments = [sys.executable, "-c", code, *command]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=folder)
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "show {}",
        "tree {}",
        "render {} -f dot",
        "render {} -f csv",
        "report {} -o {}.out",
        "diff {} {}",
    ],
)
def test_what_reads_a_trace_does_so_without_torch(command: str, tmp_path: Path) -> None:
    file = tmp_path / "run.parquet"
    sample_trace().save(file)
    assert imported_of("torch transformers", *command.replace("{}", str(file)).split()) == "set()"


def test_a_model_of_one_s_own_is_traced_without_transformers(tmp_path: Path) -> None:
    model = "import torch\ndef make():\n    m = torch.nn.ReLU()\n    return m, lambda: m(torch.ones(1))\n"
    (tmp_path / "own.py").write_text(model)
    assert imported_of("transformers", "trace", "own:make", folder=tmp_path) == "set()"


def test_what_records_is_found_before_it_is_imported() -> None:
    code = "import talkerviz as tv; print({'Recording', 'record', 'recording'} <= {*dir(tv)}, tv.record.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True talkerviz.api"
    with pytest.raises(AttributeError, match="no attribute 'recorded'"):
        tv.recorded  # noqa: B018


def test_every_format_has_its_type() -> None:
    texts, binary = typing.get_args(TextFormat), typing.get_args(BinaryFormat)
    assert {*texts, *binary} == set(FORMATS)
    assert binary == BINARY


def test_render_takes_the_fields_of_its_options() -> None:
    taken = inspect.signature(Trace.render).parameters
    assert [*taken][2:] == [field.name for field in dataclasses.fields(RenderOptions)]
    assert taken["style"].default == "nested"
    assert "max_nodes: Maximum number of boxes" in str(inspect.getdoc(Trace.render))


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"format": "mermaid"}, "-f mermaid"),
        (
            {"format": "mermaid", "style": "flat", "phase": "decode", "frame": 1},
            "-f mermaid --style flat --phase decode --frame 1",
        ),
        ({"format": "mermaid", "style": "source"}, "-f mermaid --style source"),
        (
            {"format": "dot", "depth": 1, "fold": False, "edges": "calls"},
            "-f dot --depth 1 --no-fold --edges calls",
        ),
        (
            {"format": "dot", "open": "*.layers.*", "close": ["net.head"], "max_nodes": 9},
            "-f dot --open *.layers.* --close net.head --max-nodes 9",
        ),
        ({"format": "svg", "module": "*.layers.1"}, "-f svg --module *.layers.1"),
        ({"format": "png"}, "-f png"),
        (
            {"format": "csv", "by": "class", "sort": "calls", "top": 2, "depth": 1},
            "-f csv --by class --sort calls --top 2 --depth 1",
        ),
        ({"format": "html", "by": "phase"}, "-f html --by phase"),
        ({"format": "perfetto"}, "-f perfetto"),
    ],
)
def test_renders_what_the_command_does(
    options: dict[str, object], arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = sample_trace()
    trace.save(tmp_path / "run.parquet")
    assert talkerviz(monkeypatch, "render", tmp_path / "run.parquet", *arguments.split(), "-o", tmp_path / "drawn") == 0
    drawn = trace.render(**options)  # type: ignore[call-overload]
    assert isinstance(drawn, bytes if options["format"] == "png" else str)
    assert (drawn if isinstance(drawn, bytes) else drawn.encode()) == (tmp_path / "drawn").read_bytes()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"format": "gif"}, "unknown format 'gif': choose from mermaid, dot"),
        ({"format": "mermaid", "style": "round"}, "style: unknown value 'round'; choose from nested, flat, source"),
        ({"format": "svg", "style": "source"}, "Mermaid only, not svg"),
        ({"format": "csv", "style": "flat"}, "style: only charts have it"),
        ({"format": "csv", "open": "*"}, "open: only charts have it"),
        ({"format": "csv", "fold": False}, "fold: only charts have it"),
        ({"format": "dot", "style": "flat", "close": ["*"]}, "close: only style nested has it, not flat"),
        ({"format": "svg", "by": "module"}, "by: only tables have it"),
        ({"format": "svg", "top": 3}, "top: only tables have it"),
        ({"format": "csv", "top": 0}, "top: must be at least 1, not 0"),
        ({"format": "dot", "max_nodes": 0}, "max_nodes: must be at least 1, not 0"),
        ({"format": "dot", "depth": -1}, "depth: must be at least 0, not -1"),
        ({"format": "dot", "edges": "curved"}, "edges: unknown value 'curved'; choose from flow, calls"),
        ({"format": "csv", "by": "colour"}, "by: unknown value 'colour'; choose from module, class"),
        ({"format": "svg", "frame": "first"}, "frame: must be a whole number, not 'first'"),
        ({"format": "svg", "module": 3}, "module: must be a str, not 3"),
        ({"format": "dot", "phase": "no"}, "no phase 'no' in this trace"),
        ({"format": "dot", "open": "no.*"}, "no module that was called fits 'no.*'"),
    ],
)
def test_what_cannot_be_rendered(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        sample_trace().render(**options)  # type: ignore[call-overload]
    assert "\n" not in str(raised.value)


def test_in_short() -> None:
    said = repr(sample_trace())
    assert said == "<Trace of Net: 11 calls of 9 modules; phases setup, decode; 2 frames; 0.013 ms in calls>"
    assert repr(make_trace([])) == "<Trace of Net: 0 calls of 0 modules>"
    assert repr(sample_trace().select(phase="setup")).startswith("<Trace of Net: 1 call of 1 module; phase setup; ")
    assert repr(tv.Trace(make_trace([]).calls, (), {})) == "<Trace of a model: 0 calls of 0 modules>"


def timed_trace() -> Trace:
    """Return a trace of four frames, which can be compared."""
    rows = [
        call(2 * frame + inner, 2 * frame if inner else None, inner, path, kind, 100 + frame, 50, frame=frame)
        for frame in range(4)
        for inner, path, kind in ((0, "net", "Net"), (1, "net.head", "Linear"))
    ]
    return make_trace(rows)


@pytest.mark.parametrize(
    ("command", "method", "options"),
    [
        ("show", "show", {}),
        ("show", "show", {"by": "class", "sort": "total", "top": 2}),
        ("show", "show", {"frame": 0, "module": "*.layers.0"}),
        ("show", "show", {"by": "frame"}),
        ("show", "show", {"phase": "decode", "sort": "p95"}),
        ("tree", "tree", {}),
        ("tree", "tree", {"depth": 1, "phase": "decode"}),
        ("tree", "tree", {"module": "net.layers.*", "frame": 0, "sort": "share"}),
    ],
)
def test_prints_what_the_command_does(
    command: str,
    method: str,
    options: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    trace = sample_trace()
    trace.save(tmp_path / "run.parquet")
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert talkerviz(monkeypatch, command, tmp_path / "run.parquet", *flags) == 0
    printed = capsys.readouterr().out
    assert getattr(trace, method)(**options) is None
    assert capsys.readouterr().out == printed
    assert len(printed.splitlines()) > 3


def test_compares_what_the_command_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    trace = timed_trace()
    trace.save(tmp_path / "run.parquet")
    assert talkerviz(monkeypatch, "diff", tmp_path / "run.parquet", tmp_path / "run.parquet") == 0
    printed = capsys.readouterr().out
    assert "Time of a typical frame" in printed
    tv.diff(trace, trace)
    assert capsys.readouterr().out == printed
    assert "| phase" in tv.diff(trace, trace, "markdown", by="class")
    assert tv.diff(trace, trace, "dot").startswith("digraph")
    for wrong, says in (
        (lambda: tv.diff(trace, "run.parquet"), "diff: after is a str, not a trace; open a file with Trace.load"),  # type: ignore[call-overload]
        (lambda: tv.diff(trace, trace, "latex"), "diff: unknown format 'latex'; choose from markdown, html"),
        (lambda: tv.diff(trace, trace, by="call"), "by: unknown value 'call'; choose from pattern, module"),  # type: ignore[call-overload]
    ):
        with pytest.raises(ValueError, match=re.escape(says)):
            wrong()


def test_writes_a_report(tmp_path: Path) -> None:
    page = sample_trace().report(tmp_path / "report")
    assert page == tmp_path / "report" / "index.html"
    assert page.read_text().startswith("<!doctype html>")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no report"):
        sample_trace().report(tmp_path / "mine")


def test_a_file_that_ends_in_html_is_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    trace = sample_trace()
    trace.save(tmp_path / "run.parquet")
    assert talkerviz(monkeypatch, "render", tmp_path / "run.parquet", "-o", tmp_path / "x.html") == 0
    assert capsys.readouterr().err == f"wrote {tmp_path / 'x.html'}\n"
    assert (tmp_path / "x.html").read_text() == trace.render("page")
    assert "frames/frame-" not in re.sub(r"<script>.*?</script>", "", trace.render("page"), flags=re.DOTALL)
    assert talkerviz(monkeypatch, "render", tmp_path / "run.parquet", "-f", "html", "-o", tmp_path / "t.html") == 0
    assert (tmp_path / "t.html").read_text() == trace.render("html")
    assert "<h1>Time by module</h1>" in trace.render("html")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: sample_trace().show(sort="colour"), "cannot sort by 'colour': choose from module, class"),
        (lambda: sample_trace().show(sort="flops"), "cannot sort by 'flops': it was not measured in this run"),
        (lambda: sample_trace().tree(sort="p95"), "cannot sort by 'p95': choose from module, class, calls"),
        (lambda: sample_trace().show(runs=True, ranks=True), "runs: not with ranks"),
        (lambda: sample_trace().show(runs=True, sort="self"), "sort: not with runs"),
        (lambda: sample_trace().tree(depth=-1), "depth: must be at least 0, not -1"),
        (lambda: sample_trace().table("colour"), "by: unknown value 'colour'; choose from module"),
    ],
)
def test_wrong_uses_get_one_line(wrong: Callable[[], None], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        wrong()
    assert "\n" not in str(raised.value)


def test_an_unknown_option_names_the_known_ones() -> None:
    with pytest.raises(TypeError, match="render: unknown option 'styel'; choose from style, phase"):
        sample_trace().render("svg", styel="flat")  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "sort", ["self", "total", "calls", "mean_ns", "p95", "params", "share", "module", "class", "shapes"]
)
def test_a_table_is_sorted_by_any_column(sort: str) -> None:
    column = {"params": "parameters", "p95": "p95_ns", "self": "self_ns", "total": "total_ns"}.get(sort, sort)
    values = sample_trace().table(sort=sort)[column].tolist()
    assert values == sorted(values, reverse=not isinstance(values[0], str))


def test_a_model_is_recorded_with_its_inputs() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    trace = tv.record(net, torch.ones(1, 2))
    assert trace.calls["path"].tolist() == ["model", "model.0", "model.1"]
    assert tv.record(net, (torch.ones(1, 2),)).calls["path"].tolist() == trace.calls["path"].tolist()
    assert tv.record(net, {"input": torch.ones(1, 2)}).calls["path"].tolist() == trace.calls["path"].tolist()
    with pytest.raises(ValueError, match="run: neither inputs nor a function, but of type int; pass a tensor"):
        tv.record(net, 3)  # type: ignore[arg-type]


def test_the_package_lists_its_public_surface_alone() -> None:
    assert dir(tv) == sorted(tv.__all__)
