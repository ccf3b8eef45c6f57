"""The command line, end to end."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

from talkerviz.cli import main
from talkerviz.trace import Trace

GOLDEN = Path(__file__).parent / "golden" / "qwen3_omni_talker_mermaid.md"
Capture = pytest.CaptureFixture[str]


def talkerviz(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr(sys, "argv", ["talkerviz", *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        main()
    code = stop.value.code
    return code if isinstance(code, int) else 0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.parquet"
    with pytest.MonkeyPatch.context() as patch:
        assert talkerviz(patch, "trace", "--preset", "tiny", "--frames", 3, "-o", path) == 0
    return path


@pytest.mark.parametrize("impl", ["native", "transformers"])
def test_the_source_document(impl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    path = tmp_path / "r.parquet"
    assert talkerviz(monkeypatch, "trace", "--frames", 4, "--impl", impl, "-o", path) == 0
    shown = capfd.readouterr()
    assert "Time by phase" in shown.out
    assert talkerviz(monkeypatch, "render", path, "-f", "mermaid", "--style", "source") == 0
    assert capfd.readouterr().out.encode() == GOLDEN.read_bytes()


def test_codes_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for impl in ("native", "transformers"):
        out = tmp_path / f"{impl}.json"
        args = ("--preset", "tiny", "--impl", impl, "--codes", out, "--seed", 5, "-o", tmp_path / "r.parquet")
        assert talkerviz(monkeypatch, "trace", *args) == 0
        found.append(json.loads(out.read_text()))
    assert found[0] == found[1]
    assert [len(frame) for frame in found[0]] == [16] * 8


@pytest.mark.parametrize("impl", ["native", "transformers"])
def test_phases_frames_and_steps(impl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.parquet"
    assert talkerviz(monkeypatch, "trace", "--preset", "tiny", "--frames", 3, "--impl", impl, "-o", path) == 0
    trace = Trace.load(path)
    assert trace.phases == ["setup", "prefill", "predictor.prefill", "predictor.decode", "decode"]
    assert trace.facts["scenario"]["frames"] == 3
    calls = trace.calls
    heads = calls[calls["path"].str.contains("lm_head")]
    for frame in range(3):
        of_frame = heads[heads["frame"] == frame]
        assert of_frame["step"].tolist() == list(range(15))
        assert of_frame["path"].tolist() == [f"talker.code_predictor.lm_head.{n}" for n in range(15)]
    roots = calls[calls["path"] == "talker"]
    assert roots["phase"].tolist()[:3] == ["prefill", "decode", "decode"]


@pytest.mark.parametrize("by", ["module", "class", "phase", "layer", "frame", "call"])
def test_show(by: str, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert talkerviz(monkeypatch, "show", tiny, "--by", by, "--top", 3) == 0
    assert f"Time by {by}" in capsys.readouterr().out


def test_tree_and_presets(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert talkerviz(monkeypatch, "tree", tiny, "--depth", 2) == 0
    assert "layers.0-1  ×2" in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "120")
    assert talkerviz(monkeypatch, "presets") == 0
    assert "3,324,596,480" in capsys.readouterr().out


def test_render_selects(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    out = tmp_path / "out.mmd"
    assert talkerviz(monkeypatch, "render", tiny, "-f", "mermaid", "--frame", 1, "--depth", 0, "-o", out) == 0
    assert "GitHub" not in capsys.readouterr().err
    assert len(re.findall(r"^    n\d+\[", out.read_text(), re.M)) == 1 + 1 + 15 + 1
    assert talkerviz(monkeypatch, "render", tiny, "-f", "mermaid", "-o", out) == 0
    assert "GitHub draws at most 500" in capsys.readouterr().err
    assert len(re.findall(r"^    n\d+\[", out.read_text(), re.M)) == len(pd.read_parquet(tiny))


def bad_inputs() -> list[tuple[list[str], str]]:
    return [
        (["trace", "--preset", "nosuch"], "unknown preset 'nosuch': choose from tiny, lite, full"),
        (["trace", "--frames", "0"], "frames must be at least 1, not 0"),
        (["trace", "--speaker", "bob"], "unknown speaker 'bob'"),
        (["trace", "--frames", "many"], "Invalid value for '--frames'"),
        (["trace", "--nosuch"], "No such option"),
        (["trace", "nosuch.module:f"], "No module named 'nosuch'"),
        (["trace", "nosuch"], "give `talker` or `package.module:function`"),
        (["trace", "-o", "/nosuch/r.parquet"], "no such folder /nosuch"),
        (["show", "missing.parquet"], "missing.parquet: no such file"),
        (["tree", "cut.parquet"], "cut.parquet: a trace that is cut short or damaged"),
        (["render", "text.txt", "-f", "svg"], "text.txt: not a talkerviz"),
        (["render", "good.parquet", "-f", "gif"], "unknown format 'gif'"),
        (["render", "good.parquet", "-f", "svg", "--style", "source"], "--style source is Mermaid only"),
        (["render", "good.parquet", "-f", "svg", "--phase", "x"], "no phase 'x' in this trace: choose from setup"),
        (["render", "good.parquet", "-f", "svg", "--frame", "9"], "no frame 9 in this trace: it has frames 0 to 2"),
        (["nosuch"], "No such command"),
    ]


@pytest.mark.parametrize(("args", "message"), bad_inputs())
def test_bad_input_is_one_line(
    args: list[str], message: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    data = tiny.read_bytes()
    Path("good.parquet").write_bytes(data)
    Path("cut.parquet").write_bytes(data[: len(data) // 2])
    Path("text.txt").write_text("hello, I am not a trace\n")
    assert talkerviz(monkeypatch, *args) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message.replace("not a talkerviz", "not a talkerviz trace") in shown.err
    assert shown.err.startswith("talkerviz: ")
    assert shown.err.count("\n") == 1


MODEL = """
import torch
from torch import nn

class Stops(nn.Module):
    def forward(self, x):
        raise {error}

def make():
    model = nn.Sequential(nn.Linear(4, 4), Stops())
    return model, lambda: model(torch.ones(1, 4))

def nothing():
    return 3
"""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        ("KeyboardInterrupt", 130, "are kept"),
        ('RuntimeError("no\\nluck")', 2, "RuntimeError: no luck; 3 calls are kept"),
    ],
)
def test_what_was_recorded_is_kept(
    error: str, code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    name = f"model_that_stops_{code}"
    Path(f"{name}.py").write_text(MODEL.replace("{error}", error.replace("\\\\", "\\")))
    assert talkerviz(monkeypatch, "trace", f"{name}:make") == code
    assert message in capsys.readouterr().err
    calls = Trace.load("run.parquet").calls
    assert calls["path"].tolist() == ["model", "model.0", "model.1"]
    assert calls["error"].fillna("").tolist() == [(found := re.split(r"\W", error)[0]), "", found]
    assert talkerviz(monkeypatch, "trace", f"{name}:nothing") == 2
    assert "must return (model, callable), not int" in capsys.readouterr().err


def test_to_stdout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert talkerviz(monkeypatch, "trace", "--preset", "tiny", "--frames", 1, "--clock", "none", "-o", "-") == 0
    (tmp_path / "r.parquet").write_bytes(capfdbinary.readouterr().out)
    trace = Trace.load(tmp_path / "r.parquet")
    assert trace.calls["host_ns"].isna().all()
    assert trace.facts["command"].endswith("-o -")
