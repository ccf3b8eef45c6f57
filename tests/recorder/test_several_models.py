"""Recordings of several models, given by name or found as they are called."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from taps import every_way
from torch import nn

import talkerviz as tv

X = torch.ones(1, 4)


class Pipeline:
    """Object that holds models as attributes, as a diffusion pipeline does."""

    def __init__(self) -> None:
        self.text_encoder, self.unet, self.vae = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = self.text_encoder(x)
        for _ in range(3):
            x = self.unet(x)
        return self.vae(x)


def rows(trace: tv.Trace) -> list[tuple[str, str, int | None]]:
    calls = trace.calls
    frames = [None if frame != frame else int(frame) for frame in calls["frame"].astype(float)]
    return list(zip(calls["path"], calls["phase"], frames, strict=True))


OF_PIPELINE = [
    ("text_encoder", "text_encoder.forward", None),
    *[("unet", "unet.forward", frame) for frame in range(3)],
    ("vae", "vae.forward", None),
]


@every_way
def test_models_of_a_pipeline_are_found_by_their_attributes(any_tap: str) -> None:
    pipeline = Pipeline()
    with tv.recording() as rec:
        pipeline(X)
    assert rows(rec.trace) == OF_PIPELINE
    assert rec.trace.facts["root"] == "unet"
    assert rec.trace.facts["parameters"] == 60


@every_way
def test_models_given_by_name(any_tap: str) -> None:
    pipeline = Pipeline()
    models = {"text_encoder": pipeline.text_encoder, "unet": pipeline.unet, "vae": pipeline.vae}
    trace = tv.record(models, lambda: pipeline(X))
    assert rows(trace) == OF_PIPELINE
    twice = tv.record(models, lambda: pipeline(X), repeat=2)
    assert rows(twice) == OF_PIPELINE * 2
    assert twice.calls["run"].tolist() == [0] * 5 + [1] * 5
    counted = tv.record(models, lambda: pipeline(X), measure=("cost", "flow"))
    assert counted.calls["flops"].tolist() == [32] * 5
    assert counted.flow is not None


@every_way
def test_a_single_model_keeps_plain_phases(any_tap: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with tv.recording() as rec:
        net(X)
        net(X)
    assert rows(rec.trace) == [(path, "forward", frame) for frame in range(2) for path in ("net", "net.0", "net.1")]


@every_way
def test_a_part_called_by_a_method_of_its_module(any_tap: str) -> None:
    class Speech(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder, self.vocoder = nn.Linear(4, 4), nn.Linear(4, 4)

        def speak(self) -> None:
            for _ in range(4):
                self.decoder(X)
            self.vocoder(X)

    speech = Speech()
    with tv.recording() as rec:
        speech.speak()
    assert rows(rec.trace) == [
        *[("speech.decoder", "speech.decoder.forward", frame) for frame in range(4)],
        ("speech.vocoder", "speech.vocoder.forward", None),
    ]


@every_way
def test_names_of_models_in_lists_and_dicts_and_without_a_holder(any_tap: str) -> None:
    experts, by_name = [nn.Linear(4, 4)], {"left": nn.Linear(4, 4)}
    with tv.recording() as rec:
        experts[0](X)
        by_name["left"](X)
        nn.ReLU()(X)
    assert rec.trace.calls["path"].tolist() == ["experts_0", "left", "ReLU"]


def test_a_model_in_the_place_of_a_deleted_one_has_its_rows() -> None:
    with tv.recording(via="tap") as rec:
        for _ in range(3):
            net = nn.Linear(4, 4)
            net(X)
            del net
    assert rec.trace.calls["path"].tolist() == ["net"] * 3
    assert len(rec.trace.modules) == 1


def test_found_models_are_not_kept_alive() -> None:
    with tv.recording(via="tap"):
        net = nn.Sequential(nn.Linear(4, 4))
        net(X)
        alive = weakref.ref(net)
        del net
        gc.collect()
        assert alive() is None


def test_variables_of_functions_can_still_be_deleted() -> None:
    def program() -> weakref.ref[nn.Module]:
        first, other = nn.Linear(4, 4), nn.Linear(4, 4)
        first(X)
        alive = weakref.ref(other)
        del other
        return alive

    with tv.recording(via="tap"):
        assert program()() is None


@every_way
def test_modules_registered_in_the_run_join(any_tap: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4))
    with tv.recording() as rec:
        net(X)
        net.append(nn.ReLU())
        net(X)
    assert rec.trace.calls["path"].tolist() == ["net", "net.0", "net", "net.0", "net.1"]


def test_include_limits_the_models_that_are_found() -> None:
    pipeline = Pipeline()
    with tv.recording(include=["unet"]) as rec:
        pipeline(X)
    assert rec.trace.calls["path"].tolist() == ["unet"] * 3
    assert sorted(rec.passed_over) == ["text_encoder", "vae"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({}, "the mapping of models is empty"),
        ({"a.b": nn.ReLU()}, "model name 'a.b': give it a name without dots"),
        ({"a": 3}, "model 'a' must be a torch.nn.Module, not a int"),
    ],
)
def test_wrong_models(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tv.record(model, lambda: None)


def test_inputs_are_those_of_a_single_model() -> None:
    with pytest.raises(ValueError, match="run: inputs are those of a single model"):
        tv.record({"a": nn.ReLU(), "b": nn.ReLU()}, X)


@every_way
@pytest.mark.parametrize("several", [False, True])
def test_frames_and_phases_that_the_program_names(any_tap: str, several: bool) -> None:
    net, vocoder = nn.Linear(4, 4), nn.Linear(4, 4)
    models = {"net": net, "vocoder": vocoder}
    with tv.recording(models if several else net, "net", file=None) as rec:
        net(X)
        for expected in (1, 2):
            with rec.frame() as number:
                assert number == expected
                with rec.phase("data"):
                    pass
                net(X)
                net(X)
                vocoder(X)
        net(X)
    phase = "net.forward" if several else "forward"
    of_frame = [("data", "data"), ("net", phase), ("net", phase), *([("vocoder", "vocoder.forward")] * several)]
    assert rows(rec.trace) == [
        ("net", phase, 0),
        *[(path, name, frame) for frame in (1, 2) for path, name in of_frame],
        ("net", phase, None),
    ]
    assert "joined_modules" not in rec.trace.facts


def test_a_phase_without_calls_is_a_row_and_one_with_calls_is_none(tmp_path: Any) -> None:
    net = nn.Linear(4, 4)
    with tv.recording(net, file=tmp_path / "a.parquet") as rec:
        with rec.phase("load"), rec.phase("read"):
            pass
        with rec.phase("use"):
            net(X)
        with rec.phase("load"):
            pass
    assert rows(rec.trace) == [("read", "read", None), ("model", "use", 0), ("load", "load", 0)]
    assert tv.Trace.load(tmp_path / "a.parquet") == rec.trace
