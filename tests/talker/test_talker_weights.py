"""Weights from a seed, and the names they are saved under."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from talker_parity import talker

from talkerviz.talker import build_talker, init_weights, preset

EXPERTS = "model.layers.0.mlp.experts"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_implementations_get_the_same_bits(dtype: torch.dtype) -> None:
    native = dict(talker("tiny", "native", dtype=dtype).named_parameters())
    transformers = dict(talker("tiny", "transformers", dtype=dtype).named_parameters())
    assert native.keys() == transformers.keys()
    assert all(torch.equal(native[name], transformers[name]) for name in native)


def test_weights_depend_on_seed_and_name() -> None:
    first, other = talker("tiny", "native"), talker("tiny", "native", 1)
    assert not torch.equal(first.codec_head.weight, other.codec_head.weight)
    layers = first.model.layers
    assert not torch.equal(layers[0].self_attn.q_proj.weight, layers[1].self_attn.q_proj.weight)


def test_rope_survives_bfloat16() -> None:
    for impl in ("native", "transformers"):
        exact, cast = talker("tiny", impl), talker("tiny", impl, dtype=torch.bfloat16)
        for which in ("model", "code_predictor.model"):
            expected = exact.get_submodule(which).rotary_emb.inv_freq
            found = cast.get_submodule(which).rotary_emb.inv_freq
            assert found.dtype == torch.float32
            assert torch.equal(found, expected)


def test_built_for_inference() -> None:
    model = talker("tiny", "native")
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    source = talker("tiny", "native")
    state = source.state_dict()
    assert f"{EXPERTS}.7.gate_proj.weight" in state
    assert f"{EXPERTS}.gate_up_proj" not in state
    # Views, not copies.
    assert state[f"{EXPERTS}.7.down_proj.weight"].data_ptr() == (
        source.model.layers[0].mlp.experts.down_proj[7].data_ptr()
    )
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    target = build_talker(preset("tiny"), seed=1)
    target.load_state_dict(load_file(tmp_path / "model.safetensors"))
    found = dict(target.named_parameters())
    assert all(torch.equal(found[name], weight) for name, weight in source.named_parameters())


def test_names_are_those_transformers_saves(tmp_path: Path) -> None:
    talker("tiny", "transformers").save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    native = talker("tiny", "native").state_dict()
    # save_pretrained writes experts one by one where this version has the reverse mapping, else fused.
    fused = any(name.endswith("gate_up_proj") for name in saved)
    per_expert = {name for name in native if ".experts." in name}
    assert saved.keys() - {name for name in saved if ".experts." in name} == native.keys() - per_expert
    assert fused or saved.keys() == native.keys()


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_bad_tensors_are_reported() -> None:
    model = build_talker(preset("tiny"))
    state = model.state_dict()
    missing = {name: w for name, w in state.items() if name != f"{EXPERTS}.3.up_proj.weight"}
    with pytest.raises(RuntimeError, match=r"Missing key.*experts\.3\.up_proj\.weight"):
        model.load_state_dict(missing)
    with pytest.raises(RuntimeError, match=r"size mismatch for model\.layers\.0\.mlp\.experts\.0\.down_proj"):
        model.load_state_dict({**state, f"{EXPERTS}.0.down_proj.weight": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*experts\.8\.up_proj"):
        model.load_state_dict({**state, f"{EXPERTS}.8.up_proj.weight": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="call to_empty"):
        build_talker(preset("tiny"), device="meta").load_state_dict(state)


def test_unknown_impl() -> None:
    with pytest.raises(ValueError, match="unknown impl 'x': choose from native, transformers"):
        build_talker(preset("tiny"), "x")


def test_init_is_in_place() -> None:
    model = copy.deepcopy(talker("tiny", "native"))
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    init_weights(model, 5)
    assert before == {name: p.data_ptr() for name, p in model.named_parameters()}
