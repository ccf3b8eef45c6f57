"""The page that follows a frame: what it names exists, and a frame passes no more files than it says."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from types import FrameType

import pytest
import torch.nn.functional as F
from doc_pages import DOCS
from repo_paths import ROOT
from talker_parity import CONFIG, talker
from talker_prompts import a_prompt
from torch import Tensor

from talkerviz.talker import generate

TALKER = ROOT / "talkerviz" / "talker"
PAGE = DOCS / "explanation" / "frame.md"
NAMED = re.compile(r"`([\w/]+\.py)`((?:, `[\w.]+`)+)")


def defined_in(path: Path) -> set[str]:
    """Return the names of a file's functions, classes and methods, methods with their class."""
    names: set[str] = set()

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                names.add(prefix + child.name)
                visit(child, f"{prefix}{child.name}.")

    visit(ast.parse(path.read_text(encoding="utf-8")), "")
    return names


def test_every_function_that_the_page_names_is_in_its_file() -> None:
    named = [
        (file, re.findall(r"`([\w.]+)`", names)) for file, names in NAMED.findall(PAGE.read_text(encoding="utf-8"))
    ]
    assert len(named) > 15
    for file, names in named:
        assert set(names) <= defined_in(TALKER / file), file


def test_no_matrix_product_of_a_frame_is_further_than_five_files(monkeypatch: pytest.MonkeyPatch) -> None:
    stacks: set[tuple[str, ...]] = set()
    linear = F.linear

    def watched(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        frame: FrameType | None = sys._getframe(1)
        files: list[str] = []
        while frame is not None and frame.f_code.co_name != "stream":
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(TALKER):
                files.append(path.relative_to(TALKER).as_posix())
            frame = frame.f_back
        stacks.add(tuple(dict.fromkeys([*files, "generation/generate.py"])))
        return linear(x, weight, bias)

    model = talker("tiny", "native")
    prompt = a_prompt(model)
    monkeypatch.setattr(F, "linear", watched)
    assert generate(model, prompt, 2, ignore_eos=True).shape == (2, CONFIG.num_code_groups)
    assert {file for stack in stacks for file in stack} >= {
        "model/moe.py",
        "model/attention.py",
        "model/code_predictor.py",
    }
    assert max(map(len, stacks)) <= 5
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"`{file}`" in page for stack in stacks for file in stack)
