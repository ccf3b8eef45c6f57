"""Code2wav: any chunks of a stream are one pass of transformers' code2wav, and what a config may say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis_examples import examples
from tiny_omni import save_tiny_omni, tiny_omni_config
from torch import Tensor
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeCode2WavConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeCode2Wav

from talkerviz.talker import StreamingCode2Wav, stream_audio
from talkerviz.talker.files.build import build_code2wav, load_code2wav
from talkerviz.talker.files.checkpoint import find_module, read_code2wav_config
from talkerviz.talker.generation.streaming_audio import chunks_of
from talkerviz.talker.model.code2wav import Code2Wav, Past
from talkerviz.talker.model.code2wav_config import Code2WavConfig, code2wav_config, code2wav_config_from

# Decibels of one pass over the difference from it. Sums in other shapes round elsewhere.
LEAST_DB = {torch.float32: 100.0, torch.bfloat16: 25.0}


@cache
def tiny() -> Code2Wav:
    return build_code2wav(code2wav_config("tiny"))


def codes_of(frames: int, seed: int = 0, codebooks: int = 16, size: int = 2048) -> Tensor:
    return torch.randint(size, (frames, codebooks), generator=torch.Generator().manual_seed(seed))


def streamed(code2wav: Code2Wav, chunks: Sequence[Tensor]) -> list[Tensor]:
    decoder = StreamingCode2Wav(code2wav)
    return [decoder.decode(chunk) for chunk in chunks]


def signal_to_noise(audio: Tensor, whole: Tensor) -> float:
    assert audio.shape == whole.shape
    noise = (audio - whole).double().square().sum()
    return float(10 * torch.log10(whole.double().square().sum() / noise)) if noise else float("inf")


@st.composite
def sections(draw: Callable[..., Any]) -> dict[str, Any]:
    """Draw a `code2wav_config` of a small code2wav."""
    rates = draw(st.lists(st.integers(1, 5), max_size=3))
    key_value_heads = draw(st.integers(1, 2))
    section = {
        "codebook_size": draw(st.integers(1, 40)),
        "num_quantizers": draw(st.integers(1, 5)),
        "hidden_size": draw(st.sampled_from([4, 12, 20])),
        "intermediate_size": draw(st.integers(1, 30)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": key_value_heads * draw(st.integers(1, 2)),
        "num_key_value_heads": key_value_heads,
        "head_dim": 2 * draw(st.integers(1, 6)),
        "hidden_act": draw(st.sampled_from(["silu", "gelu", "relu"])),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-2])),
        "attention_bias": draw(st.booleans()),
        "sliding_window": draw(st.integers(1, 12)),
        "upsampling_ratios": draw(st.lists(st.integers(1, 4), max_size=3)),
        "upsample_rates": rates,
        "decoder_dim": 2 ** len(rates) * draw(st.integers(1, 6)),
        "rope_parameters": {"rope_type": "default", "rope_theta": draw(st.sampled_from([100.0, 10_000.0]))},
    }
    assume(Code2WavConfig(**{k: v for k, v in section.items() if k != "rope_parameters"}).samples_of(1) >= 1)
    return section


def both(section: Mapping[str, Any], dtype: torch.dtype, seed: int) -> tuple[Code2Wav, Any]:
    """Return the native code2wav and transformers' own, with the same random weights and biases."""
    ours = build_code2wav(code2wav_config_from(section), dtype=dtype, seed=seed)
    drawn = torch.Generator().manual_seed(seed)
    for weight in ours.parameters():
        if weight.ndim == 1:
            weight.add_(0.3 * torch.randn(weight.shape, generator=drawn).to(dtype))
    theirs = Qwen3OmniMoeCode2Wav._from_config(Qwen3OmniMoeCode2WavConfig(**section), dtype=dtype).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def wide_apart(**changed: Any) -> dict[str, Any]:
    """Return a section whose window is much shorter than a chunk."""
    published = {"codebook_size": 30, "num_quantizers": 2, "hidden_size": 12, "num_attention_heads": 2}
    small = {"num_key_value_heads": 1, "head_dim": 6, "intermediate_size": 8, "num_hidden_layers": 2}
    rest = {"sliding_window": 3, "upsampling_ratios": [2], "upsample_rates": [3, 2], "decoder_dim": 8}
    return {**published, **small, **rest, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}, **changed}


@given(
    section=sections(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
@example(section=wide_apart(), dtype=torch.float32, sizes=[1] * 12, seed=0)
@example(section=wide_apart(), dtype=torch.bfloat16, sizes=[1, 9, 2], seed=0)
@example(section=wide_apart(sliding_window=1), dtype=torch.float32, sizes=[4, 1, 4], seed=0)
@settings(max_examples=examples(50), deadline=None, print_blob=True)
def test_any_chunks_are_one_pass_of_transformers(
    section: dict[str, Any], dtype: torch.dtype, sizes: list[int], seed: int
) -> None:
    ours, theirs = both(section, dtype, seed)
    codes = codes_of(sum(sizes), seed, section["num_quantizers"], section["codebook_size"])
    with torch.no_grad():
        whole = theirs(codes.T[None])[0, 0].float()
        assert signal_to_noise(ours(codes.T[None])[0, 0].float(), whole) >= LEAST_DB[dtype]
    chunks = streamed(ours, codes.split(sizes))
    assert signal_to_noise(torch.cat(chunks), whole) >= LEAST_DB[dtype]
    heard = [sum(map(len, chunks[: n + 1])) for n in range(len(sizes))]
    assert heard == [ours.config.samples_of(sum(sizes[: n + 1])) for n in range(len(sizes))]


def test_a_stream_of_single_frames_is_one_pass_to_a_few_roundings() -> None:
    codes = codes_of(40)
    whole = tiny()(codes.T[None])[0, 0]
    audio = torch.cat(streamed(tiny(), codes.split(1)))
    assert whole.std() > 0.01
    torch.testing.assert_close(audio, whole, atol=2e-6, rtol=0)


def test_streams_share_the_weights_alone() -> None:
    codes = [codes_of(6, seed) for seed in (1, 2)]
    decoders = [StreamingCode2Wav(tiny()) for _ in codes]
    audio = [torch.cat(parts) for parts in zip(*([d.decode(c[n : n + 2]) for d, c in zip(decoders, codes, strict=True)]
             for n in (0, 2, 4)), strict=True)]  # fmt: skip
    for each, its_codes in zip(audio, codes, strict=True):
        assert torch.equal(each, torch.cat(streamed(tiny(), its_codes.split(2))))


def kept(state: Any) -> Iterator[Tensor]:
    """Yield the tensors of a stream's state."""
    if isinstance(state, Past):
        assert state.steps is not None
        yield state.steps
    elif isinstance(state, list | tuple):
        for part in state:
            yield from kept(part)


def test_an_endless_stream_takes_no_more_memory() -> None:
    state, sizes = tiny().new_stream(), []
    for _ in range(12):
        tiny()(codes_of(3).T[None], state)
        tensors = list(kept([state.attention, state.upsample, state.decoder]))
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in tensors))
    assert sizes[3:] == sizes[3:4] * 9  # from where the window is full
    assert sizes[-1] == sum(tensor.nbytes for tensor in tensors)
    assert state.frames == 36


def test_a_code_that_is_refused_leaves_the_stream_as_it_was() -> None:
    codes, decoder = codes_of(5), StreamingCode2Wav(tiny())
    audio = [decoder.decode(codes[:2])]
    with pytest.raises(ValueError, match=r"frame 3 has the code 2048 in group 0"):
        decoder.decode(torch.tensor([[0] * 16, [2048] * 16]))
    audio.append(decoder.decode(codes[2:]))
    assert torch.equal(torch.cat(audio), torch.cat(streamed(tiny(), codes.split([2, 3]))))


def test_chunks_grow_from_one_frame() -> None:
    codes = codes_of(20)
    chunks = list(chunks_of(iter(codes), 6))
    assert [len(chunk) for chunk in chunks] == [1, 2, 4, 6, 6, 1]
    assert torch.equal(torch.cat(chunks), codes)
    assert [len(chunk) for chunk in chunks_of(iter(codes[:3]), 1)] == [1, 1, 1]


def test_sound_comes_with_the_first_frame() -> None:
    taken = 0

    def come() -> Iterator[Tensor]:
        nonlocal taken
        for frame in codes_of(9):
            taken += 1
            yield frame

    seen = [(taken, len(chunk)) for chunk in stream_audio(tiny(), come(), 4)]
    assert seen == [(1, 1920 - 555), (3, 2 * 1920), (7, 4 * 1920), (9, 2 * 1920)]


def test_no_frames_no_sound() -> None:
    assert list(stream_audio(tiny(), iter(()))) == []
    assert StreamingCode2Wav(tiny()).decode(codes_of(0)).shape == (0,)


def test_what_cannot_be_sound() -> None:
    codes = codes_of(8)
    codes[5, 3] = 2048
    with pytest.raises(ValueError, match=r"frame 5 has the code 2048 in group 3: code2wav knows 0 to 2047"):
        list(stream_audio(tiny(), codes, 2))
    with pytest.raises(ValueError, match=r"frame 0 has the code -1 in group 0"):
        streamed(tiny(), [torch.full((1, 16), -1)])
    with pytest.raises(ValueError, match=r"codes of shape \[2, 15\]: code2wav takes 16 of each frame"):
        streamed(tiny(), [codes_of(2)[:, :15]])
    with pytest.raises(ValueError, match="1 frame or more, not 0"):
        list(stream_audio(tiny(), codes, 0))


@pytest.mark.parametrize("frames", [1, 2, 25])
def test_how_many_samples_a_pass_gives(frames: int) -> None:
    assert code2wav_config("full").samples_of(frames) == frames * 1920 - 555
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
    published = Qwen3OmniMoeCode2WavConfig()
    for field in fields(Code2WavConfig):
        if field.name not in ("head_dim", "rope_theta"):
            assert field.default == getattr(published, field.name), field.name
    assert Code2WavConfig.head_dim == published.hidden_size // published.num_attention_heads
    assert code2wav_config("full") == code2wav_config("lite") == code2wav_config_from({}) == Code2WavConfig()
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
    theirs = Qwen3OmniMoeCode2Wav._from_config(model.config.code2wav_config, dtype=dtype).eval()
    theirs.load_state_dict(model.code2wav.state_dict())
    with torch.no_grad():
        wanted = theirs(codes.T[None])[0, 0].float()
    sound = torch.cat(streamed(loaded, codes.split(4)))
    assert sound.dtype == torch.float32
    assert wanted.std() > 0.01
    assert signal_to_noise(sound, wanted) >= LEAST_DB[dtype]


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
    assert read.rope_theta == 1234
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
        ({"hidden_size": 36, "num_attention_heads": 4}, "head_dim is odd"),
        ({"hidden_size": 33}, "heads do not divide hidden_size"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "code2wav_config.rope_scaling' is"),
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
    sound = torch.cat(streamed(code2wav, codes.split([1, 2, 4, 8, 15])))
    whole = code2wav(codes.T[None].cuda())[0, 0].float()
    assert sound.device.type == "cuda"
    assert signal_to_noise(sound, whole) >= LEAST_DB[dtype] / 2  # convolutions may be in TF32
