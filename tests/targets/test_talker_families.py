"""Talkers of other families: each with the frames, passes and phases that one counts by hand."""

from __future__ import annotations

import functools
import typing
from pathlib import Path

import pandas as pd
import pytest
import torch
from command_line import Capture, talkerviz
from torch import nn

import talkerviz as tv

pytest.importorskip("transformers")

from talkerviz.targets import FAMILIES, Speech, family_target
from talkerviz.targets.families.target import build_preset

FRAMES = 3


@functools.cache
def on_meta(name: str, preset: str) -> nn.Module:
    return build_preset(FAMILIES[name], preset, "meta", torch.float32)


def calls_of(name: str) -> pd.DataFrame:
    target = family_target(FAMILIES[name], "tiny", "cpu", None, Speech(7, FRAMES))
    with tv.recording(target.model, target.name, clock="none", facts=target.facts) as rec:
        target.run(lambda done: None)
    return rec.trace.calls


def passes(calls: pd.DataFrame, *paths: str) -> dict[str, list[tuple[int, int]]]:
    """Return, for each phase in which calls of some modules begin, their frames and how many calls each has."""
    chosen = calls[calls["path"].isin([f"model.{path}" for path in paths])]
    counts = chosen.groupby(["phase", "frame"], observed=True, sort=False).size()
    return {
        str(phase): [(int(frame), int(count)) for (_, frame), count in rows.items()]
        for phase, rows in counts.groupby(level=0, observed=True, sort=False)
    }


def phases(calls: pd.DataFrame) -> list[str]:
    return [*calls["phase"].drop_duplicates()]


def test_csm_has_a_backbone_pass_and_31_depth_passes_a_frame() -> None:
    calls = calls_of("csm")
    assert passes(calls, "backbone_model") == {"prefill": [(0, 1)], "decode": [(1, 1), (2, 1)]}
    each = [(0, 1), (1, 1), (2, 1)]
    assert passes(calls, "depth_decoder") == {
        "depth_decoder.prefill": each,
        "depth_decoder.decode": [(frame, 30) for frame, _ in each],
    }
    # Mimi decodes once, after the frames.
    codec = calls[calls["path"].str.startswith("model.codec_model")]
    assert set(codec["phase"]) == {"codec"}
    assert codec["frame"].isna().all()


def test_dia_has_a_pass_a_frame_and_fifteen_more_for_the_delayed_codes() -> None:
    calls = calls_of("dia")
    assert phases(calls) == ["encode", "prefill", "decode", "codec"]
    decoder = passes(calls, "talker.model.decoder")
    assert decoder["prefill"] == [(0, 1)]
    assert decoder["decode"] == [(frame, 1) for frame in range(1, FRAMES + 15)]


def test_moshi_has_a_pass_and_eight_depth_passes_a_frame() -> None:
    calls = calls_of("moshi")
    assert passes(calls, "decoder.model") == {"prefill": [(0, 1)], "decode": [(1, 1), (2, 1)]}
    depth = passes(calls, "depth_decoder")
    assert depth == {
        "depth_decoder.prefill": [(0, 1), (1, 1), (2, 1)],
        "depth_decoder.decode": [(0, 7), (1, 7), (2, 7)],
    }
    # The silence of the user is encoded before, the speech decoded after.
    mimi = calls[calls["path"].str.startswith("model.audio_encoder")]
    assert [*mimi["phase"].drop_duplicates()] == ["encode", "codec"]


def test_the_talker_of_qwen2_5_omni_has_a_pass_a_frame_and_token2wav_none() -> None:
    calls = calls_of("qwen2.5-omni")
    assert phases(calls) == ["prefill", "decode", "codec"]
    assert passes(calls, "talker.model") == {"prefill": [(0, 1)], "decode": [(1, 1), (2, 1)]}
    token2wav = calls[calls["path"].str.startswith("model.token2wav")]
    assert token2wav["frame"].isna().all()
    assert (token2wav["path"] == "model.token2wav").sum() == 1


def test_bark_has_passes_of_three_models_one_after_the_other() -> None:
    calls = calls_of("bark")
    # 3 frames at 75 Hz are 2 semantic tokens at 49.9 Hz, and two codes of each are from a coarse pass of its own.
    assert passes(calls, "semantic") == {"semantic.prefill": [(0, 1)], "semantic.decode": [(1, 1)]}
    coarse = passes(calls, "coarse_acoustics")
    assert coarse == {"coarse_acoustics.prefill": [(2, 1)], "coarse_acoustics.decode": [(i, 1) for i in range(3, 8)]}
    # The fine model calls its `forward`: six passes, one for each of the other codes.
    fine = passes(calls, "fine_acoustics.layers.0")
    assert fine == {"fine_acoustics.forward": [(frame, 1) for frame in range(8, 14)]}
    assert phases(calls)[-1] == "codec"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_published_size_is_that_of_its_checkpoint(name: str) -> None:
    # Parameters of the talker in millions, without the codec, as model cards and papers give them.
    published = {
        "csm": 1_550,  # Llama 1B as the backbone, the 100M decoder, and 260M of text embeddings
        "dia": 1_610,
        "moshi": 7_690,
        "qwen2.5-omni": 1_350,
        "bark": 1_090,  # three models of 300M, two of them with large vocabularies
    }
    family = FAMILIES[name]
    model = on_meta(name, "full")
    codec = sum(parameter.numel() for parameter in model.get_submodule(family.codec_path).parameters())
    talker = sum(parameter.numel() for parameter in model.parameters()) - codec
    assert talker / 1e6 == pytest.approx(published[name], rel=0.01)


@pytest.mark.parametrize("name", FAMILIES)
def test_presets_of_a_family_have_the_same_modules_but_for_the_number_of_layers(name: str) -> None:
    def paths(preset: str) -> set[str]:
        return {path for path, _ in on_meta(name, preset).named_modules()}

    assert paths("lite") == paths("full")
    assert paths("tiny") <= paths("full")


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_family_names_is_in_its_model(name: str) -> None:
    family = FAMILIES[name]
    paths = {path for path, _ in on_meta(name, "tiny").named_modules()}
    assert {family.codec_path, *family.passes} <= paths


def test_the_command_line_names_every_family() -> None:
    from talkerviz.cli.trace import FamilyName

    assert typing.get_args(FamilyName) == ("qwen3-omni", *FAMILIES)


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    output = tmp_path / "moshi.parquet"
    family = ("--family", "moshi", "--preset", "tiny", "--frames", 2, "--no-flow")
    assert talkerviz(monkeypatch, "trace", "talker", *family, "-o", output) == 0
    printed = capsys.readouterr().out
    assert "codec" in printed
    assert "real time" in printed
    facts = tv.Trace.load(output).facts
    assert facts["family"] == "moshi"
    assert facts["codes_a_frame"] == 8
    assert facts["frame_ns"] == 80_000_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--speaker", "ethan"], "--speaker: only for --family qwen3-omni, not csm; leave it out"),
        (["--impl", "transformers"], "--impl: only for --family qwen3-omni, not csm; leave it out"),
        (["--device", "meta"], "--device meta: only for --family qwen3-omni, not csm; leave it out"),
        (["--preset", "huge"], "unknown preset 'huge': choose from tiny, lite, full"),
    ],
)
def test_options_of_qwen3_omni_alone_are_refused(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    output = tmp_path / "run.parquet"
    assert talkerviz(monkeypatch, "trace", "talker", "--family", "csm", *options, "-o", output) == 2
    assert message in capsys.readouterr().err


def test_a_checkpoint_is_loaded_and_gives_the_same_calls(tmp_path: Path) -> None:
    family = FAMILIES["csm"]
    build_preset(family, "tiny", "cpu", None).save_pretrained(tmp_path)
    target = family_target(family, tmp_path, "cpu", None, Speech(7, 1))
    assert target.facts["weights"] == "safetensors"
    assert "weights_note" not in target.facts
    with tv.recording(target.model, target.name, clock="none") as rec:
        target.run(lambda done: None)
    assert (rec.trace.calls["path"] == "model.depth_decoder").sum() == 31


def test_a_checkpoint_of_another_family_or_without_safetensors_is_refused(tmp_path: Path) -> None:
    build_preset(FAMILIES["csm"], "tiny", "meta", None).config.save_pretrained(tmp_path)
    speech = Speech(7, 1)
    with pytest.raises(ValueError, match="is a 'csm', not a 'moshi'"):
        family_target(FAMILIES["moshi"], tmp_path, "cpu", None, speech)
    with pytest.raises(ValueError, match="has no safetensors"):
        family_target(FAMILIES["csm"], tmp_path, "cpu", None, speech)
    with pytest.raises(ValueError, match="dia is put together from"):
        family_target(FAMILIES["dia"], tmp_path, "cpu", None, speech)
