"""Phases of codecs, vocoders and generators without a cache, beside a model that generates."""

from __future__ import annotations

from typing import Any

import torch
from taps import every_way
from torch import Tensor, nn

import talkerviz as tv


class Codec(nn.Module):
    """A codec whose methods are called, not itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.last = nn.Linear(4, 4)

    def encode(self, sound: Tensor) -> Tensor:
        return self._encode_piece(sound)

    def _encode_piece(self, sound: Tensor) -> Tensor:
        return self.last(self.first(sound))  # type: ignore[no-any-return]

    def decode(self, codes: Tensor) -> Tensor:
        return self.first(self.last(codes))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """A stack with a cache: its positions until now."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, inputs_embeds: Tensor, cache: list[Tensor] | None = None, use_cache: bool = True) -> Tensor:
        if cache is not None:
            cache.append(inputs_embeds)
        return self.layer(inputs_embeds)  # type: ignore[no-any-return]


class Refiner(nn.Module):
    """A generator without a cache that calls its `forward`, so that no call of it is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(4, 4)
        self.outside = nn.Linear(4, 4)
        self.between = nn.Linear(4, 4)

    def forward(self, codes: Tensor) -> Tensor:
        return self.outside(self.inside(codes))  # type: ignore[no-any-return]

    def generate(self, codes: Tensor, passes: int) -> Tensor:
        for _ in range(passes):
            codes = self.between(self.forward(codes))
        return codes


class Speaker(nn.Module):
    def __init__(self, codec: nn.Module) -> None:
        super().__init__()
        self.decoder = Decoder()
        self.refiner = Refiner()
        self.sound = codec

    def generate(self, prompt: Tensor, frames: int, after_each: Any = None, at_end: Any = None) -> None:
        cache: list[Tensor] = []
        embedded = prompt
        for _ in range(frames):
            embedded = self.decoder(embedded, cache=cache)[:, -1:]
            if after_each:
                after_each(embedded)
        if at_end:
            at_end(embedded)


def phases(model: nn.Module, run: Any, *paths: str) -> list[tuple[str, str, int | None]]:
    """Return the path, phase and frame of each call of some modules."""
    with torch.no_grad():
        calls = tv.record(model, run).calls
    calls = calls[calls["path"].isin([f"model.{path}" for path in paths])]
    frames = [
        None if frame is None else int(frame)
        for frame in calls["frame"].astype(object).where(calls["frame"].notna(), None)
    ]
    return [*zip(calls["path"].astype(str).str.removeprefix("model."), calls["phase"], frames, strict=True)]


PROMPT = torch.ones(1, 3, 4)


@every_way
def test_a_codecs_methods_are_encode_and_codec_and_of_no_frame(any_tap: str) -> None:
    model = Speaker(Codec())

    def run() -> None:
        prompt = model.sound.encode(PROMPT)
        model.generate(prompt, 2, at_end=model.sound.decode)

    assert phases(model, run, "decoder", "sound.first", "sound.last") == [
        ("sound.first", "encode", None),
        ("sound.last", "encode", None),
        ("decoder", "prefill", 0),
        ("decoder", "decode", 1),
        ("sound.last", "codec", None),
        ("sound.first", "codec", None),
    ]


def test_a_codec_between_frames_leaves_them_as_they_are() -> None:
    model = Speaker(Codec())
    assert phases(
        model, lambda: model.generate(PROMPT, 3, after_each=model.sound.decode), "decoder", "sound.first"
    ) == [
        ("decoder", "prefill", 0),
        ("sound.first", "codec", None),
        ("decoder", "decode", 1),
        ("sound.first", "codec", None),
        ("decoder", "decode", 2),
        ("sound.first", "codec", None),
    ]


def test_a_vocoder_is_known_by_its_name() -> None:
    model = Speaker(nn.Identity())
    model.mel2wav = nn.Linear(4, 4)
    assert phases(model, lambda: model.generate(PROMPT, 2, at_end=model.mel2wav), "decoder", "mel2wav")[-1] == (
        "mel2wav",
        "codec",
        None,
    )


def test_a_codec_that_is_called_as_an_encoder_is_one() -> None:
    class Tower(Codec):
        def forward(self, sound: Tensor) -> Tensor:
            return self.first(sound)  # type: ignore[no-any-return]

    model = Speaker(nn.Identity())
    model.audio_tower = Tower()

    def run() -> None:
        model.generate(model.audio_tower(PROMPT), 1, at_end=model.audio_tower.decode)

    assert phases(model, run, "audio_tower.first") == [
        ("audio_tower.first", "encode", None),
        ("audio_tower.first", "codec", None),
    ]


@every_way
def test_each_pass_of_a_generator_without_a_cache_is_a_frame_though_its_forward_is_called(any_tap: str) -> None:
    model = Speaker(Codec())

    def refine(codes: Tensor) -> None:
        model.refiner.generate(codes, 2)

    run = lambda: model.generate(PROMPT, 2, at_end=refine)  # noqa: E731
    assert phases(model, run, "decoder", "refiner.inside", "refiner.between") == [
        ("decoder", "prefill", 0),
        ("decoder", "decode", 1),
        ("refiner.inside", "forward", 2),
        ("refiner.between", "forward", 2),
        ("refiner.inside", "forward", 3),
        ("refiner.between", "forward", 3),
    ]


def test_a_generator_without_a_cache_that_is_called_makes_steps_of_the_frame_of_what_contains_it() -> None:
    class Outer(Decoder):
        def __init__(self) -> None:
            super().__init__()
            self.depth = Refiner()

        def generate(self, prompt: Tensor, frames: int) -> None:
            cache: list[Tensor] = []
            for _ in range(frames):
                prompt = self(prompt, cache=cache)[:, -1:]
                for _ in range(2):
                    prompt = self.depth(prompt)

    model = Outer()
    with torch.no_grad():
        calls = tv.record(model, lambda: model.generate(PROMPT, 2)).calls
    passes = calls[calls["path"].isin(["model", "model.depth"])]
    assert [*passes["phase"]] == ["prefill", *["depth.forward"] * 2, "decode", *["depth.forward"] * 2]
    assert [*passes["frame"]] == [0, 0, 0, 1, 1, 1]
    assert [*passes["step"].dropna()] == [0, 1, 0, 1]


def test_a_model_with_encode_and_decode_that_has_every_cache_is_no_codec() -> None:
    class Translator(Decoder):
        def encode(self, tokens: Tensor) -> Tensor:
            return tokens

        def decode(self, tokens: Tensor) -> Tensor:
            return tokens

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Translator()

        def generate(self, prompt: Tensor) -> None:
            cache: list[Tensor] = []
            for _ in range(2):
                prompt = self.model(prompt, cache=cache)[:, -1:]

    model = Wrapper()
    with torch.no_grad():
        calls = tv.record(model, lambda: model.generate(PROMPT)).calls
    assert [*calls.loc[calls["path"] == "model.model", "phase"]] == ["prefill", "decode"]
