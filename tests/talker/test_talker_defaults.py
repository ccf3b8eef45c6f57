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
from transformers import Qwen3OmniMoeTalkerForConditionalGeneration
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import (
    Qwen3OmniMoeCode2WavConfig,
    Qwen3OmniMoeTalkerCodePredictorConfig,
    Qwen3OmniMoeTalkerConfig,
    Qwen3OmniMoeTalkerTextConfig,
)

from talkerviz.talker import (
    Prompt,
    Sampling,
    Scenario,
    TalkerConfig,
    assemble_prompt,
    build_talker,
    generate,
    generate_scenario,
    preset,
    scenario_inputs,
)
from talkerviz.talker.generation.sampling import sample_code, suppressed_codes
from talkerviz.talker.generation.transformers_generate import generate_transformers
from talkerviz.talker.kernels import check_kernels
from talkerviz.talker.model.code2wav_config import code2wav_config_from
from talkerviz.talker.model.config import CodePredictorConfig, TextConfig

FILE = resources.files("talkerviz.talker.model").joinpath("qwen3_omni_talker_config.json")
# Fields that transformers derives from others, or keeps elsewhere.
DERIVED = {"head_dim", "mrope_section", "rope_theta", "shared_expert_intermediate_size"}


def published() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(FILE.read_text())
    return data


def small(text: dict[str, Any] | None = None, predictor: dict[str, Any] | None = None, groups: int = 4) -> Any:
    """Return a config.json of a tiny talker, with these fields changed in its two stacks."""
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
    return generate_scenario(fill(build_talker(config, impl)), impl, Scenario(frames=frames), config)


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
    expected = Qwen3OmniMoeCode2WavConfig(rope_parameters={"rope_type": "default"})
    config = code2wav_config_from({})
    compared = [field.name for field in fields(config) if hasattr(expected, field.name)]
    assert len(compared) >= 14
    assert all(getattr(config, name) == getattr(expected, name) for name in compared)
    assert config.head_dim == expected.hidden_size // expected.num_attention_heads
    assert config.rope_theta == expected.rope_parameters["rope_theta"]


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


@pytest.mark.parametrize(
    ("text", "predictor"),
    [
        ({"sliding_window": 4096, "use_sliding_window": False}, {}),
        ({"sliding_window": 4096, "max_position_embeddings": 4096}, {"sliding_window": 2, "use_sliding_window": True}),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [0]}, {"sliding_window": 2}),
        ({}, {"sliding_window": 2, "layer_types": ["full_attention"] * 2, "max_window_layers": 0}),
    ],
)
def test_settings_without_effect_in_transformers_run(text: Any, predictor: Any) -> None:
    data = small(text, predictor)
    config = TalkerConfig.from_dict(data)
    talker = data["talker_config"]
    # As transformers reads the config.json, not as we write it for transformers.
    theirs = Qwen3OmniMoeTalkerConfig(**copy.deepcopy(talker))
    model: Any = Qwen3OmniMoeTalkerForConditionalGeneration._from_config(theirs).eval()
    model.load_state_dict(build_talker(config, "transformers").state_dict())
    native = build_talker(config)
    prompt = tiny_prompt(native, data)
    expected = generate_transformers(model, config, prompt, 5, ignore_eos=True)
    assert torch.equal(generate(native, prompt, 5, ignore_eos=True), expected)  # type: ignore[arg-type]


def tiny_prompt(talker: Any, data: Any) -> Prompt:
    config = TalkerConfig.from_dict(data)
    thinker = scenario_inputs(Scenario(), config, "cpu", torch.float32)
    return assemble_prompt(talker, config, thinker, config.speaker("ethan"))


@pytest.mark.parametrize(
    ("text", "predictor"),
    [
        ({"sliding_window": 3}, {}),
        ({"sliding_window": 3, "use_sliding_window": True}, {}),
        ({}, {"layer_types": ["full_attention", "sliding_attention"]}),
        ({}, {"sliding_window": 3, "max_window_layers": 1}),
    ],
)
def test_a_sliding_window_is_refused(text: Any, predictor: Any) -> None:
    with pytest.raises(ValueError, match=r"_config\.(layer_types|sliding_window)'.* not implemented"):
        TalkerConfig.from_dict(small(text, predictor))


def test_a_window_that_is_turned_off_has_no_effect() -> None:
    off = {"sliding_window": 3, "use_sliding_window": False}
    assert TalkerConfig.from_dict(small(off, off)) == TalkerConfig.from_dict(small())


@pytest.mark.parametrize(
    ("rope", "theta"),
    [
        ({"rope_parameters": None}, 10_000.0),
        ({"rope_parameters": None, "rope_theta": 500.0}, 500.0),
        ({"rope_parameters": None, "rope_theta": 500.0, "rope_scaling": {"type": "default"}}, 500.0),
        ({"rope_theta": 500.0, "rope_scaling": {"type": "default"}}, 500.0),
        ({"rope_scaling": {"rope_type": "default", "type": "linear", "rope_theta": 7.0}}, 7.0),
        ({"rope_scaling": {}, "rope_theta": 500.0}, 10_000.0),
    ],
)
def test_rope_of_old_files_is_read_as_transformers_reads_it(rope: Any, theta: float) -> None:
    data = small({}, rope)
    assert TalkerConfig.from_dict(data).code_predictor.rope_theta == theta
    section = copy.deepcopy(data["talker_config"]["code_predictor_config"])
    expected = Qwen3OmniMoeTalkerCodePredictorConfig(**section).rope_parameters
    assert (expected["rope_theta"], expected["rope_type"]) == (theta, "default")


@pytest.mark.parametrize("scaling", [{"type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}])
def test_scaled_rope_of_old_files_is_refused(scaling: Any) -> None:
    expected = Qwen3OmniMoeTalkerCodePredictorConfig(rope_theta=1e4, rope_scaling=dict(scaling)).rope_parameters
    assert expected["rope_type"] == "linear"
    for stack in ("text", "predictor"):
        with pytest.raises(ValueError, match="type' is 'linear': only 'default' is implemented"):
            TalkerConfig.from_dict(small(**{stack: {"rope_scaling": dict(scaling)}}))


def test_two_code_groups_equal_transformers() -> None:
    data = small(groups=2)
    assert codes(data, "native").shape == (5, 2)
    assert torch.equal(codes(data, "native"), codes(data, "transformers"))


def test_one_code_group_is_refused() -> None:
    with pytest.raises(ValueError, match="num_code_groups is below 2"):
        TalkerConfig.from_dict(small(groups=1))


def test_ignored_end_of_speech_is_never_generated_wherever_its_id_is() -> None:
    data = small()
    first = int(codes(data, "native", 1)[0, 0])
    data["talker_config"]["codec_eos_token_id"] = first
    config = TalkerConfig.from_dict(data)
    assert first < config.text.vocab_size - 1024
    assert first in suppressed_codes(config, ignore_eos=True)
    assert first not in suppressed_codes(config, ignore_eos=False)
    spoken = codes(data, "native")
    assert first not in spoken[:, 0].tolist()
    assert torch.equal(spoken, codes(data, "transformers"))
    talker = build_talker(config)
    assert len(generate(talker, tiny_prompt(talker, data), 5)) == 0  # type: ignore[arg-type]


def test_case_of_a_speaker_does_not_matter() -> None:
    data = small()
    data["talker_config"]["speaker_id"] = {"Zoe": 2301}
    config = TalkerConfig.from_dict(data)
    assert [config.speaker(name) for name in ("Zoe", "zoe", "ZOE")] == [2301] * 3
    with pytest.raises(ValueError, match="unknown speaker 'max': choose from Zoe"):
        config.speaker("max")


def test_top_k_of_0_keeps_all_codes() -> None:
    logits = torch.randn(1, 60, generator=torch.Generator().manual_seed(1))
    drawn = [
        sample_code(logits, Sampling(True, top_k=top_k), [torch.Generator().manual_seed(seed)])
        for top_k in (0, None)
        for seed in range(20)
    ]
    assert torch.equal(torch.cat(drawn[:20]), torch.cat(drawn[20:]))
    assert len(torch.cat(drawn).unique()) > 1
