"""`talkerviz speak` and `talkerviz trace code2wav`, end to end."""

from __future__ import annotations

import json
import os
import re
import signal
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
from talkerviz.talker.files.wav import open_wav
from tiny_omni import THINKER_WIDTH, save_tiny_omni
from torch import Tensor

from talkerviz.api import Trace
from talkerviz.talker import ThinkerOutputs, assemble_prompt, build_talker, preset, scenario_inputs, stream
from talkerviz.talker.files.build import build_code2wav
from talkerviz.talker.files.codes_file import read_codes, write_codes
from talkerviz.talker.files.thinker_file import write_inputs
from talkerviz.talker.generation import streaming_audio as speech_module
from talkerviz.talker.generation.sampling import Sampling
from talkerviz.talker.generation.scenario import Scenario
from talkerviz.talker.generation.streaming_audio import SpeechProgress, stream_speech
from talkerviz.talker.model.code2wav import code2wav_config

Capture = pytest.CaptureFixture[str]


@cache
def code2wav() -> Any:
    return build_code2wav(code2wav_config("tiny"))


def samples_in(path: Path) -> np.ndarray:
    with wave.open(str(path)) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, 24000)
        return np.frombuffer(sound.readframes(sound.getnframes()), dtype="<i2")


def as_samples(codes: Tensor, chunk: int, context: int, model: Any = None) -> np.ndarray:
    """Decode codes with transformers, in steps of a WAV."""
    sound = (model or code2wav()).chunked_decode(codes.T[None], chunk_size=chunk, left_context_size=context)
    return (sound[0, 0].float() * 32767).round().to(torch.int16).numpy()


def random_codes(frames: int) -> Tensor:
    return torch.randint(2048, (frames, 16), generator=torch.Generator().manual_seed(1))


def test_codes_become_the_sound_that_transformers_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    codes, wav = tmp_path / "codes.json", tmp_path / "speech.wav"
    args = ("--preset", "tiny", "--frames", 11, "--codes", codes, "--no-flow", "-o", tmp_path / "r.parquet")
    assert talkerviz(monkeypatch, "trace", *args) == 0
    spoken = torch.tensor(json.loads(codes.read_text()))
    capfd.readouterr()
    chunks = ("--chunk-frames", 4, "--left-context", 3)
    assert talkerviz(monkeypatch, "speak", "--preset", "tiny", "--codes", codes, *chunks, "-o", wav) == 0
    assert np.array_equal(samples_in(wav), as_samples(spoken, 4, 3))
    shown = capfd.readouterr()
    assert f"{(11 * 1920 - 3 * 555) / 24000:.2f} s of speech, 11 frames -> {wav}" in shown.out
    assert "46.2 ms are left out between 3 chunks" in shown.out
    assert re.search(r"first audio after [\d.]+ \w+; [\d.,]+× real time", shown.out)
    assert "talker" not in shown.out
    assert shown.err.count("\n") == 1
    assert "this is noise, not speech" in shown.err

    # The talker speaks the same when it is asked as `trace` asks it.
    greedy = ("--greedy", "--repetition-penalty", 1, "--frames", 11)
    again = tmp_path / "again.wav"
    assert talkerviz(monkeypatch, "speak", "--preset", "tiny", *greedy, *chunks, "-o", again) == 0
    assert again.read_bytes() == wav.read_bytes()
    shown = capfd.readouterr()
    assert re.search(r"talker [\d.]+ \w+ \([\d.]+ %\), code2wav [\d.]+ \w+ \([\d.]+ %\)", shown.out)
    assert "Ended by --frames 11" in shown.out

    # Fewer of them, in one chunk.
    assert talkerviz(monkeypatch, "speak", "--preset", "tiny", "--codes", codes, "--frames", 5, "-o", wav) == 0
    assert np.array_equal(samples_in(wav), as_samples(spoken[:5], 300, 25))
    assert "left out" not in capfd.readouterr().out


def test_seamless_leaves_nothing_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    wav = tmp_path / "speech.wav"
    args = ("--preset", "tiny", "--frames", 7, "--chunk-frames", 2, "--seamless", "-o", wav)
    assert talkerviz(monkeypatch, "speak", *args) == 0
    assert len(samples_in(wav)) == 7 * 1920 - 555
    assert "left out" not in capfd.readouterr().out


def sampled(seed: int, **changed: Any) -> Tensor:
    """Return the codes of the tiny talker."""
    config = preset("tiny")
    talker: Any = build_talker(config, seed=seed)
    prompt = assemble_prompt(talker, config, scenario_inputs(Scenario(seed=seed), config, "cpu", torch.float32), 2302)
    sampling = Sampling(
        **{"do_sample": True, "temperature": 0.9, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.05, **changed},
        seed=seed,
    )
    return torch.stack([frame.codes[0] for frame in stream(talker, prompt, 6, sampling)])


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
    assert np.array_equal(samples_in(wav), as_samples(sampled(2, **changed), 25, 25, model))


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
    assert np.array_equal(samples_in(wav), as_samples(spoken, 25, 25, model.code2wav))
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
    assert np.array_equal(samples_in(wav), as_samples(random_codes(3), 25, 25))
    assert "Ended by" not in capfd.readouterr().out
    monkeypatch.setattr("talkerviz.cli.speak.stream_codes", spoken_in_vain(0))
    assert talkerviz(monkeypatch, "speak", "--preset", "tiny", "-o", wav) == 0
    assert len(samples_in(wav)) == 0
    assert "0.00 s of speech, 0 frames" in capfd.readouterr().out


@pytest.mark.parametrize("frames", [0, 3, 5])
def test_what_was_spoken_until_ctrl_c_is_kept(
    frames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    wav = tmp_path / "speech.wav"
    monkeypatch.setattr("talkerviz.cli.speak.stream_codes", spoken_in_vain(frames, KeyboardInterrupt()))
    args = ("--preset", "tiny", "--chunk-frames", 2, "--left-context", 2, "-o", wav)
    assert talkerviz(monkeypatch, "speak", *args) == 130
    whole = frames // 2 * 2
    shown = capfd.readouterr()
    if not whole:
        assert shown.err.endswith(f"talkerviz: stopped; nothing was spoken, {wav} is not written\n")
        assert not any(tmp_path.iterdir())
        return
    assert np.array_equal(samples_in(wav), as_samples(random_codes(frames)[:whole], 2, 2))
    assert f"{whole} frames -> {wav}" in shown.out
    assert shown.err.endswith(f"talkerviz: stopped; the sound until then is in {wav}\n")


def test_what_was_spoken_until_a_failure_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    wav = tmp_path / "speech.wav"
    monkeypatch.setattr("talkerviz.cli.speak.stream_codes", spoken_in_vain(3, RuntimeError("no\nmemory")))
    assert talkerviz(monkeypatch, "speak", "--preset", "tiny", "--chunk-frames", 2, "-o", wav) == 2
    assert len(samples_in(wav)) == 2 * 1920 - 555
    assert "stopped: RuntimeError: no memory; the sound until then" in capfd.readouterr().err


def test_a_wav_is_whole_after_each_chunk(tmp_path: Path) -> None:
    wav = tmp_path / "speech.wav"
    with open_wav(wav) as add:
        add(torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0]))
        assert samples_in(wav).tolist() == [0, 32767, -32767, 16384, 32767]
        add(torch.tensor([-0.25]))
        assert samples_in(wav).tolist()[5:] == [-8192]
    assert wav.stat().st_size == 44 + 12


def test_times_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(speech_module, "perf_counter_ns", lambda: next(clock))
    speech, chunks = SpeechProgress(), []
    stream_speech(code2wav(), random_codes(5), chunks.append, 2, 1, progress=speech)
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
        (("--seamless", "--left-context", "0"), "give a --left-context of 1 or more"),
        (("--chunk-frames", "0"), "'--chunk-frames'"),
        (("--frames", "0"), "'--frames'"),
        (("--frames", "70000"), "70019 positions: the talker has 65536"),
        (("-o", "-"), "-o -: a WAV file begins with its length"),
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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_no_wav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert talkerviz(monkeypatch, "speak", "--preset", "tiny", "--frames", 1, "-o", pipe) == 2
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)
    assert "is a pipe" in capfd.readouterr().err


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
@settings(max_examples=150, deadline=None)
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
        assert talkerviz(patch, "trace", "code2wav", "--preset", "tiny", "--frames", 80, "-o", path) == 0
    return path


def test_code2wav_is_traced_chunk_by_chunk(traced: Path) -> None:
    trace = Trace.load(traced)
    roots = trace.calls[trace.calls["path"] == "code2wav"]
    assert roots["frame"].tolist() == [0, 1, 2, 3]
    assert set(trace.calls["phase"]) == {"forward"}
    # Three chunks of 25 frames and one of 5, all but the first with as many before them.
    assert [call[0].shape for call in roots["inputs"]] == [(1, 16, 25), (1, 16, 50), (1, 16, 50), (1, 16, 30)]
    assert [call[0].shape[-1] for call in roots["outputs"]] == [n * 1920 - 555 for n in (25, 50, 50, 30)]
    facts = trace.facts
    assert (facts["model"], facts["preset"], facts["root"]) == ("Qwen3OmniMoeCode2Wav", "tiny", "code2wav")
    assert (facts["code_frames"], facts["chunk_frames"], facts["left_context"]) == (80, 25, 25)
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
    assert "Qwen3OmniMoeCode2Wav, tiny, cpu, float32" in (tmp_path / "report" / "report.md").read_text()
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
    assert [call[0].shape for call in roots["inputs"]] == [(1, 16, 25), (1, 16, 30)]
    assert {call[0].dtype for call in roots["outputs"]} == {"bfloat16"}
    assert (trace.facts["checkpoint"], trace.facts["codes"]) == ("Tiny-Omni", str(codes))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--device", "meta"), "--device meta: transformers' code2wav reads values"),
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
