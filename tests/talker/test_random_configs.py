"""The native talker against transformers', over configurations drawn at random: sizes, switches, prompts and samples.

Fifty for each dtype, and eight under hypothesis' `ci` profile. The example that fails is printed, with its seed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from talkerviz.talker import (
    GREEDY,
    Sampling,
    Scenario,
    TalkerConfig,
    assemble_prompt,
    build_talker,
    generate,
    preset,
    scenario_inputs,
)
from talkerviz.talker.generation.transformers_generate import generate_transformers

EXAMPLES = 8 if settings.get_current_profile_name() == "ci" else 50
FRAMES = 3


@st.composite
def stacks(draw: st.DrawFn, hidden: int) -> dict[str, Any]:
    """Draw the sizes that both stacks have."""
    key_value_heads = draw(st.integers(1, 3))
    return {
        "hidden_size": hidden,
        "intermediate_size": draw(st.integers(1, 9)) * 8,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_key_value_heads": key_value_heads,
        "num_attention_heads": key_value_heads * draw(st.integers(1, 3)),
        "head_dim": draw(st.integers(3, 12)) * 2,
        "rope_theta": draw(st.sampled_from([1e2, 1e4, 1e6])),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        "attention_bias": draw(st.booleans()),
        "hidden_act": draw(st.sampled_from(["silu", "gelu"])),
    }


@st.composite
def configs(draw: st.DrawFn) -> TalkerConfig:
    """Draw a config of a tiny talker; its vocabulary of first codes is the published one, whose ids it keeps."""
    base, hidden = preset("tiny"), draw(st.integers(2, 12)) * 8
    groups, experts = draw(st.integers(2, 6)), draw(st.integers(2, 7))
    text: dict[str, Any] = draw(stacks(hidden))
    half = text["head_dim"] // 2
    space = draw(st.integers(0, half // 3))
    text |= {
        "mrope_section": (half - 2 * space, space, space),
        "num_experts": experts,
        "num_experts_per_tok": draw(st.integers(1, experts)),
        "norm_topk_prob": draw(st.booleans()),
        "moe_intermediate_size": draw(st.integers(1, 5)) * 8,
        "shared_expert_intermediate_size": draw(st.integers(1, 5)) * 8,
    }
    predictor = {**draw(stacks(hidden)), "num_code_groups": groups, "vocab_size": draw(st.integers(60, 300))}
    return replace(
        base,
        text=replace(base.text, **text),
        code_predictor=replace(base.code_predictor, **predictor),
        num_code_groups=groups,
        thinker_hidden_size=draw(st.integers(2, 9)) * 8,
    )


@st.composite
def samplings(draw: st.DrawFn) -> Sampling:
    """Draw greedy decoding, or sampling of any kind."""
    if draw(st.booleans()):
        return GREEDY
    return Sampling(
        do_sample=True,
        temperature=draw(st.sampled_from([0.5, 0.9, 1.0, 1.5])),
        top_k=draw(st.sampled_from([None, 1, 50])),
        top_p=draw(st.sampled_from([0.3, 0.95, 1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.05, 2.0])),
        seed=draw(st.integers(0, 1000)),
    )


def with_biases(talker: nn.Module) -> nn.Module:
    """Draw biases, which are zero in random weights, the same for a name."""
    for index, (name, parameter) in enumerate(sorted(talker.named_parameters())):
        if name.endswith("bias"):
            parameter.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(index))
    return talker


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_codes_equal_transformers_and_rows_those_of_each_alone(dtype: torch.dtype) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, print_blob=True)
    @given(
        config=configs(),
        sampling=samplings(),
        lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(5, 9)), min_size=1, max_size=3),
        seed=st.integers(0, 10_000),
    )
    def check(config: TalkerConfig, sampling: Sampling, lengths: list[tuple[int, int]], seed: int) -> None:
        native, transformers = (
            with_biases(build_talker(config, impl, dtype=dtype, seed=seed)) for impl in ("native", "transformers")
        )
        prompts = []
        for number, (prompt_tokens, text_tokens) in enumerate(lengths):
            scenario = Scenario(prompt_tokens=prompt_tokens, text_tokens=text_tokens, seed=seed + number)
            thinker = scenario_inputs(scenario, config, "cpu", dtype)
            prompts.append(assemble_prompt(native, config, thinker, config.speaker("ethan")))
        together = generate(native, prompts, FRAMES, sampling, ignore_eos=True)  # type: ignore[call-overload]
        for prompt, codes in zip(prompts, together, strict=True):
            theirs = generate_transformers(transformers, config, prompt, FRAMES, sampling, ignore_eos=True)
            assert torch.equal(codes, theirs)

    check()
