"""Configs, presets and scenarios, and what they refuse."""

from __future__ import annotations

import copy
import json
from importlib import resources
from typing import Any

import pytest
import torch

from talkerviz.talker import PRESETS, Sampling, Scenario, TalkerConfig, default_dtype, preset, scenario_inputs

FILE = resources.files("talkerviz.talker.model").joinpath("qwen3_omni_talker_config.json")


def published() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(FILE.read_text())
    return data


def test_full_is_the_file() -> None:
    full = preset("full")
    assert full == TalkerConfig.from_dict(published())
    assert (full.text.num_experts, full.text.mrope_section) == (128, (24, 20, 20))
    assert full.speaker_id["ethan"] == 2302


def test_the_published_spelling_of_rope() -> None:
    data = published()
    text = data["talker_config"]["text_config"]
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope["rope_theta"], "rope_scaling": {"mrope_section": rope["mrope_section"]}}
    predictor = data["talker_config"]["code_predictor_config"]
    predictor |= {"rope_theta": predictor.pop("rope_parameters")["rope_theta"], "rope_scaling": None}
    assert TalkerConfig.from_dict(data) == preset("full")


@pytest.mark.parametrize(
    "key",
    [
        "talker_config",
        "talker_config.speaker_id",
        "talker_config.text_config.shared_expert_intermediate_size",
    ],
)
def test_missing_key_is_named(key: str) -> None:
    data = published()
    *path, last = key.split(".")
    section = data
    for part in path:
        section = section[part]
    del section[last]
    with pytest.raises(ValueError, match=f"config has no key '{key}'"):
        TalkerConfig.from_dict(data)


@pytest.mark.parametrize(("key", "value"), [("tie_word_embeddings", True), ("rope_type", "yarn")])
def test_other_architectures_are_refused(key: str, value: object) -> None:
    data = copy.deepcopy(published())
    text = data["talker_config"]["text_config"]
    (text["rope_parameters"] if key == "rope_type" else text)[key] = value
    with pytest.raises(ValueError, match=f"text_config.{key}' is {value!r}"):
        TalkerConfig.from_dict(data)


def test_presets() -> None:
    with pytest.raises(ValueError, match="unknown preset 'x': choose from tiny, lite, full"):
        preset("x")
    assert [default_dtype(name) for name in PRESETS] == [torch.float32, torch.float32, torch.bfloat16]
    for name in PRESETS:
        config = preset(name)
        assert (config.text.vocab_size, config.num_code_groups) == (3072, 16)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("prompt_tokens", 0, "prompt_tokens must be at least 1, not 0"),
        ("text_tokens", 4, "text_tokens must be at least 5, not 4"),
        ("frames", 0, "frames must be at least 1, not 0"),
        ("seed", -1, "seed must be at least 0, not -1"),
    ],
)
def test_bad_scenarios(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scenario(**{name: value})


def test_scenario_inputs() -> None:
    config = preset("tiny")
    first, again = (scenario_inputs(Scenario(), config, "cpu", torch.float32) for _ in range(2))
    assert torch.equal(first.assistant, again.assistant)
    assert first.special.shape == (1, 3, 96)
    assert first.user.shape == first.user_hidden.shape == (1, 11, 96)
    assert first.assistant.shape == (1, 20, 96)
    assert not first.multimodal.any()
    other = scenario_inputs(Scenario(seed=1), config, "cpu", torch.float32)
    assert not torch.equal(first.user, other.user)
    assert config.speaker("Ethan") == 2302
    with pytest.raises(ValueError, match="unknown speaker 'bob': choose from aiden, chelsie, ethan"):
        scenario_inputs(Scenario(speaker="bob"), config, "cpu", torch.float32)


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", 0), ("top_k", -1), ("top_p", 0), ("top_p", 1.5), ("repetition_penalty", 0)]
)
def test_bad_sampling(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        Sampling(**{name: value})
