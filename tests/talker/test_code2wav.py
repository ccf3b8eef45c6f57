"""code2wav: sound while codes come is that of transformers' `chunked_decode`, and what a config may say."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis_examples import examples
from tiny_omni import save_tiny_omni, tiny_omni_config
from torch import Tensor
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeCode2WavConfig

from talkerviz.talker.files.build import build_code2wav, load_code2wav
from talkerviz.talker.files.checkpoint import find_module, read_code2wav_config
from talkerviz.talker.model.code2wav import (
    chunks_of,
    code2wav_config,
    samples_of,
    stream_audio,
)


@cache
def tiny() -> Any:
    return build_code2wav(code2wav_config("tiny"))


def codes_of(frames: int, seed: int = 0) -> Tensor:
    return torch.randint(2048, (frames, 16), generator=torch.Generator().manual_seed(seed))


def streamed(code2wav: Any, codes: Tensor, *sizes: int, seamless: bool = False) -> list[Tensor]:
    return list(stream_audio(code2wav, iter(codes), *sizes, seamless=seamless))


@given(frames=st.integers(1, 24), chunk=st.integers(1, 12), context=st.integers(0, 14), seed=st.integers(0, 99))
@example(frames=24, chunk=24, context=0, seed=0)
@example(frames=9, chunk=3, context=3, seed=0)
@example(frames=9, chunk=2, context=5, seed=0)
@settings(max_examples=examples(25), deadline=None)
def test_a_stream_is_transformers_chunked_decode(frames: int, chunk: int, context: int, seed: int) -> None:
    codes = codes_of(frames, seed)
    chunks = streamed(tiny(), codes, chunk, context)
    whole = tiny().chunked_decode(codes.T[None], chunk_size=chunk, left_context_size=context)[0, 0]
    assert torch.equal(torch.cat(chunks), whole)
    assert whole.std() > 0.01
    assert [len(one) for one in chunks] == [
        samples_of(tiny().config, min(chunk, frames - begin)) for begin in range(0, frames, chunk)
    ]


@given(frames=st.integers(1, 20), chunk=st.integers(1, 8), seed=st.integers(0, 99))
@settings(max_examples=examples(10), deadline=None)
def test_seamless_with_all_of_the_past_is_one_decode(frames: int, chunk: int, seed: int) -> None:
    codes = codes_of(frames, seed)
    chunks = streamed(tiny(), codes, chunk, frames, seamless=True)
    torch.testing.assert_close(torch.cat(chunks), tiny()(codes.T[None])[0, 0], atol=1e-5, rtol=1e-5)
    assert {len(one) for one in chunks[1:-1]} <= {chunk * 1920}


def test_seamless_gives_all_samples_whatever_the_context() -> None:
    for context in (1, 3, 50):
        assert len(torch.cat(streamed(tiny(), codes_of(17), 4, context, seamless=True))) == 17 * 1920 - 555


def test_sound_comes_before_all_codes_are_there() -> None:
    taken = 0

    def come() -> Any:
        nonlocal taken
        for frame in codes_of(9):
            taken += 1
            yield frame

    audio = stream_audio(tiny(), come(), 4, 2)
    seen = [(taken, len(chunk)) for chunk in audio]
    assert seen == [(4, 4 * 1920 - 555), (8, 4 * 1920 - 555), (9, 1920 - 555)]


def test_no_frames_no_sound() -> None:
    assert list(stream_audio(tiny(), iter(()))) == []


def test_what_cannot_be_sound() -> None:
    codes = codes_of(8)
    codes[5, 3] = 2048
    with pytest.raises(ValueError, match=r"frame 5 has the code 2048 in group 3: code2wav knows 0 to 2047"):
        streamed(tiny(), codes, 2)
    with pytest.raises(ValueError, match=r"frame 0 has the code -1 in group 0"):
        streamed(tiny(), torch.full((1, 16), -1))
    with pytest.raises(ValueError, match=r"codes of shape \[2, 15\]: code2wav takes 16 of each frame"):
        streamed(tiny(), codes_of(2)[:, :15])
    with pytest.raises(ValueError, match="1 frame or more, not 0"):
        streamed(tiny(), codes_of(2), 0)
    with pytest.raises(ValueError, match="0 or more, not -1"):
        streamed(tiny(), codes_of(2), 2, -1)
    with pytest.raises(ValueError, match="1 or more, not 0"):
        streamed(tiny(), codes_of(2), 2, 0, seamless=True)


def test_chunks() -> None:
    codes = codes_of(7)
    assert [chunk.tolist() for chunk in chunks_of(iter(codes), 3)] == [
        codes[:3].tolist(),
        codes[3:6].tolist(),
        codes[6:].tolist(),
    ]


@pytest.mark.parametrize("frames", [1, 2, 25])
def test_how_many_samples_a_pass_gives(frames: int) -> None:
    assert samples_of(code2wav_config("full"), frames) == frames * 1920 - 555
    assert tiny()(codes_of(frames).T[None]).shape == (1, 1, frames * 1920 - 555)


def test_random_weights_are_the_seeds() -> None:
    config = code2wav_config("tiny")
    one, same, other = (build_code2wav(config, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(weight, same[name]) for name, weight in one.items())
    assert not torch.equal(one["code_embedding.weight"], other["code_embedding.weight"])
    sound = tiny()(codes_of(12).T[None])
    assert 0.01 < sound.std() < 0.5
    assert (sound.abs() == 1).float().mean() < 0.01
    # In each place a code matters.
    for place in range(16):
        codes = codes_of(3)
        codes[:, place] += 1
        assert not torch.equal(tiny()(codes.T[None] % 2048), tiny()(codes_of(3).T[None]))


def test_the_published_numbers() -> None:
    published = Qwen3OmniMoeCode2WavConfig().to_dict()
    assert code2wav_config("full").to_dict() == published
    assert code2wav_config("lite").to_dict() == published
    with pytest.raises(ValueError, match="unknown preset 'huge'"):
        code2wav_config("huge")


@pytest.fixture(scope="module")
def omni(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    directory = tmp_path_factory.mktemp("omni") / "Tiny-Omni"
    return directory, save_tiny_omni(directory)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_sounds_as_in_transformers(omni: tuple[Path, Any], dtype: torch.dtype) -> None:
    directory, model = omni
    config = read_code2wav_config(directory)
    loaded = load_code2wav(config, find_module(directory, "code2wav."), dtype=dtype)
    codes = codes_of(11)
    theirs = type(loaded)._from_config(model.config.code2wav_config, dtype=dtype).eval()
    theirs.load_state_dict(model.code2wav.state_dict())
    with torch.no_grad():
        wanted = theirs.chunked_decode(codes.T[None], chunk_size=4, left_context_size=3)[0, 0].float()
    sound = torch.cat(streamed(loaded, codes, 4, 3))
    assert sound.dtype == torch.float32
    assert wanted.std() > 0.01
    assert torch.equal(sound, wanted)


def write_config(directory: Path, **changed: Any) -> Path:
    config = tiny_omni_config().to_dict()
    config["code2wav_config"] |= changed
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_a_config_as_it_is_published(tmp_path: Path) -> None:
    config = tiny_omni_config().to_dict()
    section = config["code2wav_config"]
    del section["rope_parameters"], section["hidden_act"]
    section |= {"rope_theta": 1234, "codebook_dim": 512, "dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = read_code2wav_config(tmp_path)
    assert read.rope_parameters["rope_theta"] == 1234
    assert read.hidden_act == "silu"
    assert (read.hidden_size, read.sliding_window) == (32, 8)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"hidden_size": "32"}, "'code2wav_config.hidden_size' cannot be '32'"),
        ({"hidden_size": True}, "'code2wav_config.hidden_size' cannot be True"),
        ({"num_hidden_layers": 0}, "'code2wav_config.num_hidden_layers' cannot be 0"),
        ({"upsample_rates": [8, -5]}, r"'code2wav_config.upsample_rates' cannot be \[8, -5\]"),
        ({"upsampling_ratios": 2}, "'code2wav_config.upsampling_ratios' cannot be 2"),
        ({"hidden_act": "sing"}, "'code2wav_config.hidden_act' cannot be 'sing'"),
        ({"attention_bias": None}, "'code2wav_config.attention_bias' cannot be None"),
        ({"rms_norm_eps": float("nan")}, "'code2wav_config.rms_norm_eps' cannot be nan"),
        ({"rope_parameters": {"rope_theta": "x"}}, "'code2wav_config.rope_theta' cannot be 'x'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "only 'default' is implemented"),
        ({"rope_parameters": 7}, "rope_parameters' is 7"),
        ({"hidden_size": 36, "num_attention_heads": 4}, "heads do not divide hidden_size into even parts"),
        ({"num_key_value_heads": 3}, "key-value heads do not divide heads"),
        ({"decoder_dim": 40}, "decoder_dim cannot be halved once for each of upsample_rates"),
        ({"upsampling_ratios": []}, "one frame alone gives no samples"),
    ],
)
def test_a_config_that_cannot_be_run(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        read_code2wav_config(write_config(tmp_path, **changed))
    assert str(raised.value).startswith(str(tmp_path / "config.json"))
    assert "\n" not in str(raised.value)


def test_no_section(tmp_path: Path) -> None:
    config = tiny_omni_config().to_dict()
    del config["code2wav_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is it a model with speech"):
        read_code2wav_config(tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    code2wav = build_code2wav(code2wav_config("tiny"), "cuda", dtype)
    codes = codes_of(30)
    sound = torch.cat(streamed(code2wav, codes, 8, 5))
    whole = code2wav.chunked_decode(codes.T[None].cuda(), chunk_size=8, left_context_size=5)[0, 0].float()
    # Kernels may be chosen anew, so nearly.
    torch.testing.assert_close(sound, whole, atol=1e-2 if dtype == torch.bfloat16 else 1e-4, rtol=0)
