"""The compiled talker: the same codes, the same modules, and what cannot be compiled."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.codecache
from command_line import talkerviz
from talker_parity import CONFIG, SPEECH, talker, tiny_prompt
from torch._inductor.exc import InvalidCxxCompiler

import talkerviz as tv
from talkerviz.api import Trace
from talkerviz.recorder.phases.talker import TalkerPhases
from talkerviz.talker import GREEDY, Sampling, build_talker, generate
from talkerviz.talker.generation import compile_choice
from talkerviz.talker.generation.compile import compile_talker, decompile_talker
from talkerviz.talker.generation.compile_choice import keep_faster_layers
from talkerviz.talker.model.cache import LayerCache

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module", autouse=True)
def _code_is_kept_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("inductor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        # Read when it was imported.
        patch.setattr(torch._inductor.codecache, "_HEADER_DIR", str(folder / "headers"))
        patch.setattr(torch._inductor.codecache, "_HEADER_LOCK_DIR", str(folder / "headers" / "locks"))
        yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def compiled() -> Any:
    model = build_talker(CONFIG)
    compile_talker(model)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize("sampling", [GREEDY, SPEECH], ids=["greedy", "drawn"])
def test_codes_stay_what_they_are(compiled: Any, sampling: Sampling) -> None:
    for seed, lengths in enumerate([(11, 20), (3, 9)]):
        model = talker("tiny", "native")
        prompt = tiny_prompt(model, None, prompt_tokens=lengths[0], text_tokens=lengths[1], seed=seed)
        assert torch.equal(
            generate(compiled, prompt, 6, sampling, ignore_eos=True),
            generate(model, prompt, 6, sampling, ignore_eos=True),
        )


def test_no_frame_compiles_again(compiled: Any) -> None:
    model = talker("tiny", "native")
    prompts = [tiny_prompt(model, None, prompt_tokens=tokens, text_tokens=9, seed=tokens) for tokens in (4, 7, 12)]
    generate(compiled, prompts[0], 4, ignore_eos=True)
    with torch.compiler.set_stance("fail_on_recompile"):
        for prompt in prompts:
            # Long enough for its cache to grow several times.
            generate(compiled, prompt, 40, ignore_eos=True)


def test_several_rows_are_not_compiled_for_each_number_of_them(compiled: Any) -> None:
    model = talker("tiny", "native")
    prompts = [tiny_prompt(model, None, prompt_tokens=3 + row, text_tokens=9, seed=row) for row in range(4)]
    with torch.compiler.set_stance("fail_on_recompile"):
        for rows in (2, 4, 3):
            together = generate(compiled, prompts[:rows], 3, ignore_eos=True)
            expected = generate(model, prompts[:rows], 3, ignore_eos=True)
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(together, expected, strict=True))


def test_its_modules_are_the_same(compiled: Any) -> None:
    assert [*compiled.state_dict()] == [*talker("tiny", "native").state_dict()]
    prompt = tiny_prompt(compiled, None, prompt_tokens=4, text_tokens=9, seed=0)

    def modules(model: Any) -> tuple[Trace, set[str]]:
        trace = tv.record(
            model, lambda: generate(model, prompt, 3, ignore_eos=True), name="talker", phases=TalkerPhases
        )
        return trace, {f"{phase} {path}" for phase, path in zip(trace.calls["phase"], trace.calls["path"], strict=True)}

    trace, called = modules(compiled)
    plain, all_called = modules(talker("tiny", "native"))
    assert called < all_called
    # What is left out is what runs inside the compiled ones.
    outer = tuple(f"{one}." for one in trace.facts["one_call"])
    assert all(name.split()[1].startswith(outer) for name in all_called - called)
    assert set(trace.facts["one_call"].values()) == {"compiled"}
    # The prompt is read uncompiled, and seen as ever.
    prefill = [each.calls.query("phase == 'prefill'")["path"].tolist() for each in (trace, plain)]
    assert prefill[0] == prefill[1]


def test_bfloat16_is_as_near_to_float32_as_uncompiled() -> None:
    layer = build_talker(CONFIG, dtype=torch.bfloat16).code_predictor.model.layers[0]  # type: ignore[union-attr, index]
    exact = copy.deepcopy(layer).float()
    text = CONFIG.code_predictor
    drawn = torch.Generator().manual_seed(0)

    def run(module: Any, dtype: torch.dtype, rows: torch.Tensor) -> torch.Tensor:
        kept = torch.zeros(1, text.num_key_value_heads, 5, text.head_dim, dtype=dtype)
        turned = torch.ones(1, 1, text.head_dim, dtype=dtype), torch.zeros(1, 1, text.head_dim, dtype=dtype)
        with torch.no_grad():
            out = [
                module(row[None, None].to(dtype), position_embeddings=turned, cache=LayerCache(kept, kept))
                for row in rows
            ]
        return torch.cat(out).float()

    rows = torch.randn(40, text.hidden_size, generator=drawn).bfloat16()
    wanted = run(exact, torch.float32, rows)
    plain = (run(layer, torch.bfloat16, rows) - wanted).norm()
    layer.compile()  # type: ignore[operator, union-attr]
    found = (run(layer, torch.bfloat16, rows) - wanted).norm()
    assert 0 < found < 1.05 * plain


@pytest.mark.usefixtures("compiled")
def test_trace_and_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("talkerviz.targets.talker.keep_faster_layers", lambda model, prompt: 2.0)
    kept = tmp_path / "run.parquet"
    asked = ("trace", "--preset", "tiny", "--frames", 3, "--codes")
    assert talkerviz(monkeypatch, *asked, tmp_path / "one.json", "--cost", "--compile", "-o", kept) == 0
    said, warned = capsys.readouterr()
    assert warned.count("\n") == 1
    assert warned.startswith("talkerviz: --compile: ")
    assert "talker.model.layers.0 and 19 more are compiled: what runs inside is one call." in " ".join(said.split())
    assert talkerviz(monkeypatch, *asked, tmp_path / "two.json", "-o", tmp_path / "plain.parquet") == 0
    assert (tmp_path / "one.json").read_text() == (tmp_path / "two.json").read_text()
    trace, plain, text = Trace.load(kept), Trace.load(tmp_path / "plain.parquet"), CONFIG.code_predictor
    assert trace.facts["compiled"] is True
    # What a compiled layer costs is counted where it runs uncompiled.
    layers = trace.calls[trace.calls["class"] == "TalkerCodePredictorDecoderLayer"]
    assert len(layers) == 3 * 15 * 2
    weights = 3 * text.hidden_size * text.intermediate_size + 2 * text.hidden_size * text.head_dim * (
        text.num_attention_heads + text.num_key_value_heads
    )
    assert (layers["flops"] > 2 * weights).all()
    # What they do is theirs, and where tensors go what it is without.
    assert trace.flow is not None
    assert plain.flow is not None
    assert trace.flow.edges.equals(plain.flow.edges)
    assert set(trace.flow.ops["call"]) <= {-1, *trace.calls["call"]}


def choose(monkeypatch: pytest.MonkeyPatch, eager_seconds: float) -> tuple[Any, float | None]:
    """Return a talker after the choice, by a clock on which a compiled frame takes one second."""
    model = build_talker(CONFIG)
    compile_talker(model)  # type: ignore[arg-type]
    calls, now = 0, 0.0

    def clock() -> float:
        nonlocal calls, now
        frame, ends = divmod(calls, 2)
        calls += 1
        now += ends * (eager_seconds if frame % 2 else 1.0)
        return now

    monkeypatch.setattr(compile_choice, "perf_counter", clock)
    prompt = tiny_prompt(model, None, prompt_tokens=4, text_tokens=9, seed=0)
    return model, keep_faster_layers(model, prompt)  # type: ignore[arg-type]


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("eager_seconds", "is_kept"), [(1.5, True), (0.8, False)])
def test_the_faster_of_compiled_and_eager_is_kept(
    eager_seconds: float, is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, speed = choose(monkeypatch, eager_seconds)
    assert speed == pytest.approx(eager_seconds)
    assert model.acceleration.compiled is is_kept
    prompt = tiny_prompt(model, None, prompt_tokens=4, text_tokens=9, seed=0)
    expected = generate(talker("tiny", "native"), prompt, 4, ignore_eos=True)
    assert torch.equal(generate(model, prompt, 4, ignore_eos=True), expected)


def test_no_choice_where_the_first_frames_do_not_fit() -> None:
    model = build_talker(replace(CONFIG, text=replace(CONFIG.text, max_position_embeddings=30)))
    compile_talker(model)  # type: ignore[arg-type]
    prompt = tiny_prompt(model, None, prompt_tokens=12, text_tokens=9, seed=0)
    assert keep_faster_layers(model, prompt) is None  # type: ignore[arg-type]
    assert model.acceleration.compiled


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("speed", "is_kept"), [(1.25, True), (0.5, False)])
def test_the_choice_is_printed_and_in_the_facts(
    speed: float, is_kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def choice(model: Any, prompt: Any) -> float:
        if not is_kept:
            decompile_talker(model)
        return speed

    monkeypatch.setattr("talkerviz.targets.talker.keep_faster_layers", choice)
    kept = tmp_path / "run.parquet"
    assert talkerviz(monkeypatch, "trace", "--preset", "tiny", "--frames", 2, "--compile", "-o", kept) == 0
    layers = "compiled" if is_kept else "eager"
    said = f"--compile: a compiled frame is {speed:.2f} times as fast as an eager one: {layers} layers are kept"
    assert said in " ".join(capsys.readouterr().err.split())
    facts = Trace.load(kept).facts
    assert (facts["compiled"], facts["compiled_speed"]) == (is_kept, speed)
    assert bool(facts.get("one_call")) is is_kept


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("trace", "--impl", "transformers"), "--compile: only the native talker has it"),
        (("trace", "--device", "meta"), "--compile: only the native talker has it, and not on the meta device"),
        (("trace", "code2wav"), "--compile: only for `trace talker`, not for `trace code2wav`"),
        (("speak", "--codes", "none.json"), "--compile: not with --codes, which replaces the talker"),
        (("trace", "--device", "cpu", "--graphs"), "CUDA graphs need a CUDA device, and the talker is on cpu"),
        (("speak", "--device", "cpu", "--graphs"), "CUDA graphs need a CUDA device, and the talker is on cpu"),
    ],
)
def test_what_is_not_compiled(
    args: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    out = tmp_path / "out"
    assert talkerviz(monkeypatch, *args, "--preset", "tiny", "--compile", "-o", out) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    assert talkerviz(monkeypatch, "trace", "--preset", "tiny", "--compile", "-o", tmp_path / "run.parquet") == 2
    assert "finds no C++ compiler: install g++, or name one in CXX" in capsys.readouterr().err
