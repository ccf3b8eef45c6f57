"""Checkpoints in 8-bit floats: read as transformers reads them, and refused where scales are wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import talkerviz
from safetensors.torch import load_file, save_file
from tiny_omni import save_tiny_omni, tiny_omni_config
from torch import Tensor
from transformers import FineGrainedFP8Config, Qwen3OmniMoeForConditionalGeneration

from talkerviz.talker import (
    Scenario,
    build_talker,
    find_module,
    generate_scenario,
    load_talker,
    preset,
    read_talker_config,
)

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
BLOCK = 32
WEIGHT = "talker.model.layers.0.self_attn.q_proj.weight"


def blocks(weight: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return a matrix in 8-bit floats and its scales, for blocks of which the last may be smaller."""
    scales = torch.empty(-(-weight.shape[0] // rows), -(-weight.shape[1] // columns))
    quantised = torch.empty(weight.shape, dtype=FP8)
    for down in range(scales.shape[0]):
        for across in range(scales.shape[1]):
            block = slice(down * rows, (down + 1) * rows), slice(across * columns, (across + 1) * columns)
            scales[down, across] = weight[block].abs().max().float() / LARGEST
            quantised[block] = (weight[block].float() / scales[down, across]).to(FP8)
    return quantised, scales


def is_projection(name: str, weight: Tensor) -> bool:
    return weight.ndim == 2 and "_proj.weight" in name and name.startswith("talker.")


def quantised(state: Mapping[str, Tensor], rows: int, columns: int, suffix: str = "_scale_inv") -> dict[str, Tensor]:
    """Return the tensors of a checkpoint with all projections of the talker's layers in 8-bit floats."""
    tensors = dict[str, Tensor]()
    for name, weight in state.items():
        tensors[name] = weight.clone()
        if is_projection(name, weight):
            tensors[name], tensors[name + suffix] = blocks(weight, rows or len(weight), columns or weight.shape[1])
    return tensors


def write(directory: Path, tensors: Mapping[str, Tensor], block: object = None) -> Path:
    directory.mkdir(exist_ok=True)
    config = tiny_omni_config().to_dict()
    if block is not None:
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": block}
    (directory / "config.json").write_text(json.dumps(config))
    save_file(dict(tensors), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def load(directory: Path, impl: str = "native", **options: Any) -> Any:
    return load_talker(read_talker_config(directory), find_module(directory, "talker."), impl, **options)


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """Return the tiny talker's tensors under the published names, in bfloat16."""
    state = build_talker(preset("tiny"), dtype=torch.bfloat16).state_dict()
    return {f"talker.{name}": weight for name, weight in state.items()}


def test_values_and_codes_are_those_of_transformers(tmp_path: Path) -> None:
    save_tiny_omni(tmp_path / "plain", dtype=torch.bfloat16)
    state = dict[str, Tensor]()
    for file in (tmp_path / "plain").glob("*.safetensors"):
        state |= load_file(file)
    tensors = quantised(state, BLOCK, BLOCK)
    assert sum(weight.dtype == FP8 for weight in tensors.values()) > 50
    directory = write(tmp_path / "fp8", tensors, [BLOCK, BLOCK])
    theirs = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
        directory,
        dtype=torch.bfloat16,
        quantization_config=FineGrainedFP8Config(dequantize=True, weight_block_size=(BLOCK, BLOCK)),
    )
    config, scenario = read_talker_config(directory), Scenario(prompt_tokens=7, text_tokens=9, frames=8)
    expected = generate_scenario(theirs.talker.eval(), "transformers", scenario, config)
    for impl in ("native", "transformers"):
        ours = load(directory, impl)
        known = dict(theirs.talker.named_parameters())
        for name, weight in ours.named_parameters():
            assert weight.dtype == torch.bfloat16
            assert torch.equal(weight, known[name]), name
        assert torch.equal(generate_scenario(ours, impl, scenario, config), expected)


@pytest.mark.parametrize("suffix", ["_scale_inv", "_scale"])
@pytest.mark.parametrize(
    ("rows", "columns", "block"),
    [(0, 0, None), (1, 0, None), (16, 32, None), (48, 40, [48, 40]), (128, 128, [128, 128])],
    ids=["tensor", "row", "block", "uneven blocks", "blocks larger than weights"],
)
def test_all_kinds_of_scales(
    rows: int, columns: int, block: list[int] | None, suffix: str, published: dict[str, Tensor], tmp_path: Path
) -> None:
    talker = load(write(tmp_path, quantised(published, rows, columns, suffix), block), dtype=torch.float32)
    for name, weight in talker.state_dict().items():
        wanted = published[f"talker.{name}"].float()
        if is_projection(f"talker.{name}", weight):
            steps, scales = blocks(wanted, rows or len(wanted), columns or wanted.shape[1])
            for index, scale in enumerate(scales.flatten().tolist()):
                down, across = divmod(index, scales.shape[1])
                tall, wide = rows or len(wanted), columns or wanted.shape[1]
                part = slice(down * tall, (down + 1) * tall), slice(across * wide, (across + 1) * wide)
                assert torch.equal(weight[part], steps[part].float() * torch.tensor(scale))
        else:
            assert torch.equal(weight, wanted)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_scale_of_any_shape(shape: tuple[int, ...], published: dict[str, Tensor], tmp_path: Path) -> None:
    weight = published[WEIGHT].to(FP8)
    tensors = {**published, WEIGHT: weight, f"{WEIGHT}_scale": torch.full(shape, 0.5, dtype=torch.bfloat16)}
    tensors[WEIGHT.removesuffix("weight") + "input_scale"] = torch.tensor(2.0)  # of activations: not needed
    talker = load(write(tmp_path, tensors))
    assert torch.equal(talker.state_dict()[WEIGHT.removeprefix("talker.")], (weight.float() / 2).bfloat16())


@pytest.mark.parametrize("kind", [(8, 1, 1), (8, 4, 2), (8, 64, 1), (8, 64)])
def test_stacked_experts(kind: tuple[int, ...], published: dict[str, Tensor], tmp_path: Path) -> None:
    name = "talker.model.layers.0.mlp.experts.gate_up_proj"
    plain = {key: weight for key, weight in published.items() if "layers.0.mlp.experts." not in key}
    model = build_talker(preset("tiny"))
    experts = model.model.layers[0].mlp.experts  # type: ignore[union-attr, index]
    weight = experts.gate_up_proj.to(FP8)  # type: ignore[union-attr]
    scale = torch.rand(kind) + 0.5
    grid = scale if scale.ndim == 3 else scale[..., None]
    tall, wide = weight.shape[1] // grid.shape[1], weight.shape[2] // grid.shape[2]
    wanted = weight.float() * grid.repeat_interleave(tall, 1).repeat_interleave(wide, 2)
    tensors = {**plain, name: weight, f"{name}_scale_inv": scale}
    tensors[name.replace("gate_up", "down")] = experts.down_proj.bfloat16()  # type: ignore[union-attr]
    talker = load(write(tmp_path, tensors), dtype=torch.float32)
    assert torch.equal(talker.model.layers[0].mlp.experts.gate_up_proj, wanted)


def test_powers_of_two_as_scales(published: dict[str, Tensor], tmp_path: Path) -> None:
    weight, scale = published[WEIGHT].to(FP8), torch.tensor([[0.25, 2.0]]).repeat(2, 1)
    tensors = {**published, WEIGHT: weight, f"{WEIGHT}_scale_inv": scale.to(torch.float8_e8m0fnu)}
    found = load(write(tmp_path, tensors), dtype=torch.float32).state_dict()[WEIGHT.removeprefix("talker.")]
    assert torch.equal(found, weight.float() * torch.tensor([0.25] * 32 + [2.0] * 32))


Change = Callable[[dict[str, Tensor]], object]


@pytest.mark.parametrize(
    ("change", "block", "message"),
    [
        (lambda t: t.pop(f"{WEIGHT}_scale_inv"), None, f"'{WEIGHT}' is in 8-bit floats and has no"),
        (lambda t: t.update({f"{WEIGHT}_scale": torch.ones(1)}), None, "has both"),
        (
            lambda t: t.update({f"{WEIGHT}_scale_inv": torch.ones(3, 2)}),
            None,
            "has shape [3, 2], which is not one scale",
        ),
        (lambda t: t.update({f"{WEIGHT}_scale_inv": torch.ones(0, 2)}), None, "has shape [0, 2]"),
        (lambda t: t.update({f"{WEIGHT}_scale_inv": torch.ones(1).to(FP8)}), None, "dtype F8_E4M3, which scales"),
        (lambda t: t.update({f"{WEIGHT}_scale_inv": torch.tensor(float("nan"))}), None, "negative, infinite or not a"),
        (lambda t: t.update({f"{WEIGHT}_scale_inv": torch.tensor(-1.0)}), None, "negative, infinite or not a number"),
        (lambda t: t.update({WEIGHT: t[WEIGHT].to(torch.float8_e5m2)}), None, "(F8_E5M2)"),
        (lambda t: t.update({WEIGHT: t[WEIGHT].view(torch.int8)}), None, "(I8)"),
        (lambda t: t.update({"talker.extra_scale": torch.ones(1).to(FP8)}), None, "scales of no weight"),
        (lambda t: t.update({WEIGHT: t[WEIGHT].float()}), None, "for which config.json has no place"),
        (lambda t: None, [16], "'quantization_config.weight_block_size' is [16]: it has two sizes"),
        (lambda t: None, [0, 16], "'quantization_config.weight_block_size' is [0, 16]: it has two sizes"),
    ],
)
def test_wrong_scales_are_refused(
    change: Change, block: object, message: str, published: dict[str, Tensor], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tensors = quantised(published, 16, 32)
    change(tensors)
    directory, out = write(tmp_path / "fp8", tensors, block), tmp_path / "run.parquet"
    assert talkerviz(monkeypatch, "trace", "--checkpoint", directory, "--frames", 1, "-o", out) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not out.exists()
