"""What is kept of a thinker's answer, the file it is kept in, and the commands that write and read it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import talkerviz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis_examples import examples
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_omni import THINKER_WIDTH, tiny_omni, tiny_omni_config
from tiny_processor import (
    Image,
    copy_ending_at,
    save_tiny_processor,
    soundfile,
    token_ids,
    user,
    write_picture,
    write_sound,
)
from torch import Tensor

from talkerviz.api import Trace
from talkerviz.talker import Scenario, preset, scenario_inputs
from talkerviz.talker.files.thinker_file import read_inputs, write_inputs
from talkerviz.talker.generation.prompt import ThinkerOutputs
from talkerviz.talker.thinker import chat_inputs as conversation_module
from talkerviz.talker.thinker.chat_inputs import Turn, load_processor, read_audio, read_image, thinker_inputs
from talkerviz.talker.thinker.thinker_capture import Answer, capture_answer

Capture = pytest.CaptureFixture[str]
TINY = preset("tiny")


@pytest.fixture(scope="module")
def omni(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole Qwen3-Omni with its processor, and a sound and a picture beside it."""
    directory = tmp_path_factory.mktemp("omni")
    model = tiny_omni()
    model.save_pretrained(directory)
    save_tiny_processor(directory, model.config)
    write_sound(directory / "sound.wav")
    write_picture(directory / "picture.png")
    return directory


def answer_to(omni: Path, *conversation: Turn, **options: Any) -> Answer:
    return capture_answer(omni, conversation, **{"max_new_tokens": 6, **options})


def test_tokens_have_the_ids_that_the_config_says(omni: Path) -> None:
    processor = load_processor(omni)
    known = token_ids(tiny_omni_config())
    assert {token: processor.tokenizer.convert_tokens_to_ids(token) for token in known} == known
    prompt = thinker_inputs(processor, [user("Hi", omni / "sound.wav", omni / "picture.png")])["input_ids"][0].tolist()
    assert prompt[:2] == [known["<|im_start|>"], known["user"]]
    assert prompt[-3:-1] == [known["<|im_start|>"], known["assistant"]]
    assert prompt.count(known["<|audio_pad|>"]) == 10  # 13 a second
    assert prompt.count(known["<|image_pad|>"]) > 1


def test_only_the_users_turns_are_kept(omni: Path) -> None:
    conversation = [
        {"role": "system", "content": "Be kind to the user."},
        user("Hi."),
        {"role": "assistant", "content": "Hello, user."},
        user("And now?"),
    ]
    answer = answer_to(omni, *conversation)
    tokenizer = load_processor(omni).tokenizer
    turns = ("Hi.", "And now?")
    expected = "".join(f"<|im_start|>user\n{text}<|im_end|>\n" for text in turns)
    assert tokenizer.decode(answer.user_ids[0]) == expected
    assert tokenizer.decode(answer.assistant_ids[0, :3]) == "<|im_start|>assistant\n"
    tokens = answer.user_ids.shape[1]
    thinker = answer.thinker
    assert thinker.user.shape == thinker.user_hidden.shape == (1, tokens, THINKER_WIDTH)
    assert thinker.assistant.shape == (1, answer.assistant_ids.shape[1], THINKER_WIDTH)
    assert not thinker.multimodal.any()
    assert thinker.positions is not None
    assert thinker.positions.tolist() == [[list(range(tokens))]] * 3


def test_text_is_kept_as_embedded_and_media_as_understood(omni: Path) -> None:
    answer = answer_to(omni, user(omni / "sound.wav", omni / "picture.png", "What is it?"))
    known = token_ids(tiny_omni_config())
    table = load_file(omni / "model.safetensors")["thinker.model.embed_tokens.weight"]
    thinker, embedded = answer.thinker, table[answer.user_ids]
    read = ~thinker.multimodal
    assert torch.equal(thinker.user[read], embedded[read])
    assert not thinker.user[~read].eq(embedded[~read]).all(-1).any()
    assert answer.user_ids[~read].unique().tolist() == [known["<|audio_pad|>"], known["<|image_pad|>"]]
    assert torch.equal(thinker.assistant, table[answer.assistant_ids])
    assert torch.equal(thinker.special[0], table[[known[f"<tts_{name}>"] for name in ("text_bos", "text_eod", "pad")]])
    assert not thinker.user_hidden.eq(thinker.user).all(-1).any()


def test_a_picture_has_positions_on_three_axes(omni: Path) -> None:
    conversation = [user("Look", omni / "picture.png", "!")]
    answer = answer_to(omni, *conversation)
    _, height, width = thinker_inputs(load_processor(omni), conversation)["image_grid_thw"][0].tolist()
    rows, columns = height // 2, width // 2  # 2x2 patches are a token
    assert rows != columns
    assert answer.thinker.positions is not None
    seen = answer.thinker.multimodal[0]
    time, down, across = answer.thinker.positions[:, 0, seen]
    begin = int(seen.nonzero()[0])
    assert time.tolist() == [begin] * rows * columns
    assert down.tolist() == [begin + row for row in range(rows) for _ in range(columns)]
    assert across.tolist() == [begin + column for _ in range(rows) for column in range(columns)]
    after = answer.thinker.positions[:, 0, begin + rows * columns :]
    assert after.tolist() == [list(range(begin + max(rows, columns), begin + max(rows, columns) + after.shape[1]))] * 3


def test_an_answer_ends_or_is_cut(omni: Path, tmp_path: Path) -> None:
    tokenizer = load_processor(omni).tokenizer
    cut = answer_to(omni, user("Hi there."), max_new_tokens=12)
    assert not cut.finished
    said = cut.assistant_ids[0, 3:].tolist()
    # The last of the 12 was never read.
    assert len(said) == 11
    assert cut.answer.startswith(tokenizer.decode(said, skip_special_tokens=True))
    end = next(token for place, token in enumerate(said) if place > 2 and token not in said[:place])
    ended = answer_to(copy_ending_at(omni, tmp_path / "ends", end), user("Hi there."), max_new_tokens=12)
    assert ended.finished
    assert ended.assistant_ids[0, 3:].tolist() == said[: said.index(end)]
    assert torch.equal(ended.thinker.assistant, cut.thinker.assistant[:, : ended.assistant_ids.shape[1]])


def test_it_is_greedy_whatever_the_checkpoint_says(omni: Path) -> None:
    conversation = [user("Hi")]
    expected = answer_to(omni, *conversation).assistant_ids
    said = omni / "generation_config.json"
    before = said.read_text()
    said.write_text(json.dumps({"do_sample": True, "temperature": 5.0, "repetition_penalty": 9.0, "max_length": 3}))
    try:
        assert torch.equal(answer_to(omni, *conversation).assistant_ids, expected)
    finally:
        said.write_text(before)


def test_it_is_what_the_real_processor_gives(omni: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="transformers' whole processor needs it")
    from transformers import Qwen3OmniMoeProcessor

    settings = json.loads((omni / "preprocessor_config.json").read_text())
    video = omni / "video_preprocessor_config.json"
    video.write_text(json.dumps({**settings, "video_processor_type": "Qwen2VLVideoProcessor"}))
    conversation = [user(write_sound(tmp_path / "s.wav", rate=22050), omni / "picture.png", "What?")]
    expected = thinker_inputs(Qwen3OmniMoeProcessor.from_pretrained(omni), conversation)
    found = thinker_inputs(load_processor(omni), conversation)
    video.unlink()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_sound_is_mixed_and_resampled(tmp_path: Path) -> None:
    seconds = np.arange(44100) / 44100
    tone = np.sin(2 * np.pi * 440 * seconds)
    soundfile.write(tmp_path / "tone.wav", np.stack((tone, np.zeros_like(tone)), axis=1), 44100, subtype="FLOAT")
    heard = read_audio(tmp_path / "tone.wav", 16000)
    assert heard.dtype == np.float32
    assert heard.shape == (16000,)
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000) / 2
    assert np.abs(heard - expected)[1000:-1000].max() < 1e-3


def drawn() -> ThinkerOutputs:
    """Random outputs of a thinker, some of them of a picture."""
    thinker = scenario_inputs(Scenario(), TINY, "cpu", torch.float32)
    tokens = thinker.user.shape[1]
    multimodal = torch.zeros(1, tokens, dtype=torch.bool)
    multimodal[0, 4:8] = True
    places = torch.arange(tokens)
    return replace(thinker, multimodal=multimodal, positions=torch.stack((places, places // 2, places % 5))[:, None])


def write(path: Path, thinker: ThinkerOutputs) -> Path:
    ids = [torch.arange(part.shape[1])[None] for part in (thinker.user, thinker.assistant)]
    write_inputs(path, thinker, *ids, {"answer": "Hello."})
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_file_gives_back_what_was_written(dtype: torch.dtype, tmp_path: Path) -> None:
    thinker = drawn()
    file = write(tmp_path / "inputs.safetensors", thinker)
    found = read_inputs(file, TINY, "cpu", dtype)
    for name, expected in vars(thinker).items():
        wanted = expected.to(dtype) if expected.is_floating_point() else expected
        assert torch.equal(getattr(found, name), wanted), name
        assert getattr(found, name).dtype == wanted.dtype
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"answer": "Hello."}


def change(**tensors: Tensor | None) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Return a file's tensors with some of them others, or left out."""
    return lambda found: {name: tensor for name, tensor in {**found, **tensors}.items() if tensor is not None}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (change(user_hidden=None), "has no tensor 'user_hidden'"),
        (change(position=torch.zeros(3)), "tensor 'position' is not one of special, user"),
        (change(user=torch.zeros(1, 11, 64)), "tensor 'user' is 64 wide: this talker's thinker is 96 wide"),
        (change(special=torch.zeros(1, 2, 96)), "tensor 'special' has shape [1, 2, 96], not [1, 3, 96]"),
        (change(user=torch.zeros(11, 96)), "tensor 'user' has shape [11, 96], not [1, P, 96]"),
        (change(user_hidden=torch.zeros(1, 9, 96)), "tensor 'user_hidden' has shape [1, 9, 96], not [1, 11, 96]"),
        (change(positions=torch.zeros(1, 11).long()), "tensor 'positions' has shape [1, 11], not [3, 1, 11]"),
        (change(positions=torch.zeros(3, 1, 11)), "tensor 'positions' is F32, not I64"),
        (change(positions=torch.full((3, 1, 11), -1)), "tensor 'positions' has values below 0"),
        (change(multimodal=torch.zeros(1, 11).long()), "tensor 'multimodal' is I64, not BOOL"),
        (change(special=torch.zeros(1, 3, 96).double()), "tensor 'special' is F64, not F32 or BF16 or F16"),
        (change(assistant=torch.zeros(1, 3, 96)), "tensor 'assistant' has 3 tokens: 4 or more are needed"),
        (change(user=torch.zeros(1, 0, 96)), "tensor 'user' has 0 tokens: 1 or more are needed"),
        (change(user=torch.full((1, 11, 96), torch.nan)), "tensor 'user' has NaN or infinite values"),
    ],
)
def test_what_does_not_fit_is_named(changed: Callable[..., dict[str, Tensor]], says: str, tmp_path: Path) -> None:
    file = write(tmp_path / "inputs.safetensors", drawn())
    save_file({name: tensor.contiguous() for name, tensor in changed(load_file(file)).items()}, file)
    with pytest.raises(ValueError, match=r"inputs\.safetensors: ") as raised:
        read_inputs(file, TINY, "cpu", torch.float32)
    assert says in str(raised.value)


@given(st.data())
@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_a_value_error(tmp_path: Path, data: st.DataObject) -> None:
    whole = write(tmp_path / "whole.safetensors", drawn()).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for place in data.draw(st.lists(st.integers(0, header), max_size=4)):
        if place < len(damaged):
            damaged[place] = data.draw(st.integers(0, 255))
    file = tmp_path / "damaged.safetensors"
    file.write_bytes(damaged)
    try:
        read_inputs(file, TINY, "cpu", torch.float32)
    except ValueError as error:
        named = str(file) in str(error)
    else:
        named = True
    assert named


def test_capture_says_what_it_wrote(
    omni: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    file = tmp_path / "inputs.safetensors"
    said = ("--audio", omni / "sound.wav", "--image", omni / "picture.png", "--text", "What?", "--system", "Be brief.")
    limits = ("--max-new-tokens", 3, "--dtype", "bfloat16", "--device", "cpu")
    assert talkerviz(monkeypatch, "capture", "--checkpoint", omni, *said, *limits, "-o", file) == 0
    shown = capsys.readouterr()
    assert not shown.err
    assert all(line.isprintable() for line in shown.out.splitlines())
    tensors = load_file(file)
    tokens, heard = tensors["user_ids"].shape[1], int(tensors["multimodal"].sum())
    assert f"{tokens} tokens of the user, {heard} of them audio or images, 5 of the answer -> {file}" in shown.out
    assert "--max-new-tokens 3 ended it" in shown.out
    assert tensors["user"].dtype == torch.bfloat16
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["accept_hidden_layer"] == "1"


BAD_CAPTURES = {
    "nothing": ([], "no input: give --text, --audio or --image"),
    "no such file": (["--audio", "absent.wav"], "absent.wav: no such file"),
    "no sound": (["--audio", "{omni}/picture.png"], "picture.png: not a readable audio file"),
    "no picture": (["--image", "{omni}/sound.wav"], "sound.wav: not a readable image"),
    "meta": (["--text", "Hi", "--device", "meta"], "--device meta: it computes no values"),
    "no folder": (["--text", "Hi", "--checkpoint", "absent"], "absent: no such folder"),
    "no place": (["--text", "Hi", "-o", "absent/inputs.safetensors"], "absent/inputs.safetensors: no such folder"),
    "a placeholder": (["--text", "Is <|image_pad|> one?"], "<|image_pad|>"),
}


@pytest.mark.parametrize("name", BAD_CAPTURES)
def test_bad_captures_are_one_line(
    name: str, omni: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    given, says = BAD_CAPTURES[name]
    args = ["--checkpoint", str(omni), "-o", str(tmp_path / "inputs.safetensors"), *given]
    args = [arg.format(omni=omni) for arg in args]
    assert talkerviz(monkeypatch, "capture", *args) == 2
    shown = capsys.readouterr().err
    assert says in shown
    assert len(shown.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_sound_too_short(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"s\.wav: has 800 samples at 16000 Hz: less than 0\.1 s is too short"):
        read_audio(write_sound(tmp_path / "s.wav", seconds=0.05), 16000)


def test_a_missing_package_is_named(omni: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation_module, "find_spec", lambda name: None if name == "soxr" else object())
    with pytest.raises(ValueError, match=r"capture needs soxr: pip install 'talkerviz\[capture\]'"):
        load_processor(omni)


def copied(omni: Path, to: Path, *left_out: str) -> Path:
    """Return the checkpoint's files but some."""
    to.mkdir()
    for file in omni.iterdir():
        if file.name not in left_out:
            (to / file.name).write_bytes(file.read_bytes())
    return to


def test_the_thinkers_weights_alone_are_enough(omni: Path, tmp_path: Path) -> None:
    tensors = load_file(omni / "model.safetensors")
    thinker = {name: tensor for name, tensor in tensors.items() if name.startswith("thinker.")}
    part = copied(omni, tmp_path / "part", "model.safetensors")
    save_file(thinker, part / "model.safetensors", {"format": "pt"})
    expected = answer_to(omni, user("Hi"))
    found = answer_to(part, user("Hi"))
    assert torch.equal(found.assistant_ids, expected.assistant_ids)
    assert torch.equal(found.thinker.user_hidden, expected.thinker.user_hidden)


def test_weights_that_are_missing_are_named(omni: Path, tmp_path: Path) -> None:
    tensors = load_file(omni / "model.safetensors")
    del tensors["thinker.model.layers.1.self_attn.q_proj.weight"]
    part = copied(omni, tmp_path / "part", "model.safetensors")
    save_file(tensors, part / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"part: 1 of the thinker's tensors .*layers\.1\.self_attn\.q_proj\.weight"):
        answer_to(part, user("Hi"))


@pytest.mark.parametrize(
    ("left_out", "says"),
    [
        ("model.safetensors", "has neither model.safetensors nor model.safetensors.index.json"),
        ("config.json", r"config\.json: no such file"),
        ("tokenizer.json", "its processor cannot be loaded"),
        ("preprocessor_config.json", "its processor cannot be loaded"),
        ("chat_template.jinja", "its processor cannot be loaded: there is no chat template"),
    ],
)
def test_a_file_of_the_checkpoint_is_missing(left_out: str, says: str, omni: Path, tmp_path: Path) -> None:
    part = copied(omni, tmp_path / "part", left_out)
    with pytest.raises(ValueError, match=says):
        answer_to(part, user("Hi"))


@pytest.mark.parametrize("template", ["{{ raise_exception('no pictures') }}", "{% for %}"])
def test_a_chat_template_that_does_not_work(template: str, omni: Path, tmp_path: Path) -> None:
    part = copied(omni, tmp_path / "part", "model.safetensors")
    (part / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match="the chat template does not take this conversation: "):
        answer_to(part, user("Hi"))


def test_a_picture_is_upright(omni: Path, tmp_path: Path) -> None:
    picture = Image.open(omni / "picture.png")
    turned = picture.getexif()
    turned[0x0112] = 6  # Orientation: the first row is the right side
    picture.save(tmp_path / "turned.png", exif=turned)
    assert read_image(tmp_path / "turned.png").size == picture.size[::-1]


def test_nothing_to_say(omni: Path) -> None:
    # The first token that comes is the first to be spoken only once there is another.
    with pytest.raises(ValueError, match="the thinker's answer is empty"):
        answer_to(omni, user("Hi"), max_new_tokens=1)


def test_trace_speaks_the_inputs_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without positions: those of text are written.
    same = scenario_inputs(Scenario(seed=3), TINY, "cpu", torch.float32)
    file = write(tmp_path / "inputs.safetensors", same)
    small = ("--preset", "tiny", "--seed", 3, "--frames", 4, "--no-flow", "--device", "cpu")
    found = []
    for name, inputs in (("drawn", ()), ("read", ("--inputs", file))):
        out = ("--codes", tmp_path / f"{name}.json", "-o", tmp_path / f"{name}.parquet")
        assert talkerviz(monkeypatch, "trace", *small, *inputs, *out) == 0
        found.append(json.loads((tmp_path / f"{name}.json").read_text()))
    assert found[0] == found[1]
    traces = [Trace.load(tmp_path / f"{name}.parquet") for name in ("drawn", "read")]
    assert traces[0].facts["scenario"] == traces[1].facts["scenario"]
    assert "inputs" not in traces[0].facts
    assert traces[1].facts["inputs"] == str(file)


def test_the_lengths_in_the_facts_are_those_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thinker = scenario_inputs(Scenario(prompt_tokens=3, text_tokens=7), TINY, "cpu", torch.float32)
    file = write(tmp_path / "inputs.safetensors", thinker)
    args = ("--preset", "tiny", "--frames", 2, "--no-flow", "--device", "cpu", "--inputs", file)
    assert talkerviz(monkeypatch, "trace", *args, "-o", tmp_path / "run.parquet") == 0
    said = Trace.load(tmp_path / "run.parquet").facts["scenario"]
    assert (said["prompt_tokens"], said["text_tokens"]) == (3, 7)


def test_inputs_on_the_meta_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "inputs.safetensors", drawn())
    args = ("--preset", "tiny", "--frames", 2, "--no-flow", "--device", "meta", "--inputs", file)
    assert talkerviz(monkeypatch, "trace", *args, "-o", tmp_path / "run.parquet") == 0
    calls = Trace.load(tmp_path / "run.parquet").calls
    assert any(calls["path"].str.startswith("talker.hidden_projection"))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--prompt-tokens", "5"], "--prompt-tokens: --inputs says how many tokens there are"),
        (["--text-tokens", "5"], "--text-tokens: --inputs says how many tokens there are"),
        (["--preset", "lite"], "tensor 'special' is 96 wide: this talker's thinker is 2048 wide"),
        (["package:function"], "--inputs: only for `trace talker`, not for `trace call`"),
    ],
)
def test_inputs_that_do_not_apply(
    args: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    file = write(tmp_path / "inputs.safetensors", drawn())
    out = ("--device", "cpu", "-o", tmp_path / "run.parquet")
    assert talkerviz(monkeypatch, "trace", "--inputs", file, *args, *out) == 2
    shown = capsys.readouterr().err
    assert says in shown
    assert len(shown.splitlines()) == 1
