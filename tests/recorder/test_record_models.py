"""Models and programs around a recording: every call is seen, and nothing changes."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from small_model import BLOCK, CALLS, Noticing, made, tree, values
from taps import every_way
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import talkerviz as tv
from talkerviz.recorder import recording as recorder
from talkerviz.recorder.phases.talker import TalkerPhases

pytestmark = [
    pytest.mark.usefixtures("nothing_is_left"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]


@every_way
def test_parents_are_the_nearest_recorded(any_tap: str) -> None:
    model, x = made(), values()
    expected = model(x)
    chosen: list[tuple[dict[str, Any], list[str]]] = [
        ({"include": ["model", "*.second.*"]}, ["", " block.second.0", " block.second.1"]),
        ({"include": ["*.block*"]}, [line[1:] for line in BLOCK]),
        ({"exclude": ["model", "*.second"]}, ["block", " block.first", " block.second.0", " block.second.1", "last"]),
        ({"depth": 1}, ["", " block", " last"]),
        ({"depth": 2, "include": ["*.second*", "model"], "exclude": ["*.0"]}, ["", " block.second"]),
    ]
    for options, lines in chosen:
        with tv.recording(model, **options) as rec:
            assert torch.equal(model(x), expected)
        assert tree(rec.trace) == lines
        assert len(rec.trace.modules) == len(CALLS)
    for options in ({"include": ["*.first", "*.third"]}, {"exclude": ["*.third"]}):
        with pytest.raises(ValueError, match=r"no module matches '\*\.third'"), tv.recording(model, **options):
            pytest.fail("the run must not begin")
    with pytest.raises(ValueError, match="no module is left"), tv.recording(model, exclude=["*"]):
        pytest.fail("the run must not begin")


@every_way
def test_phases_without_their_landmarks_calls(any_tap: str) -> None:
    model = made()
    model.code_predictor = nn.Identity()
    two, one = (torch.zeros(1, positions, 4) for positions in (2, 1))

    def run() -> None:
        for _ in range(2):
            model(two)
            for given in (two, one, one):
                model.code_predictor(given, inputs_embeds=given)
                model.last(given)

    model.code_predictor.forward = lambda x, inputs_embeds: x
    columns = ["path", "phase", "frame", "step"]
    whole_trace = tv.record(model, run, phases=TalkerPhases).calls
    part = tv.record(model, run, phases=TalkerPhases, exclude=["model", "*.code_predictor"]).calls
    left = whole_trace[~whole_trace["path"].isin(["model", "model.code_predictor"])]
    assert part[columns].astype(object).values.tolist() == left[columns].astype(object).values.tolist()
    assert part["phase"].unique().tolist() == ["prefill", "predictor.prefill", "predictor.decode", "decode"]


class Listening(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.heard.append(str(func))
        return func(*args, **(kwargs or {}))


@every_way
def test_modes_around(any_tap: str) -> None:
    model, x = made(), values()
    for around in (torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16), torch.device):
        with around("cpu") if around is torch.device else around():
            expected = model(x)
            with tv.recording(model) as rec:
                found = model(x)
        assert torch.equal(found, expected)
        assert found.is_inference() == expected.is_inference()
        assert tree(rec.trace) == CALLS
        assert rec.trace.calls["outputs"][2][0].dtype == str(expected.dtype).removeprefix("torch.")
    with torch.device("meta"):
        on_meta = made()
        calls = tv.record(on_meta, lambda: on_meta(torch.empty(3, 4))).calls
    assert {tensor.device for tensors in calls["outputs"] for tensor in tensors} == {"meta"}


@every_way
def test_dispatch_modes_see_the_model_alone(any_tap: str) -> None:
    model, x = made(), values()

    def heard(recorded: bool, outside: bool) -> tuple[list[str], Any]:
        listening, flops = Listening(), FlopCounterMode(display=False)
        with ExitStack() as stack:
            if recorded and outside:
                stack.enter_context(tv.recording(model))
            stack.enter_context(listening)
            stack.enter_context(flops)
            if recorded and not outside:
                stack.enter_context(tv.recording(model))
            model(x)
        return listening.heard, flops.flop_counts

    plain = heard(recorded=False, outside=False)
    assert len(plain[0]) > 3
    assert heard(recorded=True, outside=True) == plain
    assert heard(recorded=True, outside=False) == plain


@every_way
@pytest.mark.parametrize("leaves", [False, True], ids=["the child exits inside", "the child leaves the recording"])
@pytest.mark.parametrize("to_file", [False, True])
def test_a_fork_inside(
    any_tap: str,
    leaves: bool,
    to_file: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorder, "_BATCH", 8)
    model, x, parent = Noticing(), torch.zeros(1), os.getpid()
    lines = ["", " first", " second", "  second.0"]
    file = tmp_path / "run.parquet" if to_file else None
    try:
        with tv.recording(model, file=file) as rec:
            for _ in range(5):
                model(x)
            if (child := os.fork()) == 0:
                for _ in range(20):
                    model(x)
                if not leaves:
                    os._exit(0)
            else:
                assert os.waitpid(child, 0)[1] == 0
                for _ in range(5):
                    model(x)
    finally:
        if os.getpid() != parent:
            os._exit(0)
    assert tree(rec.trace) == lines * 10
    assert sorted(path.name for path in tmp_path.iterdir()) == (["run.parquet"] if to_file else [])


@pytest.mark.parametrize("measure", ["cost", "flow"])
def test_what_watches_operators_leaves_compiled_code_compiled(measure: str) -> None:
    block = nn.Sequential(nn.ReLU(), nn.Tanh())
    model = nn.Sequential(torch.compile(block, backend="eager"), nn.ReLU())
    run = torch.no_grad()(lambda: model(torch.ones(2)))
    for _ in range(2):
        # Inside a compiled block there are no calls.
        assert tv.record(model, run).calls["path"].tolist() == ["model", "model.0", "model.1"]
        tv.record(model, run, measure=measure)
