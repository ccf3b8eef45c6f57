"""The surface that programs use: what is in it, what it says of itself, and that each part knows its place."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from sample_trace import make_trace, sample_trace
from test_cli import talkerviz

import talkerviz as tv
from talkerviz import api as drawing
from talkerviz.api import Trace
from talkerviz.render.registry import FORMATS, PICTURES

ROOT = Path(tv.__file__).parent
PUBLIC = sorted(name for name in tv.__all__ if not name.startswith("_"))


def test_what_the_readme_says_is_what_there_is() -> None:
    text = (ROOT.parent / "README.md").read_text()
    assert set(re.findall(r"\btv\.(\w+)", text)) == set(PUBLIC)
    assert all(hasattr(tv, name) for name in tv.__all__)
    said = set(re.findall(r"(?<![\w.])trace\.(\w+)", text.partition("From Python")[2]))
    assert said <= {*dir(Trace), *Trace.__annotations__}
    assert said >= {"calls", "modules", "facts", "select", "table", "render", "save"}
    assert "rec.phase(" in text


@pytest.mark.parametrize("thing", [*(getattr(tv, name) for name in PUBLIC), Trace.render, Trace.select, Trace.table])
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
    assert done.stdout.strip() == "True talkerviz.recorder.record"
    with pytest.raises(AttributeError, match="no attribute 'recorded'"):
        tv.recorded  # noqa: B018


def test_every_format_has_its_type() -> None:
    texts, pictures = typing.get_args(drawing.Text), typing.get_args(drawing.Picture)
    assert {*texts, *pictures} == set(FORMATS)
    assert pictures == PICTURES
    taken = inspect.signature(drawing.render).parameters
    assert set(drawing.Options.__annotations__) == set(taken) - {"trace", "format"}


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
        ({"format": "mermaid", "style": "round"}, "unknown style 'round': choose from nested, flat, source"),
        ({"format": "svg", "style": "source"}, "Mermaid only, not svg"),
        ({"format": "csv", "style": "flat"}, "style: only charts have it"),
        ({"format": "csv", "open": "*"}, "open: only charts have it"),
        ({"format": "csv", "fold": False}, "fold: only charts have it"),
        ({"format": "dot", "style": "flat", "close": ["*"]}, "close: only style nested has it, not flat"),
        ({"format": "svg", "by": "module"}, "by: only tables have it"),
        ({"format": "svg", "top": 3}, "top: only tables have it"),
        ({"format": "csv", "top": 0}, "top must be at least 1, not 0"),
        ({"format": "dot", "max_nodes": 0}, "max_nodes must be at least 1, not 0"),
        ({"format": "dot", "depth": -1}, "depth must be at least 0, not -1"),
        ({"format": "dot", "edges": "curved"}, "unknown edges 'curved'"),
        ({"format": "csv", "by": "colour"}, "cannot group by 'colour'"),
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
