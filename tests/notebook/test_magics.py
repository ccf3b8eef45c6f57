"""`%%talkertrace`, in an IPython of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import talkerviz as tv

pytest.importorskip("IPython", reason="pip install 'talkerviz[notebook]'")
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import CapturedIO, capture_output
from traitlets.config import Config

SETUP = """
import torch
from torch import nn
def net(): return nn.Sequential(nn.Linear(2, 3), nn.ReLU())
x = torch.ones(1, 2)
"""


class Notebook:
    """Runs cells, and keeps what the last one showed."""

    def __init__(self, shell: InteractiveShell) -> None:
        self.shell = shell
        self.shown: CapturedIO
        self.error: BaseException | None = None

    def run(self, cell: str) -> Any:
        with capture_output() as self.shown:
            result = self.shell.run_cell(cell, store_history=False)
        self.error = result.error_before_exec or result.error_in_exec
        return result.result

    def __getitem__(self, name: str) -> Any:
        return self.shell.user_ns[name]

    @property
    def traces(self) -> list[str]:
        """The lines that were shown for traces."""
        return [output.data["text/plain"] for output in self.shown.outputs if "image/svg+xml" in output.data]


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Notebook]:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    hook = sys.excepthook, sys.displayhook
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # the shell puts its own there
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}), user_module=None)
    made = Notebook(shell)
    made.run("%load_ext talkerviz")
    made.run(SETUP)
    assert made.error is None
    yield made
    InteractiveShell.clear_instance()
    sys.excepthook, sys.displayhook = hook
    assert nn.Module.__call__.__qualname__ == "Module._wrapped_call_impl"


def paths(trace: tv.Trace) -> list[str]:
    return trace.calls["path"].tolist()


def test_a_cell_is_recorded_and_its_value_is_its_value(notebook: Notebook) -> None:
    notebook.run("model = net()")
    value = notebook.run("%%talkertrace\ny = model(x)\nmodel[1](y)\ny.shape")
    assert value == (1, 3)
    assert paths(notebook["trace"]) == ["model", "model.0", "model.1", "model.1"]
    assert notebook["trace"].calls["frame"].tolist() == [0] * 4
    assert notebook.traces == [repr(notebook["trace"])]
    assert notebook["y"].shape == (1, 3)


def test_named_model_and_variable(notebook: Notebook) -> None:
    notebook.run("class Pipe: pass\npipe = Pipe()\npipe.talker, other = net(), net()")
    notebook.run("%%talkertrace pipe.talker -o mine\nother(x)\npipe.talker(x)")
    assert paths(notebook["mine"]) == ["talker", "talker.0", "talker.1"]
    notebook.run("models = [net()]")
    notebook.run("%%talkertrace models[0]\nmodels[0](x)")
    assert paths(notebook["trace"]) == ["model", "model.0", "model.1"]


def test_a_model_that_the_cell_makes(notebook: Notebook) -> None:
    notebook.run("%%talkertrace\nfresh = net()\nfresh(x)")
    assert paths(notebook["trace"]) == ["fresh", "fresh.0", "fresh.1"]
    notebook.run("%%talkertrace\nnet()(x)")
    assert paths(notebook["trace"]) == ["model", "model.0", "model.1"]


def test_the_whole_model_although_a_part_is_called_first(notebook: Notebook) -> None:
    notebook.run("whole = nn.ModuleDict({'encoder': net(), 'decoder': net()})\npart = whole['encoder']\nalias = whole")
    notebook.run("%%talkertrace\npart(x)\nwhole['decoder'](x)")
    assert set(paths(notebook["trace"])) == {
        f"whole.{half}{inner}" for half in ("encoder", "decoder") for inner in ("", ".0", ".1")
    }


def test_several_models(notebook: Notebook) -> None:
    notebook.run("one, two, unused = net(), net(), net()")
    notebook.run("%%talkertrace\none(x)\ntwo(x)\ny = net()(x)")
    assert {name: paths(trace) for name, trace in notebook["trace"].items()} == {
        name: [name, f"{name}.0", f"{name}.1"] for name in ("one", "two")
    }
    assert len(notebook.traces) == 2
    assert notebook.shown.stdout.splitlines() == ["trace['one']", "trace['two']"]


def test_inside_a_recording_of_the_users_own(notebook: Notebook) -> None:
    notebook.run("import talkerviz as tv\nmodel = net()")
    notebook.run("%%talkertrace\nwith tv.recording(model, name='own') as rec:\n    model(x)\n    model(x)")
    assert notebook.error is None
    assert paths(notebook["rec"].trace) == ["own", "own.0", "own.1"] * 2
    assert "no module was called" in notebook.shown.stderr
    notebook.run("%%talkertrace\nwith tv.recording(model, name='own') as rec:\n    model(x)\ny = model(x)")
    assert paths(notebook["rec"].trace) == ["own", "own.0", "own.1"]
    assert paths(notebook["trace"]) == ["model", "model.0", "model.1"]


def test_a_cell_that_fails_leaves_what_it_did(notebook: Notebook) -> None:
    notebook.run("model = net()")
    notebook.run("%%talkertrace\nmodel(x)\nmodel(torch.ones(1, 5))")
    assert isinstance(notebook.error, RuntimeError)
    assert paths(notebook["trace"]) == ["model", "model.0", "model.1", "model", "model.0"]
    assert notebook["trace"].calls["error"].fillna("").tolist() == ["", "", "", "RuntimeError", "RuntimeError"]
    assert len(notebook.traces) == 1
    # The traceback has the cell's line.
    assert "model(torch.ones(1, 5))" in notebook.shown.stdout


def test_a_semicolon_hides_the_value_but_not_the_trace(notebook: Notebook) -> None:
    notebook.run("model = net()")
    assert notebook.run("%%talkertrace\nmodel(x);") is None
    assert len(notebook.traces) == 1


def test_nothing_is_called(notebook: Notebook) -> None:
    assert notebook.run("%%talkertrace\n1 + 1") == 2
    assert "no module was called, so there is no trace" in notebook.shown.stderr
    assert "trace" not in notebook.shell.user_ns


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nowhere", "nowhere: NameError: name 'nowhere' is not defined; name a variable with a model"),
        ("x", "x is a Tensor, not a torch.nn.Module"),
        ("-o two.parts", "-o two.parts: not a valid name of a variable"),
    ],
)
def test_what_cannot_be_traced(line: str, says: str, notebook: Notebook) -> None:
    notebook.run(f"%%talkertrace {line}\nran = True")
    assert f"UsageError: {says}" in notebook.shown.stderr
    assert "ran" not in notebook.shell.user_ns
