"""Fused layers: their kernels, interpreted or on a GPU, against the layers' own code."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from command_line import talkerviz
from talker_parity import CONFIG, SPEECH, talker
from talker_prompts import a_prompt
from torch import Tensor

import talkerviz as tv
from talkerviz.recorder.phases.talker import TalkerPhases
from talkerviz.talker import GREEDY, Sampling, batch_prompts, build_talker, generate, generate_batch
from talkerviz.talker.generation.compile import compile_talker
from talkerviz.talker.generation.cuda_graphs import replay_frames
from talkerviz.talker.kernels import check_kernels, fuse_modules, fuse_talker
from talkerviz.talker.model.attention import additive_mask
from talkerviz.talker.model.cache import KVCache, LayerCache, StaticCache
from talkerviz.talker.model.config import StackConfig

pytest.importorskip("triton", reason="no Triton")
from triton import language
from triton.runtime import interpreter

from talkerviz.talker.kernels.codes import fused_argmax, fused_embedding

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter cuts off the bits that bfloat16 lacks; here it rounds to the nearest, as a GPU does."""
    builder = interpreter.InterpreterBuilder
    cast = builder.cast_impl

    def rounded(self: Any, source: Any, wanted: Any) -> Any:
        if (source.dtype.scalar, wanted.scalar) != (language.float32, language.bfloat16):
            return cast(self, source, wanted)
        bits = torch.from_numpy(source.data.copy()).bfloat16().view(torch.uint16).numpy()
        return interpreter.TensorHandle(bits, wanted.scalar)

    monkeypatch.setattr(builder, "cast_impl", rounded)


def fused_copy(model: Any) -> Any:
    """One whose weights are the same."""
    made = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    fuse_modules(made)
    return made


def filled(config: StackConfig, positions: int, seen: int, dtype: torch.dtype, seed: int) -> KVCache:
    """Return a cache that has seen so many tokens."""
    cache = KVCache(config, positions, torch.device(DEVICE), dtype)
    drawn = torch.Generator().manual_seed(seed)
    for part in (cache.keys, cache.values):
        part.copy_(torch.randn(part.shape, generator=drawn))
    cache.length = seen
    return cache


@torch.no_grad()
def outputs(
    layer: Any, config: StackConfig, tokens: int, seen: int, positions: int, static: bool, dtype: torch.dtype
) -> list[Tensor]:
    """Return a layer's output for the same new tokens, and its cache after them."""
    drawn = torch.Generator().manual_seed(tokens + seen)
    cache = filled(config, positions, seen, dtype, seed=seen)
    place: LayerCache
    if static:
        still = StaticCache(cache)
        place, mask = next(iter(still.layers(tokens))), additive_mask(still.mask(tokens), dtype)
    else:
        place, mask = next(iter(cache.layers(tokens))), None
    x = torch.randn(1, tokens, config.hidden_size, generator=drawn).to(DEVICE, dtype)
    half = torch.rand(1, tokens, config.head_dim // 2, generator=drawn) * 7
    angles = torch.cat((half, half), dim=-1).to(DEVICE)
    out = layer(x, position_embeddings=(angles.cos().to(dtype), angles.sin().to(dtype)), cache=place, mask=mask)
    return [out, cache.keys[0, :, :, : seen + tokens], cache.values[0, :, :, : seen + tokens]]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("stack", "tokens", "seen", "positions", "static"),
    [
        ("decoder", 1, 5, 9, False),
        ("decoder", 1, 0, 9, True),
        ("decoder", 1, 70, 90, True),
        ("decoder", 1, 200, 300, True),
        ("predictor", 2, 0, 2, False),
        ("predictor", 1, 15, 16, False),
    ],
)
def test_a_layer_gives_what_it_gave(
    stack: str, tokens: int, seen: int, positions: int, static: bool, dtype: torch.dtype
) -> None:
    model = build_talker(CONFIG, device=DEVICE, dtype=dtype)
    config: StackConfig = CONFIG.text if stack == "decoder" else CONFIG.code_predictor
    own, fused = (
        (made.model if stack == "decoder" else made.code_predictor.model).layers[0]
        for made in (model, fused_copy(model))
    )
    given = (config, tokens, seen, positions, static)
    exact = outputs(copy.deepcopy(own).float(), *given, torch.float32)
    trio = zip(outputs(own, *given, dtype), outputs(fused, *given, dtype), exact, strict=True)
    for name, (was, found, truth) in zip(("hidden", "keys", "values"), trio, strict=True):
        far, before = ((each.float() - truth).norm() / truth.norm() for each in (found, was))
        assert far < 1.5 * before + 1e-6, name


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_decoder_s_angles(dtype: torch.dtype) -> None:
    model: Any = build_talker(CONFIG, device=DEVICE, dtype=dtype)
    rotary, fused = model.model.rotary_emb, fused_copy(model).model.rotary_emb
    x = torch.empty(1, 1, CONFIG.text.hidden_size, device=DEVICE, dtype=dtype)
    for positions in ([[[7]], [[3]], [[900]]], [[[0]]] * 3, [[[60_000]]] * 3):
        places = torch.tensor(positions, device=DEVICE)
        for found, wanted in zip(fused(x, places), rotary(x, places), strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-5 if dtype == torch.float32 else 4e-3, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [1, 5, 64, 3072])
def test_the_greatest_and_its_embedding(size: int) -> None:
    drawn = torch.Generator().manual_seed(size)
    logits, table = torch.randn(1, size, generator=drawn).to(DEVICE), torch.randn(size, 24, generator=drawn).to(DEVICE)
    code = fused_argmax(logits)
    assert code.item() == logits.argmax()
    assert torch.equal(fused_embedding(table, code), table[code])
    assert fused_argmax(torch.zeros(1, size, device=DEVICE)).item() == 0  # of equals the first


@pytest.fixture(scope="module")
def recorded() -> list[tuple[Tensor, pd.DataFrame]]:
    """Return the codes and the calls of two frames: of a talker, and of the same with fused layers."""
    model: Any = build_talker(CONFIG, device=DEVICE)
    prompt, codes = a_prompt(model), []
    traces = [
        tv.record(
            each,
            lambda each=each: codes.append(generate(each, prompt, 2, ignore_eos=True)),  # type: ignore[misc]
            "talker",
            TalkerPhases,
        )
        for each in (model, fused_copy(model))
    ]
    return [(made, trace.calls) for made, trace in zip(codes, traces, strict=True)]


def test_codes_stay_what_they_are(recorded: list[tuple[Tensor, pd.DataFrame]]) -> None:
    (expected, _), (codes, _) = recorded
    assert torch.equal(codes, expected)


def test_its_modules_are_the_same_but_inside_layers(recorded: list[tuple[Tensor, pd.DataFrame]]) -> None:
    plain, fused = (calls for _, calls in recorded)
    inside = plain["path"].astype(str).str.contains(r"\.layers\.\d+\.") & (plain["phase"] != "prefill")
    angles = fused["path"].astype(str).str.endswith("rotary_emb").to_numpy()  # those of all positions
    for column in ("phase", "frame", "step", "path", "class", "outputs"):
        kept = ~angles if column == "outputs" else slice(None)
        assert fused[kept][column].tolist() == plain[~inside][kept][column].tolist(), column


def test_batches_run_as_before() -> None:
    model = talker("tiny", "native")
    together = batch_prompts([a_prompt(model, (5 + row, 9), seed=row) for row in range(2)])
    pairs = zip(
        generate_batch(model, together, 4, SPEECH, ignore_eos=True),
        generate_batch(fused_copy(model), together, 4, SPEECH, ignore_eos=True),
        strict=True,
    )
    assert all(torch.equal(one, two) for one, two in pairs)


def test_where_operations_are_counted_they_run_one_by_one() -> None:
    model = build_talker(CONFIG)
    prompt = a_prompt(model)  # type: ignore[arg-type]
    costs = [
        tv.record(each, partial(generate, each, prompt, 2, ignore_eos=True), clock="none", measure="cost").calls[
            "flops"
        ]
        for each in (model, fused_copy(model))
    ]
    assert costs[0].tolist() == costs[1].tolist()


def test_trace_and_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("kernels", "acceleration"):
        monkeypatch.setattr(f"talkerviz.talker.{module}.check_kernels", lambda device, config: None)
    asked = ("trace", "--preset", "tiny", "--frames", 1, "--device", DEVICE, "--cost", "-o")
    for name, more in (("plain", ()), ("fused", ("--fused",))):
        assert talkerviz(monkeypatch, *asked, tmp_path / name, *more) == 0
        said = capsys.readouterr()
        assert said.err == ""
        assert ("and 5 more are fused: what runs inside is one call." in said.out) == (name == "fused")
    plain, fused = (tv.Trace.load(tmp_path / name) for name in ("plain", "fused"))
    inside = plain.calls["path"].astype(str).str.contains(r"\.layers\.\d+\.") & (plain.calls["phase"] != "prefill")
    for column in ("path", "flops", "bytes_read", "bytes_written"):
        assert fused.calls[column].tolist() == plain.calls[~inside][column].tolist()
    assert plain.flow is not None
    assert fused.flow is not None
    assert fused.flow.ops["name"].tolist() == plain.flow.ops["name"].tolist()
    assert fused.flow.edges.equals(plain.flow.edges)
    assert set(fused.flow.ops["call"]) <= {-1, *fused.calls["call"]}


def test_it_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="fused kernels need a CUDA device, and the talker is on cpu"):
        fuse_talker(talker("tiny", "native"))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("trace", "--impl", "transformers"), "--fused: only the native talker has it"),
        (("trace", "--device", "meta"), "--fused: only the native talker has it, and not on the meta device"),
        (("speak", "--codes", "none.json"), "--fused: not with --codes, which replaces the talker"),
        (("trace", "--device", "cpu"), "fused kernels need a CUDA device, and the talker is on cpu"),
        (("speak", "--device", "cpu"), "fused kernels need a CUDA device, and the talker is on cpu"),
        (("trace", "--compile"), "--fused: --compile makes other code of the same layers; give one of them"),
    ],
)
def test_what_is_not_fused(
    args: tuple[str, ...],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert talkerviz(monkeypatch, *args, "--preset", "tiny", "--fused", "-o", tmp_path / "out") == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_compiled_or_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("talkerviz.talker.kernels.check_kernels", lambda device, config: None)
    model: Any = build_talker(CONFIG)
    compile_talker(model)
    with pytest.raises(ValueError, match=r"are compiled, .* compile it or fuse it"):
        fuse_talker(model)
    with pytest.raises(ValueError, match=r"are fused, .* compile it or fuse it"):
        compile_talker(fused_copy(build_talker(CONFIG)))


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ValueError, match="fused kernels need Triton"):
        check_kernels(torch.device("cuda"), CONFIG)


def test_another_activation() -> None:
    other = replace(CONFIG, text=replace(CONFIG.text, hidden_act="gelu"))
    with pytest.raises(ValueError, match="fused kernels have silu, and the talker's hidden_act is gelu"):
        check_kernels(torch.device("cuda"), other)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("sampling", [GREEDY, SPEECH], ids=["greedy", "drawn"])
def test_a_graph_of_fused_layers(sampling: Sampling) -> None:
    model: Any = build_talker(CONFIG, device="cuda")
    prompt = a_prompt(model)
    expected = generate(model, prompt, 12, sampling, ignore_eos=True)
    fused = fused_copy(model)
    fuse_talker(fused)
    assert torch.equal(generate(fused, prompt, 12, sampling, ignore_eos=True), expected)
    replay_frames(fused)
    assert torch.equal(generate(fused, prompt, 12, sampling, ignore_eos=True), expected)
