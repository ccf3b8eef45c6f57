"""`talkerviz trace` of a config.json: which model it builds, how it runs it, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from talkerviz.foreign.run import Lent
from talkerviz.recorder import recording
from talkerviz.targets import config_target
from talkerviz.trace import Trace

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
T5 = {"model_type": "t5", "d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4, "vocab_size": 100}
VIT = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def traced(folder: Path, config: dict[str, Any], tokens: int = 3) -> tuple[Trace, Any]:
    (folder / "config.json").write_text(json.dumps(config))
    target = config_target(folder, "cpu", None, tokens)
    with recording(target.model, target.name, target.phases, "none", target.facts) as rec:
        target.run(lambda done: None)
    return rec.trace, target


@pytest.mark.parametrize(
    ("config", "phases", "runs"),
    [
        (LLAMA, {"setup": 0, "prefill": 1, "decode": 2}, "generate"),
        (T5, {"setup": 0, "encode": 0, "prefill": 1, "decode": 2}, "generate"),
        (VIT, {"forward": 1}, "forward"),
    ],
    ids=["llama", "t5", "vit"],
)
def test_it_runs_as_it_is_used(config: dict[str, Any], phases: dict[str, int], runs: str, tmp_path: Path) -> None:
    trace, target = traced(tmp_path, config)
    found = trace.calls.groupby("phase", observed=True)["frame"].nunique().to_dict()
    assert {name: frames for name, frames in phases.items() if frames} == {
        name: frames for name, frames in found.items() if frames
    }
    assert set(found) <= set(phases)
    assert (target.facts["runs"], target.facts["weights"]) == (runs, "random")


def test_safetensors_in_the_folder_are_loaded(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**LLAMA)).save_pretrained(tmp_path)
    target = config_target(tmp_path, "cpu", None, 2)
    assert target.facts["weights"] == "safetensors"
    kept = load_file(tmp_path / "model.safetensors")
    assert torch.equal(target.model.get_parameter("lm_head.weight"), kept["lm_head.weight"])


def test_what_a_model_wrote_into_it_is_given_anew() -> None:
    lent = Lent(torch.zeros(2))
    given = lent.give()
    assert lent.give() is given
    given.add_(1)
    assert torch.equal(lent.give(), torch.zeros(2))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "nosuch"}, "transformers has no model_type 'nosuch'"),
        (
            {"model_type": "x", "auto_map": {"AutoConfig": "a.B"}},
            r"the code that comes with it \(auto_map\) is never run",
        ),
        ({}, "it has no model_type"),
        ({"model_type": "qwen3_omni_moe"}, "trace --checkpoint"),
    ],
)
def test_what_it_refuses(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        traced(tmp_path, config)
