"""Prompts, choosing codes, and when to stop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from talker_parity import CONFIG, SPEECH, talker, tiny_prompt
from torch import Tensor
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from talkerviz.talker import (
    Sampling,
    Scenario,
    assemble_prompt,
    build_talker,
    generate,
    generate_scenario,
    scenario_inputs,
)
from talkerviz.talker.generation.sampling import keep_top_k, keep_top_p, penalise_repeats, sample_code, suppressed_codes
from talkerviz.talker.generation.transformers_generate import generate_transformers


def random_logits(seed: int) -> Tensor:
    return torch.randn(1, 3072, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("seed", range(5))
def test_processors_equal_transformers(seed: int) -> None:
    logits = random_logits(seed)
    spoken = torch.randint(3072, (1, 30), generator=torch.Generator().manual_seed(seed))
    spoken[:, 5] = spoken[:, 0]
    for k in (1, 50, 5000):
        assert torch.equal(keep_top_k(logits, k), TopKLogitsWarper(k)(spoken, logits))
    for p in (1e-6, 0.5, 0.8, 0.999):
        assert torch.equal(keep_top_p(logits, p), TopPLogitsWarper(p)(spoken, logits))
    expected = RepetitionPenaltyLogitsProcessor(1.3)(spoken, logits.clone())
    known = torch.zeros_like(logits, dtype=torch.bool).scatter(1, spoken, True)
    assert torch.equal(penalise_repeats(logits, known, 1.3), expected)


@pytest.mark.parametrize("seed", range(3))
def test_choose_equals_transformers_warpers(seed: int) -> None:
    logits = random_logits(seed)
    empty = torch.empty(1, 0, dtype=torch.long)
    warped = TemperatureLogitsWarper(0.9)(empty, logits)
    warped = TopPLogitsWarper(0.95)(empty, TopKLogitsWarper(50)(empty, warped))
    expected = torch.multinomial(warped.softmax(-1), 1, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(sample_code(logits, SPEECH, [torch.Generator().manual_seed(seed)]), expected)


def test_suppressed_codes() -> None:
    assert suppressed_codes(CONFIG, ignore_eos=True) == list(range(2048, 3072))
    assert set(range(2048, 3072)) - set(suppressed_codes(CONFIG, ignore_eos=False)) == {2150}


@pytest.mark.parametrize("sampling", [SPEECH, Sampling(repetition_penalty=1.5)])
def test_sampled_codes_equal_transformers(sampling: Sampling) -> None:
    native, transformers = talker("tiny", "native"), talker("tiny", "transformers")
    prompt = tiny_prompt(native)
    # The CPU's global generator and an own one give the same numbers for a seed.
    codes = generate(native, prompt, 8, sampling, ignore_eos=True)
    expected = generate_transformers(transformers, CONFIG, prompt, 8, sampling, ignore_eos=True)
    assert torch.equal(codes, expected)
    assert torch.equal(codes, generate(native, prompt, 8, sampling, ignore_eos=True))


def test_transformers_leaves_the_global_generator_alone() -> None:
    model = talker("tiny", "transformers")
    torch.manual_seed(7)
    before = torch.get_rng_state()
    generate_transformers(model, CONFIG, tiny_prompt(model), 1, SPEECH)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_end_of_speech(after: int) -> None:
    """Make end-of-speech the code that greedy decoding chooses for frame `after`: frames before it are spoken."""
    native, transformers = (build_talker(CONFIG, impl) for impl in ("native", "transformers"))
    prompt = tiny_prompt(native)
    codes = generate(native, prompt, 6, ignore_eos=True)
    for model in (native, transformers):
        weight = model.codec_head.weight  # type: ignore[union-attr]
        # A little larger, it wins where the code it copies would have won.
        weight[CONFIG.codec_eos_token_id] = weight[codes[after, 0]] * 1.001  # type: ignore[index,operator]
    spoken = generate(native, prompt, 6)
    assert torch.equal(spoken, codes[:after])
    assert torch.equal(spoken, generate_transformers(transformers, CONFIG, prompt, 6))
    assert generate(native, prompt, 6, ignore_eos=True).shape == (6, 16)


@pytest.mark.parametrize("impl", ["native", "transformers"])
def test_on_frame_counts_frames(impl: str) -> None:
    seen: list[int] = []
    generate_scenario(talker("tiny", impl), impl, Scenario(frames=3), CONFIG, seen.append)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("impl", ["native", "transformers"])
def test_one_frame_and_the_shortest_scenario(impl: str) -> None:
    scenario = Scenario(prompt_tokens=1, text_tokens=5, frames=5, speaker="Aiden")
    codes = generate_scenario(talker("tiny", impl), impl, scenario, CONFIG)
    assert torch.equal(codes[:1], generate_scenario(talker("tiny", impl), impl, replace(scenario, frames=1), CONFIG))


def test_too_many_frames() -> None:
    with pytest.raises(ValueError, match="65537 positions: the talker has 65536"):
        generate(talker("tiny", "native"), tiny_prompt(talker("tiny", "native")), 65537 - 19)


def test_prompt_of_text() -> None:
    model = talker("tiny", "native")
    thinker = scenario_inputs(Scenario(), CONFIG, "cpu", torch.float32)
    prompt = assemble_prompt(model, CONFIG, thinker, 2302)
    assert prompt.inputs_embeds.shape == (1, 20, 64)
    assert prompt.trailing_text.shape == (1, 17, 64)
    assert prompt.tts_pad.shape == (1, 1, 64)

    text = model.text_projection(thinker.assistant)[0]
    bos, eos, pad = model.text_projection(thinker.special)[0]
    codec = model.model.codec_embedding.weight
    expected = [*model.text_projection(thinker.user)[0], *text[:3]]
    expected += [pad + codec[2155], pad + codec[2156], pad + codec[2157], pad + codec[2302]]
    expected += [bos + codec[2148], text[3] + codec[2149]]
    torch.testing.assert_close(prompt.inputs_embeds[0], torch.stack(expected))
    torch.testing.assert_close(prompt.trailing_text[0], torch.stack([*text[4:], eos]))
    torch.testing.assert_close(prompt.tts_pad[0, 0], pad)


@pytest.mark.parametrize("heard", [[2, 3, 7], list(range(11))])
def test_prompt_with_multimodal_positions(heard: list[int]) -> None:
    model = talker("tiny", "native")
    thinker = scenario_inputs(Scenario(), CONFIG, "cpu", torch.float32)
    text = assemble_prompt(model, CONFIG, thinker, 2302).inputs_embeds[0]
    mask = torch.zeros(1, 11, dtype=torch.bool)
    mask[0, heard] = True
    mixed = assemble_prompt(model, CONFIG, replace(thinker, multimodal=mask), 2302).inputs_embeds[0]
    sound = model.hidden_projection(thinker.user_hidden)[0]
    for position in range(20):
        expected = sound if position in heard else text
        torch.testing.assert_close(mixed[position], expected[position])


def test_prompt_needs_something_to_say() -> None:
    thinker = scenario_inputs(Scenario(), CONFIG, "cpu", torch.float32)
    short = replace(thinker, assistant=thinker.assistant[:, :3])
    with pytest.raises(ValueError, match="needs 4 tokens or more, not 3"):
        assemble_prompt(talker("tiny", "native"), CONFIG, short, 2302)


def test_runs_on_meta() -> None:
    codes = generate_scenario(build_talker(CONFIG, device="meta"), "native", Scenario(frames=3), CONFIG)
    assert codes.is_meta
    assert codes.shape == (3, 16)
