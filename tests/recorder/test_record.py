"""The recorder: what it sees, and that it leaves nothing behind."""

from __future__ import annotations

import copy
import resource
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import talkerviz as tv
from talkerviz.recorder import recording as recorder
from talkerviz.recorder.phases.talker import TalkerPhases
from talkerviz.trace.log_tables import log_tables


class Nested(nn.Module):
    """Takes and returns tensors in every kind of container."""

    def forward(self, first, *, pair, named):
        return Output(first, {"inner": [named["b"], None]}), pair[0]


@dataclass
class Output:
    bare: torch.Tensor
    named: dict


class Recursive(nn.Module):
    def __init__(self):
        super().__init__()
        self.leaf = nn.Identity()

    def forward(self, x, level):
        return self(x, level - 1) if level else self.leaf(x)


class Failing(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.before = nn.Identity()
        self.error = error

    def forward(self, x):
        self.before(x)
        raise self.error


def state(model: nn.Module) -> dict[str, dict]:
    return {
        path: {name: list(value) if "hooks" in name else id(value) for name, value in vars(module).items()}
        for path, module in model.named_modules()
    }


def shapes(tensors) -> list[tuple[str, tuple[int, ...]]]:
    return [(tensor.name, tensor.shape) for tensor in tensors]


def test_every_call_with_parent_depth_and_shapes():
    model = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU()))
    trace = tv.record(model, lambda: [model(torch.zeros(rows, 4)) for rows in (2, 5)])
    calls = trace.calls
    assert calls["path"].tolist() == ["model", "model.0", "model.1", "model.1.0"] * 2
    assert calls["class"].tolist() == ["Sequential", "Linear", "Sequential", "ReLU"] * 2
    assert calls["depth"].tolist() == [0, 1, 1, 2] * 2
    assert calls["parent"].fillna(-1).tolist() == [-1, 0, 0, 2, -1, 4, 4, 6]
    assert calls["frame"].tolist() == [0] * 4 + [1] * 4
    assert shapes(calls["inputs"][1]) == [("0", (2, 4))]
    assert shapes(calls["outputs"][5]) == [("output", (5, 3))]
    assert calls["inputs"][1][0].dtype == "float32"
    assert calls["inputs"][1][0].device == "cpu"


def test_times_nest():
    model = nn.Sequential(nn.Linear(64, 64), nn.Sequential(nn.ReLU(), nn.Tanh()))
    calls = tv.record(model, lambda: [model(torch.zeros(8, 64)) for _ in range(3)]).calls
    ends = calls["host_start_ns"] + calls["host_ns"]
    for row in calls[calls["parent"].notna()].itertuples():
        assert calls["host_start_ns"][row.parent] <= row.host_start_ns
        assert row.host_start_ns + row.host_ns <= ends[row.parent]
    for call in calls["call"]:
        children = calls.loc[(calls["parent"] == call).fillna(False), "host_ns"].sum()
        assert calls["host_self_ns"][call] == calls["host_ns"][call] - children
    assert calls["host_self_ns"].sum() == calls.loc[calls["depth"] == 0, "host_ns"].sum()


def test_without_a_clock_times_are_empty():
    model = nn.ReLU()
    calls = tv.record(model, lambda: model(torch.zeros(2)), clock="none").calls
    assert calls[["host_start_ns", "host_ns", "host_self_ns"]].isna().all().all()
    assert shapes(calls["inputs"][0]) == [("0", (2,))]


def test_unknown_clock():
    with pytest.raises(
        ValueError, match="unknown clock 'sundial': choose from cpu, cuda, cuda-all, device, device-all, none"
    ):
        tv.record(nn.ReLU(), lambda: None, clock="sundial")


def test_nested_and_keyword_tensors():
    model = Nested()
    tensors = [torch.zeros(size) for size in (1, 2, 3, 4)]
    run = lambda: model(tensors[0], pair=(tensors[1], [tensors[2]]), named={"b": tensors[3], "n": 7})  # noqa: E731
    trace = tv.record(model, run)
    expected = [("0", (1,)), ("pair.0", (2,)), ("pair.1.0", (3,)), ("named.b", (4,))]
    assert shapes(trace.calls["inputs"][0]) == expected
    assert shapes(trace.calls["outputs"][0]) == [("0.bare", (1,)), ("0.named.inner.0", (4,)), ("1", (2,))]


def test_caches_are_seen():
    from transformers import DynamicCache

    class Attention(nn.Module):
        def forward(self, x, past_key_values):
            past_key_values.update(x, x, 0)
            return x

    model, cache = Attention(), DynamicCache()
    run = lambda: [model(torch.zeros(1, 2, tokens, 4), past_key_values=cache) for tokens in (3, 1)]  # noqa: E731
    calls = tv.record(model, run).calls
    assert shapes(calls["inputs"][0]) == [("0", (1, 2, 3, 4))]
    assert (1, 2, 3, 4) in [shape for name, shape in shapes(calls["inputs"][1]) if name.startswith("past_key")]


def test_recursion_and_shared_modules():
    model = Recursive()
    model.alias = model.leaf
    trace = tv.record(model, lambda: (model(torch.zeros(1), 2), model.alias(torch.zeros(1))))
    assert trace.calls["path"].tolist() == ["model", "model", "model", "model.leaf", "model.leaf"]
    assert trace.calls["depth"].tolist() == [0, 1, 2, 3, 0]
    assert {module.path: module.aliases for module in trace.modules} == {
        "model": (),
        "model.leaf": ("model.alias",),
    }


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_what_raises_is_recorded_and_everything_undone(error):
    model = nn.Sequential(nn.ReLU(), Failing(error))
    before = state(model)
    with pytest.raises(type(error)), tv.recording(model) as rec:
        model(torch.zeros(2))
    assert state(model) == before
    assert rec.trace.calls["path"].tolist() == ["model", "model.0", "model.1", "model.1.before"]
    name = type(error).__name__
    assert rec.trace.calls["error"].fillna("").tolist() == [name, "", name, ""]


def test_tracing_changes_nothing():
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))
    own = model[1].forward
    model[1].forward = lambda x: own(x) * 2  # as accelerate and others do
    model[0].register_forward_hook(lambda module, args, output: output + 1)
    x = torch.randn(3, 4)
    expected, before = model(x), state(model)
    for _ in range(2):
        with tv.recording(model) as rec:
            assert torch.equal(model(x), expected)
        assert state(model) == before
        assert len(rec.trace.calls) == 4
    assert torch.equal(copy.deepcopy(model)(x), expected)


def test_scripted_and_compiled_modules_are_one_call():
    scripted = torch.jit.script(nn.Sequential(nn.ReLU(), nn.Tanh()))
    model = nn.Sequential(scripted, torch.compile(nn.Sequential(nn.ReLU(), nn.Tanh()), backend="eager"), nn.ReLU())
    before = state(model)
    trace = tv.record(model, lambda: model(torch.ones(2)))
    assert trace.calls["path"].tolist() == ["model", "model.0", "model.1", "model.2"]
    assert shapes(trace.calls["outputs"][1]) == [("output", (2,))]
    assert state(model) == before


def test_each_thread_has_its_own_stack():
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.ReLU()))

    def run():
        threads = [threading.Thread(target=lambda: [model(torch.zeros(1, 8)) for _ in range(50)]) for _ in range(3)]
        for thread in threads[:2]:
            thread.start()
        for thread in threads[:2]:
            thread.join()
        # Alone, so that it may be given the number of a thread that has ended.
        threads[2].start()
        threads[2].join()

    calls = tv.record(model, run).calls
    assert calls["call"].tolist() == list(range(600))
    assert calls["host_start_ns"].is_monotonic_increasing
    assert sorted(calls["thread"].unique()) == [1, 2, 3]  # 0 is the one that records
    nested = calls[calls["parent"].notna()]
    parents = calls.loc[nested["parent"].to_numpy(dtype=int)]
    assert (parents["thread"].to_numpy() == nested["thread"].to_numpy()).all()
    assert (parents["depth"].to_numpy() + 1 == nested["depth"].to_numpy()).all()


def test_no_calls_at_all():
    trace = tv.record(nn.ReLU(), lambda: None)
    assert len(trace.calls) == 0
    assert [module.path for module in trace.modules] == ["model"]


def test_backward_through_a_traced_model():
    model = nn.Linear(3, 1)
    with tv.recording(model):
        model(torch.ones(2, 3)).sum().backward()
    assert model.weight.grad.tolist() == [[2.0, 2.0, 2.0]]


def test_talker_phases():
    phases = TalkerPhases("t")
    two, one = {"inputs_embeds": torch.zeros(1, 2, 4)}, {"inputs_embeds": torch.zeros(1, 1, 4)}
    seen = [phases.start]
    for frame in range(2):
        seen += [phases.entered("t", two if frame == 0 else one), phases.left("t")]
        for step in range(3):
            seen += [phases.entered("t.code_predictor", {} if step else two), phases.left("t.code_predictor")]
    expected = [("setup", None, None)]
    for frame, phase in enumerate(("prefill", "decode")):
        expected += [(phase, frame, None), ("predictor.prefill", frame, 0)]
        expected += [
            ("predictor.prefill", frame, 0),
            ("predictor.decode", frame, 1),
            ("predictor.decode", frame, 2),
        ]
    assert [tuple(mark[:3]) for mark in seen if mark] == expected


def test_in_a_file_and_in_memory_are_the_same(tmp_path, monkeypatch):
    model = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU()))
    run = lambda: [model(torch.zeros(rows, 4)) for rows in range(1, 40)]  # noqa: E731
    monkeypatch.setattr(log_tables, "__defaults__", (25,))
    monkeypatch.setattr(recorder, "_BATCH", 7)
    in_file = tv.record(model, run, clock="none", file=tmp_path / "run.parquet")
    in_memory = tv.record(model, run, clock="none")
    assert in_file.calls.equals(in_memory.calls)
    assert in_file.modules == in_memory.modules


def test_how_much_memory_was_held() -> None:
    model = nn.Linear(1024, 1024)
    facts = tv.record(model, lambda: model(torch.zeros(1, 1024))).facts
    assert facts["weights_bytes"] == 4 * 1024 * 1025
    # At most, since it began: no less than now.
    now = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    assert facts["weights_bytes"] < 0.9 * now < facts["host_peak_bytes"] < 100 * now
    assert "host_peak_bytes" not in tv.record(model, lambda: None, clock="none").facts
