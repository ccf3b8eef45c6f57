"""Phases and requests of generation, from what happens to the cache."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from talker_parity import talker, tiny_prompt
from torch import nn

import talkerviz as tv
from talkerviz.analysis.frame_latency import frame_latencies, frame_summary
from talkerviz.recorder.phases.talker import TalkerPhases
from talkerviz.talker import generate

transformers = pytest.importorskip("transformers")
GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
LLAMA = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
IDS = torch.arange(3, 13)[None]


def lm(**sizes: Any) -> Any:
    torch.manual_seed(sizes.get("num_hidden_layers", 0))
    tokens = {"vocab_size": 32, "hidden_size": 16, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**(LLAMA | tokens | sizes))).eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return lm()


def passes(model: nn.Module, run: Callable[[], object], *paths: str) -> list[tuple[str, int | None, int]]:
    """Of the calls of each pass: their phase, their request, and how many there are in a row."""
    with torch.no_grad():
        calls = tv.record(model, run).calls
    calls = calls[calls["path"].isin(paths or ["model"])]
    rows = zip(calls["phase"], calls["request"].astype(object).where(calls["request"].notna(), None), strict=True)
    return [(phase, request, len(list(same))) for (phase, request), same in itertools.groupby(rows)]


def guess(number: int) -> torch.Tensor:
    return torch.randint(3, 30, (1, number))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"num_beams": 3},
        {"cache_implementation": "static"},
        {"attention_mask": torch.tensor([[0, 0, 0, *[1] * 7]])},
    ],
    ids=["greedy", "beams", "static cache", "left-padded"],
)
def test_a_prompt_is_prefill_and_each_further_token_decode(model: Any, more: dict[str, Any]) -> None:
    assert passes(model, lambda: model.generate(IDS, **GREEDY, **more)) == [("prefill", 0, 1), ("decode", 0, 5)]


def test_a_prompt_of_one_token_is_prefill(model: Any) -> None:
    assert passes(model, lambda: model.generate(IDS[:, :1], **GREEDY)) == [("prefill", 0, 1), ("decode", 0, 5)]


@pytest.mark.parametrize(("size", "pieces"), [(4, 3), (3, 4), (5, 2), (6, 2)])
def test_a_prompt_in_pieces_is_prefill_to_the_last(model: Any, size: int, pieces: int) -> None:
    found = passes(model, lambda: model.generate(IDS, prefill_chunk_size=size, **GREEDY))
    assert found == [("prefill", 0, pieces), ("decode", 0, 5)]


def test_guessed_tokens_are_checked_in_decode(model: Any) -> None:
    draft = lm(num_hidden_layers=1)
    prompt = IDS.repeat(1, 3)
    for options in ({"assistant_model": draft}, {"prompt_lookup_num_tokens": 3}):
        (prefill, decode) = passes(model, lambda more=options: model.generate(prompt, **GREEDY, **more))
        assert prefill == ("prefill", 0, 1)
        assert decode[:2] == ("decode", 0)


def test_a_draft_model_has_phases_and_requests_of_its_own(model: Any) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.target, self.draft = model, lm(num_hidden_layers=1)

    both = Both()
    found = passes(
        both, lambda: model.generate(IDS, assistant_model=both.draft, **GREEDY), "model.target", "model.draft"
    )
    assert {row[:2] for row in found} == {
        ("draft.prefill", 0),
        ("draft.decode", 0),
        ("target.prefill", 1),
        ("target.decode", 1),
    }
    assert sum(count for phase, _, count in found if phase.endswith("prefill")) == 2


def test_the_turns_of_a_conversation_are_requests(model: Any) -> None:
    def talk() -> None:
        cache, said = transformers.DynamicCache(), IDS
        for _ in range(3):
            said = torch.cat([model.generate(said, past_key_values=cache, **GREEDY), guess(5)], 1)

    assert passes(model, talk) == [
        (phase, turn, count) for turn in range(3) for phase, count in (("prefill", 1), ("decode", 5))
    ]


def by_hand(model: Any, *inputs: int, crop: int = 0) -> None:
    """Run passes of these numbers of positions from one call site on one cache, refusing some positions each time."""
    cache = transformers.DynamicCache()
    for positions in inputs:
        model(guess(positions), past_key_values=cache)
        if crop:
            cache.crop(-crop)


@pytest.mark.parametrize(
    ("inputs", "crop", "phases"),
    [
        ([9, 1, 1, 1], 0, [("prefill", 0, 1), ("decode", 0, 3)]),
        ([4, 4, 4, 2, 1, 1], 0, [("prefill", 0, 4), ("decode", 0, 2)]),
        ([9, 4, 4, 4], 2, [("prefill", 0, 1), ("decode", 0, 3)]),
        ([2, 5, 5, 5], 0, [("prefill", 0, 1), ("decode", 0, 3)]),
    ],
    ids=["token by token", "pieces", "refused", "more than the prompt"],
)
def test_a_loop_by_hand(model: Any, inputs: list[int], crop: int, phases: list[Any]) -> None:
    assert passes(model, lambda: by_hand(model, *inputs, crop=crop)) == phases


def test_checks_and_turns_are_told_by_where_they_are_made(model: Any) -> None:
    def check() -> None:
        cache = transformers.DynamicCache()

        def put_in(positions: int) -> None:
            model(guess(positions), past_key_values=cache)

        put_in(9)
        for _ in range(3):
            put_in(4)

    def talk() -> None:
        cache = transformers.DynamicCache()
        for turn in range(2):
            model(guess(6 + turn), past_key_values=cache)
            for _ in range(3):
                model(guess(1), past_key_values=cache)

    def put_in_pieces() -> None:
        out = model(guess(4), use_cache=True)
        for positions in (4, 3):
            out = model(guess(positions), past_key_values=out.past_key_values)
        for _ in range(2):
            out = model(guess(1), past_key_values=out.past_key_values)

    assert passes(model, put_in_pieces) == [("prefill", 0, 3), ("decode", 0, 2)]
    assert passes(model, check) == [("prefill", 0, 1), ("decode", 0, 3)]
    assert passes(model, talk) == [("prefill", 0, 1), ("decode", 0, 3), ("prefill", 1, 1), ("decode", 1, 3)]


def test_requests_that_take_turns_on_one_thread(model: Any) -> None:
    def answer(prompt: int) -> Any:
        cache = transformers.DynamicCache()
        model(guess(prompt), past_key_values=cache)
        for _ in range(3):
            yield
            model(guess(1), past_key_values=cache)

    def run() -> None:
        for _ in itertools.zip_longest(answer(4), answer(7)):
            pass

    prefill = [("prefill", 0, 1), ("prefill", 1, 1)]
    assert passes(model, run) == [*prefill, *[("decode", 0, 1), ("decode", 1, 1)] * 3]


def test_packed_batches_say_what_they_hold() -> None:
    class Packed(nn.Module):
        def generate(self) -> None: ...

        def forward(
            self, input_ids: torch.Tensor, cache: object, cu_seq_lens_q: torch.Tensor, max_length_q: int
        ) -> None:
            return None

    model, cache = Packed(), transformers.DynamicCache()

    def run() -> None:
        for lengths in ([5, 3], [1, 1, 4], [1, 1, 1]):
            bounds = torch.tensor([0, *itertools.accumulate(lengths)])
            model(torch.ones(1, sum(lengths)), cache=cache, cu_seq_lens_q=bounds, max_length_q=max(lengths))

    assert passes(model, run) == [("prefill", None, 1), ("mixed", None, 1), ("decode", None, 1)]


@pytest.mark.parametrize("name", ["gpt2", "mamba", "t5", "mistral"])
def test_other_models(name: str) -> None:
    tokens = {"vocab_size": 32, "eos_token_id": None, "pad_token_id": 0}
    if name == "gpt2":
        config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, bos_token_id=1, **tokens)
        model = transformers.GPT2LMHeadModel(config)
    elif name == "mamba":
        config = transformers.MambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4, bos_token_id=1, **tokens)
        model = transformers.MambaForCausalLM(config)
    elif name == "t5":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **tokens))
    else:
        config = transformers.MistralConfig(hidden_size=16, sliding_window=4, bos_token_id=1, **LLAMA, **tokens)
        model = transformers.MistralForCausalLM(config)
    model.eval()
    found = passes(model, lambda: [model.generate(IDS, **GREEDY) for _ in range(2)])
    assert found == [("prefill", 0, 1), ("decode", 0, 5), ("prefill", 1, 1), ("decode", 1, 5)]


def test_caches_are_let_go(model: Any) -> None:
    with tv.recording(model) as rec, torch.no_grad():
        for _ in range(3):
            model.generate(IDS, **GREEDY)
        assert len(rec._marker._rule._requests._by_cache) <= 1  # type: ignore[attr-defined]


def test_the_time_between_requests_is_of_no_frame(model: Any) -> None:
    pause = 1_000_000_000  # longer than a frame takes on a loaded machine

    def chat() -> None:
        model.generate(IDS, **GREEDY)
        time.sleep(pause / 1e9)
        model.generate(IDS, **GREEDY)

    trace = tv.record(model, chat)
    latency = frame_latencies(trace)["latency_ns"]
    assert len(latency) == 12
    assert latency.dropna().max() < pause
    summary = frame_summary(trace)
    assert summary is not None
    assert summary.max_ns is not None
    assert summary.max_ns < pause


def test_a_talker_that_speaks_twice_has_two_requests() -> None:
    model = talker("tiny", "native")
    prompt = tiny_prompt(model, None, prompt_tokens=4, text_tokens=9, seed=0)

    def speak() -> None:
        for _ in range(2):
            generate(model, prompt, 2, ignore_eos=True)

    calls = tv.record(model, speak, name="talker", phases=TalkerPhases).calls
    spoken = calls[calls["path"] == "talker"]
    assert spoken["phase"].tolist() == ["prefill", "decode"] * 2
    assert spoken["request"].tolist() == [0, 0, 1, 1]
    assert spoken["frame"].tolist() == [0, 1, 2, 3]


def test_what_a_part_generates_is_not_taken_for_the_model_s_own_request() -> None:
    class Part(nn.Module):
        def generate(self) -> None: ...

        def forward(
            self, input_ids: torch.Tensor, past: torch.Tensor | None = None, use_cache: bool = False
        ) -> torch.Tensor:
            return input_ids

    class Whole(Part):
        def __init__(self) -> None:
            super().__init__()
            self.part = Part()

    model, one = Whole(), torch.ones(1, 1, dtype=torch.long)

    def run() -> None:
        for length in range(1, 4):
            model(one, past=torch.ones(1, length, 2))
            model.part(one, use_cache=True)
            model.part(one, past=torch.ones(1, 1, 2))

    assert passes(model, run) == [("decode", 0, 3)]
    assert passes(model, run, "model.part") == [("part.prefill", 0, 1), ("part.decode", 0, 1)] * 3
