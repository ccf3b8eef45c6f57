"""The command line, end to end."""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
import torch
from command_line import Capture, talkerviz
from repo_paths import GOLDEN

from talkerviz.api import Trace
from talkerviz.cli import COMMANDS
from talkerviz.cli.app import app
from talkerviz.doctor import diagnose
from talkerviz.recorder.instruments.device_peaks import Peaks

SOURCE_DOCUMENT = GOLDEN / "qwen3_omni_talker_mermaid.md"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.parquet"
    with pytest.MonkeyPatch.context() as patch:
        assert talkerviz(patch, "trace", "--preset", "tiny", "--frames", 3, "-o", path) == 0
    return path


@pytest.mark.parametrize("impl", ["native", "transformers"])
def test_the_source_document(impl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    path = tmp_path / "r.parquet"
    assert talkerviz(monkeypatch, "trace", "--frames", 4, "--impl", impl, "--no-flow", "-o", path) == 0
    shown = capfd.readouterr()
    assert "Time by phase" in shown.out
    assert talkerviz(monkeypatch, "render", path, "-f", "mermaid", "--style", "source") == 0
    assert capfd.readouterr().out.encode() == SOURCE_DOCUMENT.read_bytes()


def test_codes_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for impl in ("native", "transformers"):
        out = tmp_path / f"{impl}.json"
        args = (
            "--preset",
            "tiny",
            "--impl",
            impl,
            "--codes",
            out,
            "--seed",
            5,
            "--no-flow",
            "-o",
            tmp_path / "r.parquet",
        )
        assert talkerviz(monkeypatch, "trace", *args) == 0
        found.append(json.loads(out.read_text()))
    assert found[0] == found[1]
    assert [len(frame) for frame in found[0]] == [16] * 8


@pytest.mark.parametrize("impl", ["native", "transformers"])
def test_phases_frames_and_steps(impl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.parquet"
    assert (
        talkerviz(monkeypatch, "trace", "--preset", "tiny", "--frames", 3, "--impl", impl, "--no-flow", "-o", path) == 0
    )
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


@pytest.mark.parametrize("by", ["module", "class", "phase", "part", "layer", "request", "frame", "call"])
def test_show(by: str, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert talkerviz(monkeypatch, "show", tiny, "--by", by, "--top", 3) == 0
    shown = capsys.readouterr().out
    assert f"Time by {by}" in shown
    assert ("3 frames: the first after" in shown) == (by == "frame")


def test_side_by_side(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert talkerviz(monkeypatch, "show", tiny, "--across", "phase", "--top", 500) == 0
    shown = capsys.readouterr().out
    assert "Time by module, phases side by side" in shown
    assert "talker.model.layers.*.self_attn.q_proj" in shown


@pytest.mark.parametrize("fmt", ["markdown", "csv", "json", "latex", "html"])
def test_tables(fmt: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    out = tmp_path / "table"
    chosen = ("--by", "class", "--top", 1, "--sort", "calls", "--phase", "decode")
    assert talkerviz(monkeypatch, "render", tiny, "-f", fmt, *chosen, "-o", out) == 0
    assert "Linear" in out.read_text()
    assert "TalkerTextExperts" not in out.read_text()
    assert talkerviz(monkeypatch, "render", tiny, "-f", fmt, "--across", "part", "--depth", 0) == 0
    shown = capfd.readouterr().out
    assert "codec" in shown
    assert "proj" not in shown.replace("text\\_projection", "").replace("text_projection", "")


def test_tree_and_presets(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert talkerviz(monkeypatch, "tree", tiny, "--depth", 2) == 0
    assert "layers.0-1  2×" in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "120")
    assert talkerviz(monkeypatch, "presets") == 0
    assert "3,324,596,480" in capsys.readouterr().out


def test_render_selects(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    out = tmp_path / "out.mmd"
    flat = ("render", tiny, "-f", "mermaid", "--style", "flat", "-o", out)
    assert talkerviz(monkeypatch, *flat, "--frame", 1, "--depth", 0) == 0
    assert "GitHub" not in capsys.readouterr().err
    assert len(re.findall(r"^    n\d+\[", out.read_text(), re.M)) == 1 + 1 + 15 + 1
    assert talkerviz(monkeypatch, *flat) == 0
    assert "GitHub draws at most 500" in capsys.readouterr().err
    assert len(re.findall(r"^    n\d+\[", out.read_text(), re.M)) == len(pd.read_parquet(tiny))


def test_render_nested(tiny: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    def drawn(*options: object) -> str:
        assert talkerviz(monkeypatch, "render", tiny, "-f", "dot", *options) == 0
        return capfd.readouterr().out

    usual = drawn()
    assert "flow of tensors" in usual
    assert "layers.0-1" in usual
    assert usual.count("tooltip") > drawn("--depth", 0).count("tooltip")
    assert "<B>q_proj</B>" not in drawn("--close", "*.self_attn")
    assert "scaled_dot_product_attention" in drawn("--phase", "decode", "--depth", 1, "--open", "talker.model.layers.*")
    assert "order of calls" in drawn("--edges", "calls")
    assert "layers.1<" in drawn("--no-fold", "--phase", "prefill", "--max-nodes", 500)
    few = drawn("--max-nodes", 8)
    assert len(set(re.findall(r"^\s*(n\d+) \[", few, re.M))) <= 8
    part = drawn("--module", "talker.codec_head", "--frame", 1)
    assert "what ran before" in part
    assert "q_proj" not in part


@pytest.mark.parametrize(("fmt", "suffix"), [("mermaid", ".md"), ("dot", ".dot"), ("svg", ".svg")])
def test_pages_lead_everywhere(
    fmt: str, suffix: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    folder = tmp_path / "pages"
    options = ("--pages", "--max-nodes", 6, "--phase", "decode", "-o", folder)
    assert talkerviz(monkeypatch, "render", tiny, "-f", fmt, *options) == 0
    files = {file.name for file in folder.iterdir()}
    assert capsys.readouterr().err == f"wrote {folder / 'index'}{suffix}: {len(files)} pages\n"
    assert len(files) > 2
    pattern = {"mermaid": r"\]\(([^)]*\.md)\)", "dot": r'URL="([^"]*)"', "svg": r'xlink:href="([^"]*)"'}[fmt]
    linked = {link for file in folder.iterdir() for link in re.findall(pattern, file.read_text())}
    assert linked | {f"index{suffix}"} == files


def test_diff(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    theirs = tmp_path / "theirs.parquet"
    args = ("--preset", "tiny", "--frames", 3, "--impl", "transformers", "--clock", "none", "-o", theirs)
    assert talkerviz(monkeypatch, "trace", *args) == 0
    capsys.readouterr()
    assert talkerviz(monkeypatch, "diff", tiny, theirs) == 0
    shown = capsys.readouterr().out
    assert re.search(r"self_attn .*\n.*\+\d+ cat", shown)  # their cache grows by it
    assert re.search(r"−\d+ setitem", shown)  # ours is written in place
    assert talkerviz(monkeypatch, "diff", tiny, tiny) == 0
    assert "The same modules are called, with the same shapes." in capsys.readouterr().out
    out = tmp_path / "diff.svg"
    assert talkerviz(monkeypatch, "diff", tiny, theirs, "-f", "svg", "-o", out) == 0
    assert b"added" in out.read_bytes()


def test_without_a_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    path = tmp_path / "r.parquet"
    assert talkerviz(monkeypatch, "trace", "--preset", "tiny", "--frames", 1, "--no-flow", "-o", path) == 0
    assert Trace.load(path).flow is None
    capsys.readouterr()
    assert talkerviz(monkeypatch, "render", path, "-f", "mermaid") == 0
    assert "the flow of tensors was not recorded" in capsys.readouterr().out
    assert talkerviz(monkeypatch, "render", path, "-f", "mermaid", "--edges", "flow") == 2
    assert "record it without --no-flow" in capsys.readouterr().err


@pytest.mark.skipif(not (Path(sys.executable).parent / "graphviz-pure").exists(), reason="graphviz-pure is not there")
def test_without_graphviz_the_dot_is_kept(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("PATH", "")
    out = tmp_path / "out.pdf"
    assert talkerviz(monkeypatch, "render", tiny, "-f", "pdf", "-o", out) == 2
    said = capsys.readouterr().err
    assert "pdf needs the system's Graphviz (apt-get install graphviz)" in said
    assert "the DOT is in" in said
    assert (tmp_path / "out.dot").read_text().startswith("digraph")
    assert not out.exists()


def test_with_nothing_said_it_says_what_there_is(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert talkerviz(monkeypatch) == 0
    said = capsys.readouterr()
    assert {"trace", "show", "render", "doctor"} <= {line.strip("│ ").split(" ")[0] for line in said.out.splitlines()}
    assert said.err == ""


def test_every_command_is_listed_with_its_file() -> None:
    for file, _ in COMMANDS.values():
        import_module(f"talkerviz.cli.{file}")
    calls = {one.name or one.callback.__name__: one.callback for one in app.registered_commands if one.callback}
    calls |= {one.name: one.typer_instance.registered_commands[0].callback for one in app.registered_groups}
    found = {name: call.__module__.removeprefix("talkerviz.cli.") for name, call in calls.items()}
    assert found == {name: file for name, (file, _) in COMMANDS.items()}


def bad_inputs() -> list[tuple[list[str], str]]:
    return [
        (["trace", "--preset", "nosuch"], "unknown preset 'nosuch': choose from tiny, lite, full"),
        (["trace", "--frames", "0"], "frames must be at least 1, not 0"),
        (["trace", "--speaker", "bob"], "unknown speaker 'bob'"),
        (["trace", "--frames", "many"], "Invalid value for '--frames'"),
        (["trace", "--nosuch"], "No such option"),
        (["trace", "nosuch.module:f"], "No module named 'nosuch'"),
        (["trace", "nosuch"], "give talker, code2wav, a folder with a config.json, or package.module:function"),
        (["trace", "-o", "/nosuch/r.parquet"], "no such folder /nosuch"),
        (["trace", "-o", "folder"], "folder: is a directory: name a file"),
        (["render", "good.parquet", "-f", "svg", "-o", "folder"], "folder: is a directory: name a file"),
        (
            ["render", "good.parquet", "-f", "svg", "--pages", "-o", "text.txt"],
            "text.txt: is a file, not a folder",
        ),
        (["render", "good.parquet", "-f", "svg", "--pages", "-o", "none/pages"], "none/pages: no such folder"),
        (
            ["trace", "--preset", "tiny", "--include", "nosuch.*"],
            "no module matches 'nosuch.*': paths begin with 'talker'",
        ),
        (["trace", "--preset", "tiny", "--exclude", "*"], "no module is left to record: widen --include"),
        (["trace", "--device", "meta", "--codes", "c.json"], "--codes: the meta device computes no codes"),
        (["trace", "--device", "meta", "--impl", "transformers"], "--device meta: transformers' talker reads values"),
        (["trace", "code2wav", "--speaker", "ethan2"], "--speaker: only for `trace talker`, not for `trace code2wav`"),
        (
            ["trace", "--preset", "tiny", "some.module:f"],
            "--preset: only for `trace talker` and `trace code2wav`, not for",
        ),
        (
            ["trace", "--codes", "c.json", "some.module:f"],
            "--codes: only for `trace talker` and `trace code2wav`, not for",
        ),
        (
            ["trace", "--frames", "8", "some.module:f"],
            "--frames: only for `trace talker` and `trace code2wav`, not for",
        ),
        (
            ["trace", "call", "--device", "cpu", "some.module:f"],
            "--device: only for `trace talker` and `trace code2wav`",
        ),
        (["trace", "--preset", "tiny", "--checkpoint", "folder"], "--preset: --checkpoint says which weights they are"),
        (["trace", "--peaks", "missing.json"], "missing.json: No such file or directory"),
        (["trace", "--peaks", "text.txt"], "text.txt: holds no peaks; make them with `talkerviz doctor --measure"),
        (["doctor", "-o", "p.json"], "-o: nothing to write without --measure"),
        (["doctor", "--measure", "--device", "meta"], "--device meta: it computes no values"),
        (["show", "missing.parquet"], "missing.parquet: no such file"),
        (["tree", "cut.parquet"], "cut.parquet: a trace that is cut short or damaged"),
        (["render", "text.txt", "-f", "svg"], "text.txt: not a talkerviz"),
        (["render", "good.parquet", "-f", "gif"], "unknown format 'gif'"),
        (["render", "good.parquet", "-f", "svg", "--style", "source"], "style source is Mermaid only"),
        (["render", "good.parquet", "-f", "svg", "--by", "module"], "--by: only tables have it (markdown, latex, html"),
        (["render", "good.parquet", "-f", "mermaid", "--top", "3"], "--top: only tables have it"),
        (["render", "good.parquet", "-f", "perfetto", "--sort", "self"], "--sort: only tables have it"),
        (["render", "good.parquet", "-f", "csv", "--style", "flat"], "--style: only charts have it (mermaid, dot, svg"),
        (["render", "good.parquet", "-f", "json", "--max-nodes", "3"], "--max-nodes: only charts have it"),
        (["render", "good.parquet", "-f", "csv", "--by", "x"], "Invalid value for '--by'"),
        (["render", "good.parquet", "-f", "csv", "--by", "call", "--across", "part"], "cannot group by 'call' side by"),
        (
            ["show", "good.parquet", "--phase", "decode", "--across", "phase"],
            "nothing to set side by side: the trace has",
        ),
        (["diff", "good.parquet", "good.parquet", "-f", "latex"], "unknown format 'latex': choose from"),
        (["render", "good.parquet", "-f", "svg", "--phase", "x"], "no phase 'x' in this trace: choose from setup"),
        (["render", "good.parquet", "-f", "svg", "--frame", "9"], "no frame 9 in this trace: it has frames 0 to 2"),
        (["render", "good.parquet", "-f", "svg", "--module", "x"], "no module that was called fits 'x'"),
        (["render", "good.parquet", "-f", "svg", "--open", "x"], "no module that was called fits 'x'"),
        (["render", "good.parquet", "-f", "svg", "--style", "flat", "--open", "*"], "--open: only --style nested has"),
        (["render", "good.parquet", "-f", "svg", "--style", "flat", "--no-fold"], "--no-fold: only --style nested has"),
        (["render", "good.parquet", "-f", "svg", "--pages"], "--pages: name a folder with -o"),
        (["render", "good.parquet", "-f", "svg", "--edges", "x"], "Invalid value for '--edges'"),
        (["diff", "good.parquet", "missing.parquet"], "missing.parquet: no such file"),
        (["diff", "good.parquet", "good.parquet", "-f", "gif"], "unknown format 'gif'"),
        (["diff", "good.parquet", "good.parquet", "-o", "d.tex"], "-o d.tex: name the format with -f, one of markdown"),
        (
            ["diff", "good.parquet", "good.parquet", "--by", "frame"],
            "'--by': 'frame' is not one of 'pattern', 'module'",
        ),
        (["render", "good.parquet"], "talkerviz: name the format with -f, one of mermaid, dot, svg"),
        (
            ["render", "good.parquet", "-o", "r.json"],
            "-o r.json: name the format with -f, one of model-explorer, json, perfetto, speedscope, tensorboard",
        ),
        (["render", "good.parquet", "-o", "r.txt"], "-o r.txt: name the format with -f, one of mermaid"),
        (["trace", "model.py:unet"], "; write model:unet, without .py"),
        (["nosuch"], "No such command"),
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--clock", "cuda"], "clock 'cuda' needs a model on a CUDA device"),
        (["--busy"], "--busy: torch sees no CUDA device"),
        (["--memory"], "--memory: torch sees no CUDA device"),
        (["--device", "cuda"], "--device cuda: torch sees no CUDA device"),
    ],
)
def test_without_a_gpu(
    option: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert talkerviz(monkeypatch, "trace", "--preset", "tiny", *option) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_fewer_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.parquet"
    some = (
        "--include",
        "*.layers.*",
        "--include",
        "*.code_predictor*",
        "--exclude",
        "*.layers.1*",
        "--depth",
        4,
        "--no-flow",
    )
    assert talkerviz(monkeypatch, "trace", "--preset", "tiny", "--frames", 2, *some, "-o", path) == 0
    trace = Trace.load(path)
    assert all(".layers.1" not in found and found.count(".") <= 4 for found in trace.calls["path"])
    assert not trace.calls["path"].isin(["talker", "talker.model", "talker.codec_head"]).any()
    # Phases are right although the talker's own calls are not recorded.
    assert trace.phases == ["prefill", "predictor.prefill", "predictor.decode", "decode"]
    in_layers = trace.calls["path"].str.startswith("talker.model.layers.0")
    assert trace.calls[in_layers]["frame"].unique().tolist() == [0, 1]


def test_the_meta_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    paths = {}
    for device in ("cpu", "meta"):
        paths[device] = tmp_path / f"{device}.parquet"
        args = ("--preset", "tiny", "--frames", 2, "--device", device, "--no-flow", "-o", paths[device])
        assert talkerviz(monkeypatch, "trace", *args) == 0
    shown = capsys.readouterr().out
    assert "FLOP/byte" in shown
    real, shapes = (Trace.load(paths[device]).calls for device in ("cpu", "meta"))
    assert real["path"].tolist() == shapes["path"].tolist()
    without_device = [[t[:3] for t in tensors] for tensors in shapes["inputs"]]
    assert without_device == [[t[:3] for t in tensors] for tensors in real["inputs"]]
    assert shapes["host_ns"].isna().all()
    assert shapes["flops"].notna().all()


def test_which_ways_of_being_faster_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("talkerviz.doctor.check_compiler", lambda: None)
    assert dict(diagnose())["faster with"] == "--compile"
    monkeypatch.setattr("talkerviz.doctor.check_compiler", missing)
    assert dict(diagnose())["faster with"] == "nothing"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("talkerviz.doctor.check_kernels", lambda *_: None)
    assert dict(diagnose())["faster with"] == "--graphs, --fused"
    monkeypatch.setattr("talkerviz.doctor.check_kernels", missing)
    assert dict(diagnose())["faster with"] == "--graphs"


def test_cost_and_peaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    peaks, path = tmp_path / "peaks.json", tmp_path / "r.parquet"
    monkeypatch.setattr(
        "talkerviz.cli.doctor.measure_peaks", lambda device: Peaks("a test", {"float32": 2e11}, 5e10, "made up")
    )
    monkeypatch.setenv("COLUMNS", "240")
    assert talkerviz(monkeypatch, "doctor", "--measure", "-o", peaks) == 0
    shown = capsys.readouterr().out
    assert "200 GFLOP/s" in shown
    assert "50.0 GB/s" in shown
    args = ("--preset", "tiny", "--frames", 2, "--no-flow", "--cost", "--peaks", peaks, "-o", path)
    assert talkerviz(monkeypatch, "trace", *args) == 0
    shown = capsys.readouterr().out
    for column in ("FLOP", "bytes", "of peak", "bound", "Recording took"):
        assert column in shown
    trace = Trace.load(path)
    assert trace.calls[["host_ns", "flops", "bytes_read", "bytes_written"]].notna().all().all()
    assert trace.facts["peaks"] == {"device": "a test", "flops": 2e11, "bandwidth": 5e10, "source": "made up"}
    assert talkerviz(monkeypatch, "trace", "--preset", "tiny", "--dtype", "bfloat16", "--peaks", peaks) == 2
    assert "--peaks: no figure for bfloat16, only for float32" in capsys.readouterr().err


CHANGES_ITS_MIND = """
import torch
from torch import nn

def make():
    model, sizes = nn.Linear(4, 4), iter(range(1, 9))
    return model, lambda: model(torch.ones(next(sizes), 4))
"""


COUNTS = """
import torch
from torch import nn

class Turns(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other, self.turn = nn.Linear(4, 4), nn.ReLU(), 0

    def forward(self, x):
        self.turn += 1
        return self.other(self.one(x)) if self.turn % 2 else self.one(x)

def make():
    model = Turns()
    return model, lambda: model(torch.ones(1, 4))
"""


def test_flow_of_a_run_that_takes_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    Path("turns.py").write_text(COUNTS)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert talkerviz(monkeypatch, "trace", "turns:make") == 0
    assert capsys.readouterr().err == (
        "talkerviz: --flow: the second run made 2 calls, the first 3: what is run must do the same each time that it "
        "is called; what it measured is left out, and --no-flow saves the run\n"
    )


def test_cost_of_a_run_that_is_never_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    Path("changing.py").write_text(CHANGES_ITS_MIND)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert talkerviz(monkeypatch, "trace", "--cost", "changing:make") == 0
    said = capsys.readouterr().err
    assert "--cost: the second run differs at call 0, model, in its inputs: what is run must do the same each" in said
    assert "--flow" not in said
    calls = Trace.load("run.parquet").calls
    assert calls["flops"].isna().all()
    assert calls["host_ns"].notna().all()


@pytest.mark.parametrize(("args", "message"), bad_inputs())
def test_bad_input_is_one_line(
    args: list[str], message: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    data = tiny.read_bytes()
    Path("good.parquet").write_bytes(data)
    Path("cut.parquet").write_bytes(data[: len(data) // 2])
    Path("text.txt").write_text("hello, I am not a trace\n")
    Path("folder").mkdir()
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

def missing():
    return {}["weights"]

def another():
    return nn.Linear(4, 4), lambda: nn.ReLU()(torch.ones(2))
"""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        ("KeyboardInterrupt", 130, "are kept"),
        ('RuntimeError("no\\nluck")', 2, "RuntimeError: no luck (model_that_stops_2.py:7); 3 calls are kept"),
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
    assert "must return (model, callable): it returned an int" in capsys.readouterr().err
    assert talkerviz(monkeypatch, "trace", f"{name}:missing") == 2
    assert f"the function raised KeyError: 'weights' ({name}.py:17)" in capsys.readouterr().err
    assert talkerviz(monkeypatch, "trace", f"{name}:another") == 0
    said = capsys.readouterr()
    assert said.err == (
        "talkerviz: no call of the model was seen: it was not run, or in a function that is compiled as a whole\n"
    )
    assert said.out == "0 calls -> run.parquet\n"
    Path(f"unsound{code}.py").write_text("x = 1 +\n")
    assert talkerviz(monkeypatch, "trace", f"unsound{code}:make") == 2
    assert f"importing unsound{code} raised SyntaxError" in capsys.readouterr().err


def test_to_stdout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert talkerviz(monkeypatch, "trace", "--preset", "tiny", "--frames", 1, "--clock", "none", "-o", "-") == 0
    (tmp_path / "r.parquet").write_bytes(capfdbinary.readouterr().out)
    trace = Trace.load(tmp_path / "r.parquet")
    assert trace.calls["host_ns"].isna().all()
    assert trace.facts["command"].endswith("-o -")
