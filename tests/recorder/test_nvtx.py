"""NVTX ranges: one for each call and frame, by our names, closed whatever happens. No device, hence a stand-in."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import talkerviz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis_examples import examples
from repo_paths import HELPERS
from taps import tap_alone
from torch import nn
from torch._dynamo.utils import counters

import talkerviz as tv
from talkerviz.api import Trace
from talkerviz.recorder.instruments import nvtx
from talkerviz.recorder.instruments.nvtx import Nvtx, load_nvtx


class Marker:
    """Keeps what is marked, and refuses what does not nest.

    Attributes:
        nested: by thread, the depth and the name of each nested range, in the order in which they began.
        frames: the names of the other ranges, in the order in which they began.
    """

    def __init__(self) -> None:
        self.nested: dict[int, list[tuple[int, str]]] = defaultdict(list)
        self.frames: list[str] = []
        self._depth: dict[int, int] = defaultdict(int)
        self._going_on: set[int] = set()
        self.functions = Nvtx(self.push, self.pop, self.start, self.end)
        for function in (self.push, self.pop):
            torch._dynamo.eval_frame.skip_code(function.__code__)  # as Dynamo does with all that is torch's own

    def push(self, name: str) -> None:
        thread = threading.get_ident()
        self.nested[thread].append((self._depth[thread], name))
        self._depth[thread] += 1

    def pop(self) -> None:
        assert self._depth[threading.get_ident()] > 0
        self._depth[threading.get_ident()] -= 1

    def start(self, name: str) -> int:
        assert not self._going_on, "a frame begins in another"
        self.frames.append(name)
        self._going_on.add(len(self.frames))
        return len(self.frames)

    def end(self, number: int) -> None:
        self._going_on.remove(number)

    @property
    def open(self) -> int:
        return sum(self._depth.values()) + len(self._going_on)

    @property
    def here(self) -> list[tuple[int, str]]:
        return self.nested[threading.get_ident()]


@pytest.fixture
def marker(monkeypatch: pytest.MonkeyPatch) -> Marker:
    found = Marker()
    monkeypatch.setattr(nvtx, "load_nvtx", lambda: found.functions)
    return found


def named(trace: Trace) -> list[tuple[int, str]]:
    rows = trace.calls[["depth", "path", "phase"]].itertuples(index=False, name=None)
    return [(depth, f"{path} [{phase}]") for depth, path, phase in rows]


@tap_alone
def test_the_talker(
    any_tap: str,
    marker: Marker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each call of the runs that are recorded, and of no other: not of the warm-up, nor of the one for the flow."""
    path = tmp_path / "run.parquet"
    args = ("--preset", "tiny", "--frames", 2, "--warmup", 1, "--repeat", 2, "--nvtx")
    assert talkerviz(monkeypatch, "trace", *args, "-o", path) == 0
    trace = Trace.load(path)
    assert trace.flow is not None
    assert list(marker.nested) == [threading.get_ident()]
    assert marker.here == named(trace)
    assert (0, "talker [decode]") in marker.here
    assert (1, "talker.model [prefill]") in marker.here
    assert marker.frames == [f"frame {n}{run}" for run in ("", " of run 1") for n in range(2)]
    assert marker.open == 0


class Acting(nn.Module):
    """Calls its children so often, and raises in the end if it is to; the one that calls it may catch that."""

    def __init__(self, children: list[Acting], times: int, raises: type[BaseException] | None, catches: bool) -> None:
        super().__init__()
        self.inner = nn.ModuleList(children)
        self.times, self.raises, self.catches = times, raises, catches

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            for child in self.inner:
                with contextlib.suppress(*([BaseException] if self.catches else [])):
                    x = child(x)
        if self.raises is not None:
            raise self.raises
        return x


models = st.recursive(
    st.builds(Acting, st.just([]), st.just(0), st.sampled_from([None, ValueError, KeyboardInterrupt]), st.just(True)),
    lambda inner: st.builds(
        Acting,
        st.lists(inner, max_size=3),
        st.integers(0, 2),
        st.sampled_from([None, None, None, ArithmeticError, SystemExit]),
        st.booleans(),
    ),
    max_leaves=8,
)  # fmt: skip


@tap_alone
@settings(deadline=None, max_examples=examples(30), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=models, times=st.integers(1, 3))
def test_ranges_are_closed_whatever_raises(any_tap: str, model: Acting, times: int) -> None:
    marker = Marker()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvtx, "load_nvtx", lambda: marker.functions)
        with tv.recording(model, nvtx=True) as rec:
            for _ in range(times):
                with contextlib.suppress(BaseException):
                    model(torch.zeros(1))
                assert marker.open == 1  # the frame
    assert marker.open == 0
    assert marker.here == named(rec.trace)
    assert marker.frames == [f"frame {frame}" for frame in range(times)]


def test_only_what_is_recorded(marker: Marker) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()))
    other = nn.ReLU()
    tv.record(model, lambda: model(other(torch.zeros(1, 2))), exclude=["model.1*"], nvtx=True)
    assert marker.here == [(0, "model [forward]"), (1, "model.0 [forward]")]


def test_nothing_without_being_asked(marker: Marker) -> None:
    model = nn.ReLU()
    tv.record(model, lambda: model(torch.zeros(1)))
    assert not marker.nested
    assert not marker.frames


def test_threads_and_replicas(marker: Marker) -> None:
    model = nn.Sequential(nn.ReLU(), nn.Tanh())

    def work() -> None:
        replica = model._replicate_for_data_parallel()
        for name, child in model.named_children():
            setattr(replica, name, child._replicate_for_data_parallel())
        replica(torch.zeros(1))

    def run() -> None:
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    tv.record(model, run, nvtx=True)
    found = [row for rows in marker.nested.values() for row in rows]
    once = [(0, "model [forward]"), (1, "model.0 [forward]"), (1, "model.1 [forward]")]
    assert sorted(found) == sorted(once * 3)
    assert all(rows[:3] == once for rows in marker.nested.values())
    assert marker.open == 0


def test_phases_that_threads_name(marker: Marker) -> None:
    model = nn.Sequential(nn.ReLU(), nn.Tanh())
    together = threading.Barrier(2)

    def work(phase: str) -> None:
        for _ in range(2):
            with rec.phase(phase):
                together.wait(timeout=180)
                model(torch.zeros(1))
                together.wait(timeout=180)

    with tv.recording(model, nvtx=True) as rec:
        model(torch.zeros(1))
        threads = [threading.Thread(target=work, args=(phase,)) for phase in ("mine", "yours")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    calls = rec.trace.calls
    expected = [
        named(replace(rec.trace, calls=calls[calls["thread"] == thread])) for thread in calls["thread"].unique()
    ]
    assert sorted(expected) == sorted(marker.nested.values())
    assert {name.partition("[")[2] for rows in expected for _, name in rows} == {"forward]", "mine]", "yours]"}


def test_a_call_kept_from_the_recording_marks_nothing(marker: Marker) -> None:
    model = nn.ReLU()
    with tv.recording(model, nvtx=True):
        kept = model.__call__
        kept(torch.zeros(1))
    kept(torch.zeros(1))
    assert len(marker.here) == 1


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.second(x)


def compiled_work(recorded: bool, inside: bool) -> list[Any]:
    """Return Dynamo's counters for a model with a compiled block, with a recording or without."""
    torch._dynamo.reset()
    counters.clear()
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    block = Block()
    model = nn.Sequential(block, nn.Tanh())
    if not inside:
        block.compile(backend=backend)
        model(torch.zeros(2, 4))
    with tv.recording(model, nvtx=True) if recorded else nullcontext():
        if inside:
            block.compile(backend=backend)
        for rows in (2, 3, 2):
            model(torch.zeros(rows, 4))
    model(torch.zeros(2, 4))
    return [len(graphs), *(dict(counters[name]) for name in ("stats", "frames", "graph_break"))]


@tap_alone
@pytest.mark.parametrize("inside", [False, True])
def test_what_is_compiled_stays_so(any_tap: str, inside: bool, marker: Marker) -> None:
    try:
        graphs, *work = compiled_work(False, inside)
        assert graphs > 0
        assert compiled_work(True, inside) == [graphs, *work]
    finally:
        torch._dynamo.reset()
    # As in the trace: what runs in a graph is no call.
    assert marker.here == [(0, "model [forward]"), (1, "model.0 [forward]"), (1, "model.1 [forward]")] * 3


def test_torch_s_own_where_it_has_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    own = torch.cuda.nvtx
    assert load_nvtx() == Nvtx(own.range_push, own.range_pop, own.range_start, own.range_end)


SCRIPT = """
import torch
from torch import nn
import talkerviz as tv

class Failing(nn.Module):
    def forward(self, x):
        raise ValueError

torch.version.cuda = torch.version.hip = None
model = nn.Sequential(nn.ReLU(), Failing())
with tv.recording(model, "Модель", nvtx=True):
    for _ in range(2):
        try:
            model(torch.zeros(1))
        except ValueError:
            pass
"""


@pytest.mark.skipif(importlib.util.find_spec("nvtx") is None, reason="needs the nvtx package")
@pytest.mark.skipif(shutil.which("cc") is None or sys.platform != "linux", reason="needs a C compiler on Linux")
def test_what_a_tool_sees(tmp_path: Path) -> None:
    """The real library, with a tool in it as Nsight Systems is one."""
    tool, out = tmp_path / "tool.so", tmp_path / "out"
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", tool, HELPERS / "nvtx_tool.c"], check=True)
    found = {**os.environ, "NVTX_INJECTION64_PATH": str(tool), "NVTX_TOOL_OUT": str(out)}
    subprocess.run([sys.executable, "-c", SCRIPT], env=found, check=True)
    call = ["push Модель [forward]", "push Модель.0 [forward]", "pop", "push Модель.1 [forward]", "pop", "pop"]
    assert out.read_text(encoding="utf-8").splitlines() == [
        "start frame 0",
        *call,
        "end",
        "start frame 1",
        *call,
        "end",
    ]


def test_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setitem(sys.modules, "nvtx", None)
    before = nn.Module.__call__
    assert talkerviz(monkeypatch, "trace", "--preset", "tiny", "--nvtx", "-o", tmp_path / "run.parquet") == 2
    assert "nvtx: this torch is built without CUDA; pip install 'talkerviz[nvtx]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert nn.Module.__call__ is before
