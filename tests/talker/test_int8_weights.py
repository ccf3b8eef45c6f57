"""Layers with int8 weights: their products, names, codes, and where they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from command_line import talkerviz
from talker_parity import CONFIG, SPEECH, talker, tiny_prompt

from talkerviz.api import Trace
from talkerviz.talker import build_talker, generate
from talkerviz.talker.generation.compile import compile_talker
from talkerviz.talker.model.int8 import Int8Linear, check_int8_device, quantise, quantise_talker
from talkerviz.talker.model.layers import Linear, int8_linear

DTYPES = [torch.float32, torch.bfloat16]


def quantised(dtype: torch.dtype) -> Any:
    model = build_talker(CONFIG, dtype=dtype)
    quantise_talker(model)  # type: ignore[arg-type]
    return model


def dequantised(dtype: torch.dtype) -> Any:
    """Return a talker whose weights are the values that the int8 weights stand for."""
    model, plain = quantised(dtype), build_talker(CONFIG, dtype=dtype)
    steps = model.state_dict()
    values = {}
    for name, weight in plain.state_dict().items():
        values[name] = steps[name]
        if weight.dtype != steps[name].dtype:
            values[name] = (steps[name].float() * steps[f"{name}_scale"].float()[..., None]).to(dtype)
    plain.load_state_dict(values)
    return plain


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_is_rounded_to_half_a_step(dtype: torch.dtype) -> None:
    weight = torch.randn(3, 10, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[1, 2] = 0
    steps, scale = quantise(weight)
    assert (steps.dtype, scale.dtype, scale.shape) == (torch.int8, dtype, (3, 10))
    error = (steps.float() * scale.float()[..., None] - weight.float()).abs()
    # A scale in bfloat16 is up to 1/256 too small, and then the greatest weight of its row is cut off.
    assert (error <= scale.float()[..., None] * (0.5001 if dtype == torch.float32 else 1.0)).all()
    assert not steps[1, 2].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 64), (7, 32), (96, 96), (5, 31), (64, 1), (33, 8)])
def test_products_of_all_shapes(rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> None:
    drawn = torch.Generator().manual_seed(0)
    steps, scale = quantise(torch.randn(outputs, inputs, generator=drawn).to(dtype))
    x = torch.randn(2, rows, inputs, generator=drawn).to(dtype)
    wanted = F.linear(x.double(), steps.double() * scale.double()[:, None])
    close = 1e-5 if dtype == torch.float32 else 2e-2
    for found in (int8_linear(x, steps, scale), int8_linear(x[:, :1], steps, scale)):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted[:, : found.shape[1]], rtol=close, atol=close * inputs**0.5)


def test_biases_are_added() -> None:
    linear = Linear(32, 4, bias=True).requires_grad_(False)
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Int8Linear(linear)(x), linear(x), atol=0.05, rtol=0)


@pytest.mark.parametrize("sampling", ["greedy", "drawn"])
def test_codes_are_those_of_the_same_values_in_float32(sampling: str) -> None:
    options = {"sampling": SPEECH} if sampling == "drawn" else {}
    ours, plain = quantised(torch.float32), dequantised(torch.float32)
    prompts = [tiny_prompt(plain, None, prompt_tokens=tokens, text_tokens=9, seed=tokens) for tokens in (3, 11)]
    for prompt in prompts:
        expected = generate(plain, prompt, 8, ignore_eos=True, **options)
        assert torch.equal(generate(ours, prompt, 8, ignore_eos=True, **options), expected)
    found = generate(ours, prompts, 8, ignore_eos=True, **options)
    assert all(map(torch.equal, found, generate(plain, prompts, 8, ignore_eos=True, **options)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_hidden_states_are_near_those_of_the_original_weights(dtype: torch.dtype) -> None:
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(12, 1, CONFIG.text.hidden_size, generator=drawn)
    plain, ours = talker("tiny", "native", dtype=dtype), quantised(dtype)
    for part in ("model.layers.0.mlp", "code_predictor.model.layers.1.mlp"):
        wanted = torch.cat([plain.get_submodule(part)(row[None].to(dtype)) for row in x]).float()
        found = torch.cat([ours.get_submodule(part)(row[None].to(dtype)) for row in x]).float()
        decibels = 10 * torch.log10(wanted.square().sum() / (found - wanted).square().sum())
        assert 25 < decibels < 60


def test_names_are_the_checkpoints_own_with_scales_beside_them() -> None:
    model = quantised(torch.bfloat16)
    plain, state = talker("tiny", "native").state_dict(), model.state_dict()
    extra = state.keys() - plain.keys()
    assert plain.keys() <= state.keys()
    assert extra == {f"{name}_scale" for name, weight in state.items() if weight.dtype == torch.int8}
    assert "model.layers.0.mlp.experts.7.gate_proj.weight_scale" in extra
    assert [path for path, _ in model.named_modules()] == [path for path, _ in talker("tiny", "native").named_modules()]
    # They are loaded as they were saved.
    other = build_talker(CONFIG, seed=1, dtype=torch.bfloat16)
    quantise_talker(other)  # type: ignore[arg-type]
    other.load_state_dict(state)
    assert all(torch.equal(weight, state[name]) for name, weight in other.state_dict().items())


def test_other_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="int8 weights are for CPUs, and the talker is on cuda: leave out --weights"):
        check_int8_device(torch.device("cuda"))


def test_compiled_layers_are_refused() -> None:
    model: Any = build_talker(CONFIG)
    compile_talker(model)
    with pytest.raises(ValueError, match="compiled or fused: quantise them before"):
        quantise_talker(model)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("trace", "--impl", "transformers"), "--weights int8: only the native talker has it"),
        (("trace", "--device", "meta"), "--weights int8: only the native talker has it, and not on the meta device"),
        (("speak", "--codes", "none.json"), "--weights: not with --codes, which replaces the talker"),
    ],
)
def test_where_int8_is_refused(
    args: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "out.wav"
    assert talkerviz(monkeypatch, *args, "--preset", "tiny", "--weights", "int8", "-o", out) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_trace_has_the_same_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traces = []
    for number, options in enumerate([(), ("--weights", "int8")]):
        file = tmp_path / f"{number}.parquet"
        asked = ("trace", "--preset", "tiny", "--frames", 2, "--dtype", "bfloat16", "--cost", *options, "-o", file)
        assert talkerviz(monkeypatch, *asked) == 0
        traces.append(Trace.load(file))
    plain, ours = traces
    assert ours.facts["weights"] == "int8"
    assert ours.calls["path"].tolist() == plain.calls["path"].tolist()
    assert set(ours.calls["class"]) - set(plain.calls["class"]) == {"Int8Linear"}
    # A product costs the same, whatever its weights are stored in.
    products = ours.calls["class"] == "Int8Linear"
    assert ours.calls["flops"][products].tolist() == plain.calls["flops"][products].tolist()
