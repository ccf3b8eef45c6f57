"""Several prompts at once, frames as they come, and prompts with pictures in them."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_examples import examples
from talker_parity import CONFIG, SPEECH, talker
from talker_prompts import a_prompt, ending_talker, picture
from torch import Tensor

from talkerviz.talker import GREEDY, Prompt, Sampling, Scenario, assemble_prompt, generate, scenario_inputs
from talkerviz.talker.generation.generate import stream
from talkerviz.talker.generation.transformers_generate import generate_transformers
from talkerviz.talker.model.cache import KVCache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@settings(max_examples=examples(4), deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 14), st.integers(5, 9)), min_size=1, max_size=4),
    sampling=st.sampled_from([GREEDY, SPEECH]),
)
def test_a_batch_speaks_as_its_rows_do_alone(
    dtype: torch.dtype, lengths: list[tuple[int, int]], sampling: Sampling
) -> None:
    model = talker("tiny", "native", dtype=dtype)
    prompts = [prompt_of(model, pair, seed, dtype) for seed, pair in enumerate(lengths)]
    together = generate(model, prompts, 7, sampling, ignore_eos=True)
    alone = [generate(model, prompt, 7, sampling, ignore_eos=True) for prompt in prompts]
    assert len(together) == len(alone)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(together, alone, strict=True))


def prompt_of(model: Any, lengths: tuple[int, int], seed: int, dtype: torch.dtype) -> Prompt:
    scenario = Scenario(prompt_tokens=lengths[0], text_tokens=lengths[1], seed=seed)
    return assemble_prompt(model, CONFIG, scenario_inputs(scenario, CONFIG, "cpu", dtype), CONFIG.speaker("ethan"))


def test_takes_of_a_prompt_differ_by_their_seeds_and_are_those_of_the_prompt_alone() -> None:
    model = talker("tiny", "native")
    prompt = a_prompt(model)
    takes = generate(model, [prompt] * 3, 5, SPEECH, seeds=[7, 8, 7], ignore_eos=True)
    assert torch.equal(takes[0], takes[2])
    assert not torch.equal(takes[0], takes[1])
    for take, seed in zip(takes, (7, 8, 7), strict=True):
        assert torch.equal(take, generate(model, prompt, 5, replace(SPEECH, seed=seed), ignore_eos=True))


def test_each_prompt_has_a_seed() -> None:
    model = talker("tiny", "native")
    with pytest.raises(ValueError, match="1 seeds for 2 prompts: give one for each"):
        generate(model, [a_prompt(model)] * 2, 2, SPEECH, seeds=[1])


def test_no_prompts_have_no_codes() -> None:
    assert generate(talker("tiny", "native"), [], 2) == []


def test_a_cache_grows_with_the_speech_and_keeps_what_it_has() -> None:
    config = CONFIG.text
    cache = KVCache(config, torch.device("cpu"), torch.float32, positions=4)
    drawn = torch.Generator().manual_seed(0)
    written = torch.randn(2, 1, config.num_key_value_heads, 11, config.head_dim, generator=drawn)
    for position in range(11):
        keys, values = written[:, :, :, position : position + 1]
        for layer in cache.layers(1):
            layer.update(keys, values)
        cache.advance(1)
    assert cache.keys.shape[3] == 16
    for keys, values in zip(cache.keys, cache.values, strict=True):
        assert torch.equal(keys[:, :, :11], written[0])
        assert torch.equal(values[:, :, :11], written[1])


def test_each_row_ends_with_its_own_speech() -> None:
    prompts = [a_prompt(talker("tiny", "native"), pair, seed) for seed, pair in enumerate([(11, 20), (4, 7), (9, 12)])]
    model = ending_talker(prompts)
    together = generate(model, prompts, 6)
    alone = [generate(model, prompt, 6) for prompt in prompts]
    assert [len(codes) for codes in together] == [len(codes) for codes in alone]
    assert len(together[0]) == 2
    assert max(map(len, together)) > 2
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(together, alone, strict=True))


def test_a_stream_gives_the_frames_one_by_one() -> None:
    model = talker("tiny", "native")
    prompt = a_prompt(model)
    coming = stream(model, [prompt], 5, SPEECH, ignore_eos=True)
    codes = [frame.codes for frame in coming]
    assert torch.equal(torch.cat(codes), generate(model, prompt, 5, SPEECH, ignore_eos=True))


def test_a_stream_says_who_speaks_and_stops_when_nobody_does() -> None:
    prompts = [a_prompt(talker("tiny", "native"), (11, 20), seed) for seed in (0, 0, 1)]
    model = ending_talker(prompts)
    speaking = [frame.rows for frame in stream(model, prompts, 4)]
    assert speaking[:3] == [(0, 1, 2), (0, 1, 2), (2,)]
    assert len(list(stream(model, prompts[:2], 4))) == 2


@pytest.mark.skipif(version("transformers") < "5.24", reason="transformers' talker makes its own of such positions")
@pytest.mark.parametrize("positions", [picture(2, 2, 3, 3), picture(1, 3, 2, 4).float(), picture(4, 1, 7, 0)])
def test_pictures_have_three_positions_as_in_transformers(positions: Tensor) -> None:
    native, transformers = talker("tiny", "native"), talker("tiny", "transformers")
    plain = a_prompt(native)
    prompt = a_prompt(native, positions=positions)
    codes = generate(native, prompt, 6, ignore_eos=True)
    assert torch.equal(codes, generate_transformers(transformers, CONFIG, prompt, 6, ignore_eos=True))
    assert not torch.equal(codes, generate(native, plain, 6, ignore_eos=True))


def test_pictures_in_a_batch() -> None:
    model = talker("tiny", "native")
    prompts = [a_prompt(model, positions=picture(2, 2, 3, 3)), a_prompt(model, (5, 9), 1)]
    together = generate(model, prompts, 6, ignore_eos=True)
    alone = [generate(model, prompt, 6, ignore_eos=True) for prompt in prompts]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(together, alone, strict=True))
