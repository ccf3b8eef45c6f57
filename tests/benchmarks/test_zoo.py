"""The driver behind the table of architectures: what it runs, keeps, leaves alone and names."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from repo_paths import BENCHMARKS

sys.path.insert(0, str(BENCHMARKS))

import zoo


def kept(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "zoo.jsonl").read_text().splitlines()]


def test_a_type_is_run_once_and_what_takes_too_long_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo.go_through(["llama"], tmp_path, limit=120, memory=10)
    plain, generates = kept(tmp_path)
    assert [plain["class"], generates["class"]] == ["LlamaModel", "LlamaForCausalLM"]
    assert (plain["stage"], plain["phases"], plain["generates"]) == ("ok", ["forward"], False)
    assert (generates["stage"], generates["phases"], generates["generates"]) == ("ok", ["prefill", "decode"], True)
    assert capsys.readouterr().out.count("ok") == 2

    zoo.go_through(["llama"], tmp_path, limit=120, memory=10)
    assert capsys.readouterr().out == ""
    assert kept(tmp_path) == [plain, generates]

    zoo.go_through(["vit"], tmp_path, limit=0, memory=10)
    assert [(one["stage"], one["why"]) for one in kept(tmp_path)[2:]] == [("config", "took more than 0 s")]
    table = (tmp_path / "zoo.md").read_text()
    assert "3 classes of 2 model types" in table
    assert "**Of those, 2 (100.0%)" in table
    assert "| vit | ViTModel | took more than 0 s |" in table


def test_what_differs_in_one_number_is_not_the_same() -> None:
    import torch

    numbers = torch.tensor([1.0, float("nan")])
    assert zoo.same({"a": (numbers,)}, {"a": (numbers.clone(),)})
    assert not zoo.same({"a": (numbers,)}, {"a": (numbers + 1e-6,)})
    assert not zoo.same([numbers], [numbers.double()])
    assert not zoo.same([numbers], [])
