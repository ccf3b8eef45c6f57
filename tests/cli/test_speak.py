"""`talkerviz speak` and `talkerviz trace code2wav`, end to end."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import wave
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import talkerviz
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_examples import examples
from tiny_omni import THINKER_WIDTH, save_tiny_omni
from torch import Tensor
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeCode2WavConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeCode2Wav

from talkerviz.api import Trace
from talkerviz.talker import ThinkerOutputs, assemble_prompt, build_talker, preset, scenario_inputs, stream
from talkerviz.talker.files.build import build_code2wav
from talkerviz.talker.files.codes_file import read_codes, write_codes
from talkerviz.talker.files.thinker_file import write_inputs
from talkerviz.talker.generation import streaming_audio as speech_module
from talkerviz.talker.generation.sampling import Sampling
from talkerviz.talker.generation.scenario import Scenario
from talkerviz.talker.generation.streaming_audio import SpeechProgress, stream_speech
from talkerviz.talker.model.code2wav_config import code2wav_config

Capture = pytest.CaptureFixture[str]


@cache
def code2wav() -> Any:
    return build_code2wav(code2wav_config("tiny"))


def samples_in(path: Path) -> np.ndarray:
    with wave.open(str(path)) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, 24000)
        return np.frombuffer(sound.readframes(sound.getnframes()), dtype="<i2")


@cache
def theirs() -> Any:
    """Return transformers' code2wav with the same weights."""
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "decoder_dim": 96}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "sliding_window": 8}
    model = Qwen3OmniMoeCode2Wav._from_config(Qwen3OmniMoeCode2WavConfig(**small, **heads)).eval()
    model.load_state_dict(code2wav().state_dict())
    return model


@torch.no_grad()
def as_samples(codes: Tensor, model: Any = None) -> np.ndarray:
    """Decode codes in one pass of transformers' code2wav, in steps of a WAV."""
    sound = (model or theirs())(codes.T[None])
    return (sound[0, 0].float() * 32767).round().to(torch.int16).numpy()


def same_sound(samples: np.ndarray, expected: np.ndarray) -> bool:
    """Compare samples to one step, as sums of other shapes round elsewhere."""
    return samples.shape == expected.shape and bool((np.abs(samples.astype(int) - expected) <= 1).all())


def random_codes(frames: int) -> Tensor:
    return torch.randint(2048, (frames, 16), generator=torch.Generator().manual_seed(1))


def test_codes_become_one_pass_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    codes, wav = tmp_path / "codes.json", tmp_path / "speech.wav"
    args = ("--preset", "tiny", "--frames", 11, "--codes", codes, "--no-flow", "-o", tmp_path / "r.parquet")
    assert talkerviz(monkeypatch, "trace", *args) == 0
    spoken = torch.tensor(json.loads(codes.read_text()))
    capfd.readouterr()
    assert talkerviz(monkeypatch, "speak", "--preset", "tiny", "--codes", codes, "--chunk-frames", 4, "-o", wav) == 0
    assert same_sound(samples_in(wav), as_samples(spoken))
    shown = capfd.readouterr()
    assert f"{(11 * 1920 - 555) / 24000:.2f} s of speech, 11 frames -> {wav}" in shown.out
    assert re.search(r"first audio after [\d.]+ \w+; [\d.,]+× real time", shown.out)
    assert "talker" not in shown.out
    assert shown.err.count("\n") == 1
    assert "this is noise, not speech" in shown.err

    # The talker speaks the same when it is asked as `trace` asks it.
    greedy = ("--greedy", "--repetition-penalty", 1, "--frames", 11)
    again = tmp_path / "again.wav"
    assert talkerviz(monkeypatch, "speak", "--preset", "tiny", *greedy, "--chunk-frames", 4, "-o", again) == 0
    assert again.read_bytes() == wav.read_bytes()
    shown = capfd.readouterr()
    assert re.search(r"talker [\d.]+ \w+ \([\d.]+ %\), code2wav [\d.]+ \w+ \([\d.]+ %\)", shown.out)
    assert "Ended by --frames 11" in shown.out

    # Fewer of them.
    assert talkerviz(monkeypatch, "speak", "--preset", "tiny", "--codes", codes, "--frames", 5, "-o", wav) == 0
    assert same_sound(samples_in(wav), as_samples(spoken[:5]))


def sampled(seed: int, **changed: Any) -> Tensor:
    """Return the codes of the tiny talker."""
    config = preset("tiny")
    talker: Any = build_talker(config, seed=seed)
    prompt = assemble_prompt(talker, config, scenario_inputs(Scenario(seed=seed), config, "cpu", torch.float32), 2302)
    sampling = Sampling(
        **{"do_sample": True, "temperature": 0.9, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.05, **changed},
        seed=seed,
    )
    return torch.stack([frame.codes[0] for frame in stream(talker, [prompt], 6, sampling)])


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ((), {}),
        (("--temperature", 0.5, "--top-k", 5, "--top-p", 0.7, "--repetition-penalty", 2),
         {"temperature": 0.5, "top_k": 5, "top_p": 0.7, "repetition_penalty": 2.0}),
        (("--greedy",), {"do_sample": False}),
    ],
)  # fmt: skip
def test_codes_are_drawn_as_transformers_draws_them(
    options: tuple[object, ...], changed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wav = tmp_path / "speech.wav"
    assert talkerviz(monkeypatch, "speak", "--preset", "tiny", "--frames", 6, "--seed", 2, *options, "-o", wav) == 0
    model = build_code2wav(code2wav_config("tiny"), seed=2)
    assert same_sound(samples_in(wav), as_samples(sampled(2, **changed), model))


@pytest.fixture(scope="module")
def omni(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    directory = tmp_path_factory.mktemp("omni") / "Tiny-Omni"
    return directory, save_tiny_omni(directory)


def test_a_checkpoint_speaks_a_thinkers_answer(
    omni: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    directory, model = omni
    drawn = torch.Generator().manual_seed(5)

    def embeddings(tokens: int) -> Tensor:
        return torch.randn(1, tokens, THINKER_WIDTH, generator=drawn)

    heard = torch.zeros(1, 6, dtype=torch.bool)
    thinker = ThinkerOutputs(embeddings(3), embeddings(6), embeddings(6), heard, embeddings(9))
    inputs, codes, wav = tmp_path / "inputs.safetensors", tmp_path / "codes.json", tmp_path / "speech.wav"
    write_inputs(inputs, thinker, torch.ones(1, 6).long(), torch.ones(1, 9).long(), {})
    given = ("--checkpoint", directory, "--inputs", inputs)
    run = ("--frames", 5, "--codes", codes, "--no-flow", "-o", tmp_path / "r.parquet")
    assert talkerviz(monkeypatch, "trace", *given, *run) == 0
    greedy = ("--greedy", "--repetition-penalty", 1, "--frames", 5)
    assert talkerviz(monkeypatch, "speak", *given, *greedy, "-o", wav) == 0
    spoken = torch.tensor(json.loads(codes.read_text()))
    assert same_sound(samples_in(wav), as_samples(spoken, model.code2wav.float()))
    assert "talkerviz:" not in capfd.readouterr().err

    assert talkerviz(monkeypatch, "speak", "--checkpoint", directory, "--frames", 2, "-o", wav) == 0
    assert "the inputs are random" in capfd.readouterr().err


def spoken_in_vain(frames: int, stop: BaseException | None = None) -> Any:
    """Return a `stream_codes` that yields random codes, and then ends or raises."""

    def stream_codes(*args: Any) -> Iterator[Tensor]:
        yield from random_codes(frames)
        if isinstance(stop, KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        if stop is not None:
            raise stop

    return stream_codes


def test_it_ends_with_the_talker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    wav = tmp_path / "speech.wav"
    monkeypatch.setattr("talkerviz.cli.speak.stream_codes", spoken_in_vain(3))
    assert talkerviz(monkeypatch, "speak", "--preset", "tiny", "-o", wav) == 0
    assert same_sound(samples_in(wav), as_samples(random_codes(3)))
    assert "Ended by" not in capfd.readouterr().out
    monkeypatch.setattr("talkerviz.cli.speak.stream_codes", spoken_in_vain(0))
    assert talkerviz(monkeypatch, "speak", "--preset", "tiny", "-o", wav) == 0
    assert len(samples_in(wav)) == 0
    assert "0.00 s of speech, 0 frames" in capfd.readouterr().out


@pytest.mark.parametrize("frames", [0, 1, 6])
def test_what_was_spoken_until_ctrl_c_is_kept(
    frames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    wav = tmp_path / "speech.wav"
    monkeypatch.setattr("talkerviz.cli.speak.stream_codes", spoken_in_vain(frames, KeyboardInterrupt()))
    args = ("--preset", "tiny", "--chunk-frames", 2, "-o", wav)
    assert talkerviz(monkeypatch, "speak", *args) == 130
    whole = {0: 0, 1: 1, 6: 5}[frames]  # chunks of 1, 2, 2, and one that is not full
    shown = capfd.readouterr()
    if not whole:
        assert shown.err.endswith(f"talkerviz: stopped; nothing was spoken, {wav} is not written\n")
        assert not any(tmp_path.iterdir())
        return
    assert same_sound(samples_in(wav), as_samples(random_codes(frames)[:whole]))
    assert f"{whole} frames -> {wav}" in shown.out
    assert shown.err.endswith(f"talkerviz: stopped; the sound until then is in {wav}\n")


def test_what_was_spoken_until_a_failure_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    wav = tmp_path / "speech.wav"
    monkeypatch.setattr("talkerviz.cli.speak.stream_codes", spoken_in_vain(3, RuntimeError("no\nmemory")))
    assert talkerviz(monkeypatch, "speak", "--preset", "tiny", "--chunk-frames", 2, "-o", wav) == 2
    assert len(samples_in(wav)) == 3 * 1920 - 555
    assert "stopped: RuntimeError: no memory; the sound until then" in capfd.readouterr().err


def test_times_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(speech_module, "perf_counter_ns", lambda: next(clock))
    speech, chunks = SpeechProgress(), []
    stream_speech(code2wav(), random_codes(5), chunks.append, 2, progress=speech)
    # The clock is read twice for each chunk and for the end of them, once after the first sound, and at either end.
    assert (speech.frames, speech.chunks, speech.samples) == (5, 3, sum(map(len, chunks)))
    assert speech.talker_ns == 4 * 10
    assert speech.first_ns == 30
    assert speech.total_ns == 100


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--codes", "{tmp}/none.json"), "none.json: no such file"),
        (("--codes", "{tmp}/c.json", "--greedy"), "--greedy: not with --codes, which replaces the talker"),
        (("--codes", "{tmp}/c.json", "--speaker", "ethan"), "--speaker: not with --codes, which replaces the talker"),
        (("--codes", "{tmp}/c.json", "--top-p", "0.5"), "--top-p: not with --codes, which replaces the talker"),
        (("--greedy", "--top-k", "3"), "--top-k: not with --greedy, which does not sample"),
        (("--temperature", "0"), "'--temperature': must be above 0 and finite, not 0.0"),
        (("--top-p", "nan"), "'--top-p': must be above 0 and finite, not nan"),
        (("--repetition-penalty", "inf"), "'--repetition-penalty': must be above 0 and finite, not inf"),
        (("--speaker", "bob"), "unknown speaker 'bob'"),
        (("--preset", "huge"), "unknown preset 'huge'"),
        (("--preset", "tiny", "--checkpoint", "{tmp}"), "--preset: --checkpoint says which weights they are"),
        (("--checkpoint", "{tmp}"), "config.json: no such file"),
        (("--inputs", "{tmp}/none"), "none: no such file"),
        (("--device", "meta"), "--device meta: it computes no values"),
        (("--chunk-frames", "0"), "'--chunk-frames'"),
        (("--frames", "0"), "'--frames'"),
        (("--frames", "70000"), "70019 positions: the talker has 65536"),
        (("-o", "{tmp}/speech.mp3"), "speech.mp3: .mp3 cannot be written: name a .wav"),
        (("-f", "mp3"), "'mp3'"),
        (("-o", "{tmp}/none/speech.wav"), "no such folder"),
    ],
)
def test_what_cannot_be_spoken(
    args: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    write_codes(tmp_path / "c.json", random_codes(2))
    shown = [one.replace("{tmp}", str(tmp_path)) for one in args]
    shown += [] if "-o" in args else ["-o", str(tmp_path / "speech.wav")]
    shown += [] if "--preset" in args or "--checkpoint" in args else ["--preset", "tiny"]
    assert talkerviz(monkeypatch, "speak", *shown) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("talkerviz: ")
    assert said in last


@pytest.mark.parametrize("target", ["-", "/dev/stdout"])
@pytest.mark.parametrize("options", [(), ("--format", "pcm")])
def test_sound_goes_to_stdout_and_words_to_stderr(
    target: str,
    options: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    wav, speak = tmp_path / "speech.wav", ("speak", "--preset", "tiny", "--frames", 5)
    assert talkerviz(monkeypatch, *speak, "-o", wav) == 0
    capfdbinary.readouterr()
    assert talkerviz(monkeypatch, *speak, *options, "-o", target) == 0
    shown = capfdbinary.readouterr()
    audio = shown.out
    if not options:
        with wave.open(io.BytesIO(audio)) as sound:
            assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, 24000)
        assert struct.unpack("<I", audio[40:44]) == (0xFFFFFFFF,)
        audio = audio[44:]
    assert audio == wav.read_bytes()[44:]
    assert b"0.38 s of speech, 5 frames -> " in shown.err


def test_a_reader_that_has_enough_ends_it_in_silence() -> None:
    speak = [sys.executable, "-W", "ignore", "-m", "talkerviz", "speak", "--preset", "tiny", "--frames", "4000"]
    process = subprocess.Popen([*speak, "-o", "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(4) == b"RIFF"
    process.stdout.close()
    assert process.stderr.read().count(b"\n") == 1  # that it is noise
    assert process.wait() == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_named_pipe_is_played_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    pipe, wav = tmp_path / "pipe", tmp_path / "speech.wav"
    os.mkfifo(pipe)
    assert talkerviz(monkeypatch, "speak", "--preset", "tiny", "--frames", 2, "-o", wav) == 0
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert talkerviz(monkeypatch, "speak", "--preset", "tiny", "--frames", 2, "-o", pipe) == 0
        assert os.read(reader, 10_000)[44:] == wav.read_bytes()[44:]
    finally:
        os.close(reader)
    assert f"0.14 s of speech, 2 frames -> {pipe}" in capfd.readouterr().out


@pytest.mark.parametrize("is_replaceable", [True, False])
def test_a_run_that_is_refused_leaves_the_file_as_it_was(
    is_replaceable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    wav = tmp_path / "speech.wav"
    wav.write_bytes(b"mine")
    before = wav.stat()
    # A descriptor is written to as it is, a file is replaced.
    with wav.open("r+b") as file:
        target = wav if is_replaceable else f"/dev/fd/{file.fileno()}"
        assert talkerviz(monkeypatch, "speak", "--preset", "tiny", "--frames", 70_000, "-o", target) == 2
    assert wav.read_bytes() == b"mine"
    assert (wav.stat().st_ino, wav.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [path.name for path in tmp_path.iterdir()] == ["speech.wav"]
    assert "nothing was spoken" in capfd.readouterr().err


def test_raw_samples_by_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("speech.wav", "speech.pcm", "speech"):
        assert talkerviz(monkeypatch, "speak", "--preset", "tiny", "--frames", 2, "-o", tmp_path / name) == 0
    whole = (tmp_path / "speech.wav").read_bytes()
    assert (tmp_path / "speech.pcm").read_bytes() == whole[44:]
    assert (tmp_path / "speech").read_bytes() == whole


@given(frames=st.integers(1, 5), seed=st.integers(0, 9))
@settings(max_examples=8, deadline=None)
def test_codes_are_read_as_they_are_written(frames: int, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("codes") / "codes.json"
    codes = torch.randint(2048, (frames, 16), generator=torch.Generator().manual_seed(seed))
    write_codes(path, codes)
    assert torch.equal(read_codes(path, code2wav_config("tiny")), codes)


Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=17) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=40,
)


@given(content=Json | st.lists(st.lists(st.integers(-1, 2048), min_size=16, max_size=16), max_size=2))
@settings(max_examples=examples(150), deadline=None)
def test_other_files_are_refused_by_name(content: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any-codes.json"
    path.write_text(json.dumps(content))
    fits = (
        isinstance(content, list)
        and len(content) > 0
        and all(isinstance(frame, list) and len(frame) == 16 for frame in content)
        and all(type(code) is int and 0 <= code < 2048 for frame in content for code in frame)
    )
    if fits:
        assert read_codes(path, code2wav_config("tiny")).tolist() == content
        return
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*$") as raised:
        read_codes(path, code2wav_config("tiny"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[1, 2", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("{}", "is not a list of frames"),
        ("[]", "is not a list of frames"),
        ("[3]", "frame 0 is not a list of codes"),
        ("[[0.5]]", "frame 0 is not a list of codes"),
        (f"[[{10**30}]]", "frame 0 is not a list of codes"),
        ("[[1, 2]]", "frame 0 has 2 codes: 16 are needed"),
        (json.dumps([[0] * 16, [0] * 15 + [2048]]), "frame 1 has the code 2048 in group 15: code2wav knows 0 to 2047"),
    ],
)
def test_what_is_wrong_with_a_file_of_codes(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "codes.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)) as raised:
        read_codes(path, code2wav_config("tiny"))
    assert str(raised.value).startswith(f"{path}: ")


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("code2wav") / "code2wav.parquet"
    with pytest.MonkeyPatch.context() as patch:
        assert talkerviz(patch, "trace", "code2wav", "--preset", "tiny", "--frames", 10, "-o", path) == 0
    return path


def test_code2wav_is_traced_chunk_by_chunk(traced: Path) -> None:
    trace = Trace.load(traced)
    roots = trace.calls[trace.calls["path"] == "code2wav"]
    assert roots["frame"].tolist() == [0, 1, 2, 3]
    assert set(trace.calls["phase"]) == {"forward"}
    assert [call[0].shape for call in roots["inputs"]] == [(1, 16, n) for n in (1, 2, 4, 3)]
    assert [call[0].shape[-1] for call in roots["outputs"]] == [
        1920 - 555,
        *(n * 1920 for n in (2, 4, 3)),
    ]
    facts = trace.facts
    assert (facts["model"], facts["preset"], facts["root"]) == ("Code2Wav", "tiny", "code2wav")
    assert (facts["code_frames"], facts["chunk_frames"]) == (10, 25)
    assert trace.flow is not None
    assert trace.calls["error"].isna().all()


def test_code2wav_is_drawn_and_reported(
    traced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    assert talkerviz(monkeypatch, "render", traced, "-f", "mermaid") == 0
    chart = capfd.readouterr().out
    for name in ("code_embedding", "pre_transformer", "upsample.0.0", "decoder.4"):
        assert f"<b>{name}</b>" in chart
    assert talkerviz(monkeypatch, "report", traced, "-o", tmp_path / "report") == 0
    assert "Code2Wav, tiny, cpu, float32" in (tmp_path / "report" / "report.md").read_text()
    assert json.loads((tmp_path / "report" / "facts.json").read_text())["chunk_frames"] == 25


def test_code2wav_of_a_checkpoint_with_codes_of_a_file(
    omni: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, path = tmp_path / "codes.json", tmp_path / "run.parquet"
    write_codes(codes, random_codes(30))
    before = codes.read_bytes()
    given = ("--checkpoint", omni[0], "--codes", codes, "--dtype", "bfloat16", "--no-flow")
    assert talkerviz(monkeypatch, "trace", "code2wav", *given, "-o", path) == 0
    assert codes.read_bytes() == before
    trace = Trace.load(path)
    roots = trace.calls[trace.calls["path"] == "code2wav"]
    assert [call[0].shape for call in roots["inputs"]] == [(1, 16, n) for n in (1, 2, 4, 8, 15)]
    assert {call[0].dtype for call in roots["outputs"]} == {"bfloat16"}
    assert (trace.facts["checkpoint"], trace.facts["codes"]) == ("Tiny-Omni", str(codes))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--device", "meta"), "--device meta: only for `trace talker` and `trace model`"),
        (("--inputs", "x"), "--inputs: only for `trace talker`, not for `trace code2wav`"),
        (("--codes", "none.json"), "none.json: no such file"),
        (("--frames", "0"), "frames must be at least 1, not 0"),
        (("--checkpoint", "none"), "none: no such folder"),
    ],
)
def test_what_cannot_be_traced(
    args: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = () if "--checkpoint" in args else ("--preset", "tiny")
    assert talkerviz(monkeypatch, "trace", "code2wav", *chosen, *args) == 2
    assert said in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
