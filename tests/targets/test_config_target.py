"""`talkerviz trace` of a config.json: which model it builds, how it runs it, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from talkerviz.api import Trace
from talkerviz.recorder.recording import recording
from talkerviz.targets import config_target
from talkerviz.targets.huggingface.runner import Lent

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
        ({}, "it has neither model_type nor architectures"),
        ({"model_type": "qwen3_omni_moe"}, "trace --checkpoint"),
        ({**LLAMA, "hidden_size": 10**12}, "config.json: hidden_size is 1000000000000, more than any model has"),
        ({**LLAMA, "hidden_size": 10**9}, "config.json: its weights take .* GiB, and cpu has"),
        ({**LLAMA, "num_hidden_layers": 10**6}, "num_hidden_layers is 1000000, more than any model has"),
        ({**LLAMA, "num_labels": 10**9}, "num_labels is 1000000000, more"),
        ({**LLAMA, "hidden_size": -5}, "config.json: hidden_size is -5, below 0"),
        ({**LLAMA, "vocab_size": "big"}, "config.json: vocab_size is 'big', not a number"),
        ({**LLAMA, "rms_norm_eps": float("nan")}, "config.json: rms_norm_eps is NaN"),
        ({**LLAMA, "num_attention_heads": 0}, "config.json: no config of llama"),
        ({**LLAMA, "architectures": ["Evil"]}, "config.json: architectures: transformers has no model Evil"),
        ({**LLAMA, "architectures": 7}, "config.json: architectures is 7, not a list"),
        ({**LLAMA, "architectures": ["BertModel"]}, "config.json: BertModel cannot be built"),
        ({**LLAMA, "model_type": ["llama"]}, r"config.json: model_type is \['llama'\], not a name"),
        ({**LLAMA, "dtype": "float99"}, "config.json: "),
        (
            {**LLAMA, "quantization_config": {"quant_method": "x"}},
            "quantization_config: transformers has no method 'x'",
        ),
        ({**VIT, "patch_size": 400, "image_size": 40000, "hidden_size": 4}, "config.json: .*an input of"),
    ],
)
def test_what_it_refuses(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        traced(tmp_path, config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "config.json: is no JSON"),
        (b'\xff\xfe{"a": 1}', "config.json: is no JSON"),
        (b'{"a":' * 100_000, "config.json: is no JSON: nested too deeply"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "config.json: nested too deeply"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "config.json: is no JSON"),
        (b"[1]", "config.json: a config is a JSON object, not a list"),
        (None, "config.json: is a directory"),
    ],
    ids=["empty", "no UTF-8", "deep", "less deep", "long number", "list", "folder"],
)
def test_files_that_are_no_config(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        config_target(tmp_path, "cpu", None, 1)
    assert "\n" not in str(caught.value)


def test_code_that_a_config_names_is_left_out(tmp_path: Path) -> None:
    code = {
        "auto_map": {"AutoModel": "evil.Evil"},
        "_attn_implementation": "someone/kernel",
        "transformers_weights": "../elsewhere.safetensors",
    }
    trace, target = traced(tmp_path, {**LLAMA, **code})
    assert not any(hasattr(target.model.config, name) for name in ("auto_map", "transformers_weights"))
    assert target.model.config._attn_implementation == "sdpa"
    assert len(trace.calls)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.bin", "names 'pytorch_model.bin' .* is no safetensors file"),
        ("../outside/model.safetensors", "leads out of the folder"),
        ("/etc/passwd", "leads out of the folder"),
        ("..", "leads out of the folder"),
        (7, "leads out of the folder"),
        ("model-2.safetensors", "no such file"),
        ("dummy.safetensors", "dummy.safetensors: its header cannot be read"),
    ],
)
def test_an_index_of_other_files(name: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    model = LlamaForCausalLM(LlamaConfig(**LLAMA))
    model.save_pretrained(tmp_path / "outside")
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "dummy.safetensors").touch()
    index = {"metadata": {}, "weight_map": dict.fromkeys(model.state_dict(), name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    with pytest.raises(ValueError, match=message) as caught:
        config_target(folder, "cpu", None, 1)
    assert "model" in str(caught.value)


def test_facts_say_which_files_were_read(tmp_path: Path) -> None:
    """Links too, as those of a download's cache to its blobs."""
    model = LlamaForCausalLM(LlamaConfig(**LLAMA))
    model.save_pretrained(tmp_path / "blobs", max_shard_size="40KB")
    folder = tmp_path / "snapshot"
    folder.mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (folder / file.name).symlink_to(file)
    target = config_target(folder, "cpu", None, 1)
    shards = sorted(file.name for file in folder.glob("*.safetensors"))
    assert len(shards) > 1
    read = ["config.json", "model.safetensors.index.json", *shards, "generation_config.json"]
    assert target.facts["files_read"] == read
    (tmp_path / "alone.json").write_text(json.dumps(LLAMA))
    assert config_target(tmp_path / "alone.json", "cpu", None, 1).facts["files_read"] == ["alone.json"]
