"""Fields of a talker's config.json, missing ones included, mean what they mean to transformers."""

from __future__ import annotations

import copy
import json
from dataclasses import MISSING, fields
from importlib import resources
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import (
    Qwen3OmniMoeCode2WavConfig,
    Qwen3OmniMoeTalkerCodePredictorConfig,
    Qwen3OmniMoeTalkerConfig,
    Qwen3OmniMoeTalkerTextConfig,
)

from talkerviz.talker import Scenario, TalkerConfig, build_talker, preset, run
from talkerviz.talker.kernels import check_kernels
from talkerviz.talker.model.code2wav import code2wav_config_from
from talkerviz.talker.model.config import CodePredictorConfig, TextConfig

FILE = resources.files("talkerviz.talker.model").joinpath("qwen3_omni_talker_config.json")
# Fields that transformers derives from others, or keeps elsewhere.
DERIVED = {"head_dim", "mrope_section", "rope_theta", "shared_expert_intermediate_size"}


def published() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(FILE.read_text())
    return data


def small(text: dict[str, Any] | None = None, predictor: dict[str, Any] | None = None, groups: int = 4) -> Any:
    """A config.json of a tiny talker, with these fields changed in its two stacks."""
    data = published()
    talker = data["talker_config"]
    talker |= {"num_code_groups": groups, "thinker_hidden_size": 48}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    rope = {"rope_theta": 10_000.0, "rope_type": "default"}
    talker["text_config"] = {
        **sizes,
        "vocab_size": 3072,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
        "norm_topk_prob": True,
        "rope_parameters": {**rope, "mrope_section": [2, 1, 1]},
        **(text or {}),
    }
    talker["code_predictor_config"] = {
        **sizes,
        "vocab_size": 256,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_code_groups": groups,
        "rope_parameters": rope,
        **(predictor or {}),
    }
    return data


def fill(talker: nn.Module) -> nn.Module:
    """Draw biases, which are zero in random weights, the same for a name."""
    for index, (name, parameter) in enumerate(sorted(talker.named_parameters())):
        if name.endswith("bias"):
            parameter.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(index))
    return talker


def codes(data: Any, impl: str, frames: int = 5) -> torch.Tensor:
    config = TalkerConfig.from_dict(data)
    return run(fill(build_talker(config, impl)), impl, Scenario(frames=frames), config)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (TextConfig, Qwen3OmniMoeTalkerTextConfig),
        (CodePredictorConfig, Qwen3OmniMoeTalkerCodePredictorConfig),
        (TalkerConfig, Qwen3OmniMoeTalkerConfig),
    ],
)
def test_defaults_are_those_of_transformers(ours: Any, theirs: Any) -> None:
    expected = theirs(rope_parameters={"rope_type": "default"}) if "rope_parameters" in vars(theirs) else theirs()
    compared = [f for f in fields(ours) if hasattr(expected, f.name) and f.name not in DERIVED]
    assert len(compared) >= 10
    for field in compared:
        assert field.name == "speaker_id" or field.default == getattr(expected, field.name), field.name
    if ours is not TalkerConfig:
        assert expected.rope_parameters["rope_theta"] == ours.rope_theta


def test_code2wav_defaults_are_those_of_transformers() -> None:
    expected = Qwen3OmniMoeCode2WavConfig(rope_parameters={"rope_type": "default"}).to_dict()
    config = code2wav_config_from({}).to_dict()
    for name in ("upsample_rates", "upsampling_ratios"):
        expected[name], config[name] = list(expected[name]), list(config[name])
    assert config == expected


@pytest.mark.parametrize("section", ["text_config", "code_predictor_config", None])
def test_each_missing_field_is_its_default(section: str | None) -> None:
    talker = published()["talker_config"]
    cls: Any = {"text_config": TextConfig, "code_predictor_config": CodePredictorConfig, None: TalkerConfig}[section]
    with_default = [
        f for f in fields(cls) if f.default is not MISSING and f.name in (talker[section] if section else talker)
    ]
    assert with_default
    for field in with_default:
        data = published()
        del (data["talker_config"][section] if section else data["talker_config"])[field.name]
        if field.name == "num_code_groups":  # both sections have it
            data["talker_config"]["num_code_groups"] = data["talker_config"]["code_predictor_config"][
                "num_code_groups"
            ] = 32
        if field.name.startswith("codec_"):
            data["talker_config"]["text_config"]["vocab_size"] = 5000
        config = TalkerConfig.from_dict(data)
        part: Any = {"text_config": config.text, "code_predictor_config": config.code_predictor, None: config}[section]
        assert getattr(part, field.name) == field.default


def test_head_dim_of_the_decoder_comes_from_its_width() -> None:
    data = published()
    del data["talker_config"]["text_config"]["head_dim"]
    data["talker_config"]["text_config"] |= {"num_attention_heads": 8}
    assert TalkerConfig.from_dict(data).text.head_dim == 1024 // 8


@pytest.mark.parametrize("value", [True, False, None])
def test_norm_topk_prob_equals_transformers(value: bool | None) -> None:
    data = small({"norm_topk_prob": value})
    if value is None:
        del data["talker_config"]["text_config"]["norm_topk_prob"]
    config = TalkerConfig.from_dict(data)
    assert config.text.norm_topk_prob is bool(value)
    assert torch.equal(codes(data, "native"), codes(data, "transformers"))
    assert torch.equal(codes(data, "native"), codes(small({"norm_topk_prob": True}), "native")) is bool(value)


@pytest.mark.parametrize("stack", ["text", "predictor"])
def test_attention_bias_equals_transformers(stack: str) -> None:
    data = small(**{stack: {"attention_bias": True}})
    plain = build_talker(TalkerConfig.from_dict(small()))
    biased = build_talker(TalkerConfig.from_dict(data))
    added = {name for name, _ in biased.named_parameters()} - {name for name, _ in plain.named_parameters()}
    assert len(added) == 2 * 4
    assert all(name.endswith("_proj.bias") for name in added)
    assert torch.equal(codes(data, "native"), codes(data, "transformers"))
    assert not torch.equal(codes(data, "native"), codes(small(), "native"))


@pytest.mark.parametrize(
    ("text", "predictor", "message"),
    [
        ({"attention_bias": True}, {}, "attention_bias is true"),
        ({}, {"attention_bias": True}, "attention_bias is true"),
        ({"norm_topk_prob": False}, {}, "norm_topk_prob is false"),
    ],
)
def test_fused_kernels_refuse_other_architectures(text: Any, predictor: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"fused kernels .*{message}: leave out --fused"):
        check_kernels(torch.device("cuda"), TalkerConfig.from_dict(small(text, predictor)))
    check_kernels(torch.device("cuda"), preset("tiny"))


@given(
    norm=st.booleans(),
    biases=st.tuples(st.booleans(), st.booleans()),
    heads=st.sampled_from([(4, 2), (4, 4), (2, 1)]),
    top_k=st.integers(1, 6),
    groups=st.integers(3, 5),
)
@settings(max_examples=8, deadline=None)
def test_random_configs_equal_transformers(
    norm: bool, biases: tuple[bool, bool], heads: tuple[int, int], top_k: int, groups: int
) -> None:
    shared = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1]}
    data = small(
        {**shared, "norm_topk_prob": norm, "attention_bias": biases[0], "num_experts_per_tok": top_k},
        {**shared, "attention_bias": biases[1]},
        groups,
    )
    assert torch.equal(codes(copy.deepcopy(data), "native", 3), codes(data, "transformers", 3))
