"""From a prompt to sound: capture, file, our talker; against `generate` of transformers' whole Qwen3-Omni."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_omni import tiny_omni
from tiny_processor import copy_ending_at, save_tiny_processor, user, write_picture, write_sound
from torch import Tensor

from talkerviz.cli import main
from talkerviz.talker import Sampling, assemble_prompt, find_module, generate, load_talker, read_talker_config
from talkerviz.talker.files.thinker_file import read_inputs, write_inputs
from talkerviz.talker.generation.prompt import ThinkerOutputs
from talkerviz.talker.thinker.chat_inputs import Turn, load_processor, thinker_inputs
from talkerviz.talker.thinker.thinker_capture import capture_answer

ANSWER, FRAMES = 12, 10


@dataclass(frozen=True)
class Omni:
    """A whole model of transformers', where it is saved, and files to show it."""

    model: Any
    directory: Path
    sounds: list[Path]
    pictures: list[Path]


@pytest.fixture(scope="module")
def omni(tmp_path_factory: pytest.TempPathFactory) -> Omni:
    directory = tmp_path_factory.mktemp("chain")
    model = tiny_omni()
    model.save_pretrained(directory, max_shard_size="2MB")
    save_tiny_processor(directory, model.config)
    sounds = [write_sound(directory / f"{n}.wav", 0.4 + 0.9 * n, seed=n) for n in range(2)]
    pictures = [write_picture(directory / f"{n}.png", 44 - 16 * n, 30, seed=n) for n in range(2)]
    return Omni(model, directory, sounds, pictures)


CONVERSATIONS: dict[str, Callable[[Omni], Sequence[Turn]]] = {
    "text": lambda _: [user("Hi there.")],
    "system": lambda _: [{"role": "system", "content": "You are kind to the user."}, user("Who are you?")],
    "turns": lambda _: [user("Hi."), {"role": "assistant", "content": "Hello, user."}, user("And now?"), user("Well?")],
    "audio": lambda omni: [user(omni.sounds[0], "What is it?")],
    "sounds": lambda omni: [user(*omni.sounds), {"role": "assistant", "content": "Noise."}, user(omni.sounds[1])],
    "image": lambda omni: [user(omni.pictures[0], "What is it?")],
    "images": lambda omni: [
        {"role": "system", "content": "Look."},
        user("First", omni.pictures[0]),
        {"role": "assistant", "content": "Noise."},
        user(*omni.pictures, "and these?"),
    ],
}


def through_transformers(omni: Omni, conversation: Sequence[Turn], **options: Any) -> tuple[Tensor, Tensor]:
    """Codes [frames, 16] and sound of transformers' `generate`."""
    heard: list[Tensor] = []
    code2wav = omni.model.code2wav
    whole = type(code2wav).chunked_decode

    def chunked_decode(codes: Tensor, **sizes: int) -> Any:
        heard.append(codes)
        return whole(code2wav, codes, **sizes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code2wav, "chunked_decode", chunked_decode)
        _, sound = omni.model.generate(
            **thinker_inputs(load_processor(omni.directory), conversation),
            thinker_max_new_tokens=ANSWER,
            thinker_eos_token_id=omni.model.config.im_end_token_id,
            talker_do_sample=False,
            # The last frame's residual codes come one step later.
            talker_max_new_tokens=FRAMES + 1,
            **options,
        )
    return heard[0][0].T, sound


def captured(omni: Omni, conversation: Sequence[Turn], file: Path) -> ThinkerOutputs:
    """Write the thinker's outputs to a file, and read them for the talker."""
    answer = capture_answer(omni.directory, conversation, max_new_tokens=ANSWER)
    write_inputs(file, answer.thinker, answer.user_ids, answer.assistant_ids, {})
    return read_inputs(file, read_talker_config(omni.directory), "cpu", torch.float32)


def spoken(omni: Omni, thinker: ThinkerOutputs, penalty: float = 1.0) -> tuple[Tensor, Tensor]:
    """Codes of our talker with the checkpoint's weights, and code2wav's sound."""
    config = read_talker_config(omni.directory)
    talker: Any = load_talker(config, find_module(omni.directory, "talker."))
    prompt = assemble_prompt(talker, config, thinker, config.speaker("ethan"))
    codes = generate(talker, prompt, FRAMES, Sampling(repetition_penalty=penalty))
    return codes, omni.model.code2wav.chunked_decode(codes.T[None])


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty`")
@pytest.mark.parametrize("penalty", [1.0, 1.05])  # the latter is transformers' default
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_codes_and_sound_are_those_of_transformers(name: str, penalty: float, omni: Omni, tmp_path: Path) -> None:
    conversation = CONVERSATIONS[name](omni)
    options = {} if penalty == 1.05 else {"talker_repetition_penalty": penalty}
    expected, expected_sound = through_transformers(omni, conversation, **options)
    thinker = captured(omni, conversation, tmp_path / "inputs.safetensors")
    codes, sound = spoken(omni, thinker, penalty)
    assert torch.equal(codes, expected)
    assert torch.equal(sound, expected_sound)
    assert codes.shape == (FRAMES, 16)
    assert len(codes.unique(dim=0)) > FRAMES / 2
    assert 0.01 < float(sound.std()) < 0.9


def test_an_answer_that_ends_before_it_is_cut(omni: Omni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = CONVERSATIONS["system"](omni)
    said = capture_answer(omni.directory, conversation, max_new_tokens=ANSWER).assistant_ids[0, 3:].tolist()
    end = next(token for place, token in enumerate(said) if place > 2 and token not in said[:place])
    ends = dataclasses.replace(omni, directory=copy_ending_at(omni.directory, tmp_path / "ends", end))
    monkeypatch.setattr(omni.model.config, "im_end_token_id", end)
    expected, expected_sound = through_transformers(ends, conversation, talker_repetition_penalty=1.0)
    thinker = captured(ends, conversation, tmp_path / "inputs.safetensors")
    # So few that the text is used up while frames are still spoken.
    assert 4 < thinker.assistant.shape[1] < FRAMES
    codes, sound = spoken(ends, thinker)
    assert torch.equal(codes, expected)
    assert torch.equal(sound, expected_sound)


def test_positions_and_hidden_states_matter(omni: Omni, tmp_path: Path) -> None:
    thinker = captured(omni, CONVERSATIONS["image"](omni), tmp_path / "inputs.safetensors")
    codes, _ = spoken(omni, thinker)
    flat, _ = spoken(omni, dataclasses.replace(thinker, positions=None))
    as_text, _ = spoken(omni, dataclasses.replace(thinker, multimodal=torch.zeros_like(thinker.multimodal)))
    assert not torch.equal(codes, flat)
    assert not torch.equal(codes, as_text)


def test_audio_with_images(omni: Omni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers' talker counts positions where the two meet only if told the thinker's windows of audio."""
    conversation = [user(omni.sounds[1], *omni.pictures, omni.sounds[0], "What is all this?")]
    told = omni.model.talker.config
    if not hasattr(told, "audio_config"):
        with pytest.raises(AttributeError, match="audio_config"):
            through_transformers(omni, conversation)
        monkeypatch.setattr(told, "audio_config", omni.model.config.thinker_config.audio_config, raising=False)
    expected, expected_sound = through_transformers(omni, conversation, talker_repetition_penalty=1.0)
    codes, sound = spoken(omni, captured(omni, conversation, tmp_path / "inputs.safetensors"))
    assert torch.equal(codes, expected)
    assert torch.equal(sound, expected_sound)


@pytest.mark.parametrize("impl", ["native", "transformers"])
def test_through_the_command_line(impl: str, omni: Omni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def talkerviz(*args: object) -> None:
        monkeypatch.setattr(sys, "argv", ["talkerviz", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code

    picture, text, file = omni.pictures[0], "What is it?", tmp_path / "inputs.safetensors"
    asked = ("--system", "Be kind.", "--image", picture, "--text", text, "--max-new-tokens", ANSWER, "--device", "cpu")
    talkerviz("capture", "--checkpoint", omni.directory, *asked, "-o", file)
    out = ("--codes", tmp_path / "codes.json", "-o", tmp_path / "run.parquet")
    run = ("--checkpoint", omni.directory, "--inputs", file, "--impl", impl, "--frames", FRAMES, "--device", "cpu")
    talkerviz("trace", *run, "--no-flow", *out)
    conversation = [{"role": "system", "content": "Be kind."}, user(picture, text)]
    expected, _ = through_transformers(omni, conversation, talker_repetition_penalty=1.0)
    assert json.loads((tmp_path / "codes.json").read_text()) == expected.tolist()
