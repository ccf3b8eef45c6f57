"""Modules of two runs that are paired, and those that differ."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Capture, talkerviz
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

import talkerviz as tv
from talkerviz.analysis.structure import StructureDiff, structure_diff
from talkerviz.api import Trace


class Block(nn.Module):
    """A transformer's block without attention."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.extra: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp(self.norm(x))
        return x if self.extra is None else self.extra(x)  # type: ignore[no-any-return]


class Stack(nn.Module):
    """Blocks in a list under a name, then a norm and a head under a name."""

    def __init__(
        self,
        blocks: int = 4,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        names: tuple[str, str] = ("blocks", "head"),
    ) -> None:
        super().__init__()
        self.names = names
        self.add_module(names[0], nn.ModuleList(Block(norm) for _ in range(blocks)))
        self.norm = norm(8)
        self.add_module(names[1], nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.get_submodule(self.names[0]):  # type: ignore[attr-defined]
            x = block(x)
        return self.get_submodule(self.names[1])(self.norm(x))  # type: ignore[no-any-return]


class Wrapper(nn.Module):
    """A user's own wrapper, with a part of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.scale = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(self.inner(x))  # type: ignore[no-any-return]


def recorded(model: nn.Module, name: str = "model") -> Trace:
    x = torch.ones(3, 8)
    return tv.record(model, lambda: model(x), name=name)


def changed(before: nn.Module, after: nn.Module) -> tuple[list[tuple[str, str, int]], StructureDiff]:
    """Return the kind, the name and the number of modules of each change."""
    diff = structure_diff(recorded(before), recorded(after))
    return [(change.kind, change.module, len(change.modules)) for change in diff.changes], diff


def edited(edit: Callable[[Any], Any]) -> nn.Module:
    model = Stack()
    edit(model)
    return model


def test_a_module_changed_everywhere_and_one_added() -> None:
    after = Stack(norm=nn.RMSNorm)
    after.blocks[2].extra = nn.Linear(8, 8)  # type: ignore[union-attr, index]
    changes, diff = changed(Stack(), after)
    assert changes == [
        ("changed", "model.blocks.*.norm", 4),
        ("added", "model.blocks.2.extra", 1),
        ("changed", "model.norm", 1),
    ]
    assert diff.changes[0].class_name == "LayerNorm ⇒ RMSNorm"
    assert diff.summary == "5 changed, 1 added"
    assert diff.notes == ()


@pytest.mark.parametrize(
    ("edit", "changes"),
    [
        (lambda model: model.blocks.append(Block()), [("added", "model.blocks.4", 1)]),
        (lambda model: model.blocks.insert(1, Block(nn.RMSNorm)), [("added", "model.blocks.1", 1)]),
        (lambda model: model.blocks.__delitem__(2), [("removed", "model.blocks.3", 1)]),
        (lambda model: model.blocks[1].mlp.insert(1, nn.Dropout(0.0)), [("added", "model.blocks.1.mlp.1", 1)]),
        (lambda model: setattr(model.blocks[1], "norm", nn.Identity()), [("changed", "model.blocks.1.norm", 1)]),
    ],
    ids=["appended", "inserted", "removed", "inserted in a sequence", "replaced"],
)
def test_only_what_was_edited_differs(edit: Callable[[Any], Any], changes: list[tuple[str, str, int]]) -> None:
    assert changed(Stack(), edited(edit))[0] == changes


@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        (nn.DataParallel, "DataParallel"),
        (lambda model: nn.Sequential(nn.Sequential(model)), "2 Sequential"),
        (
            lambda model: apply_activation_checkpointing(model, check_fn=lambda m: isinstance(m, Block)) or model,
            "4 CheckpointWrapper",
        ),
    ],
)
def test_wrappers_are_seen_through(wrap: Callable[[nn.Module], nn.Module], note: str) -> None:
    for back in (False, True):
        pair = (wrap(Stack()), Stack()) if back else (Stack(), wrap(Stack()))
        changes, diff = changed(*pair)
        assert changes == []
        (said,) = diff.notes
        assert said.startswith(f"Wrappers in the {'first' if back else 'second'} run")
        assert said.endswith(f": {note}.")


def test_other_parts_of_a_wrapper_are_added() -> None:
    assert changed(Stack(), Wrapper(Stack()))[0] == [("added", "model (Wrapper).scale", 1)]
    # Both are wrapped.
    assert changed(nn.DataParallel(Stack()), nn.Sequential(Stack()))[0] == []


def test_a_compiled_module_is_one_call() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(Stack(), backend="eager")
    changes, diff = changed(Stack(), compiled)  # type: ignore[arg-type]
    assert changes == []
    assert diff.notes == ("One call in the second run, so that modules in it are not compared: model (compiled).",)


def test_renamed_modules_are_paired() -> None:
    changes, diff = changed(Stack(), Stack(names=("layers", "out")))
    assert changes == []
    assert diff.notes == ("Renamed: model.blocks ⇒ model.layers, model.head ⇒ model.out.",)
    assert structure_diff(recorded(Stack(), "net"), recorded(Stack(), "other")).changes == ()


def test_operations_that_differ() -> None:
    class Activated(Stack):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu().exp()

    x = torch.ones(3, 8)
    before, after = (tv.record(model, x, measure="flow") for model in (Stack(), Activated()))
    (change,) = structure_diff(before, after).changes
    assert (change.module, change.class_name) == ("model", "Stack ⇒ Activated")
    assert change.operations == "+1 exp, +1 relu"
    assert structure_diff(before, before).summary == "The same modules are called, with the same shapes."


def test_shapes_and_calls_that_differ() -> None:
    model = nn.Linear(8, 8)

    def run(rows: int, calls: int) -> Trace:
        net = nn.Sequential(*[model] * calls)
        return tv.record(net, torch.ones(rows, 8))

    (of_root, of_linear) = structure_diff(run(2, 1), run(5, 1)).changes
    assert of_root.shapes == of_linear.shapes == "2x8 → 2x8 ⇒ 5x8 → 5x8"
    (again,) = structure_diff(run(2, 1), run(2, 3)).changes
    assert (again.kind, again.module, again.calls) == ("changed", "model.0", "1 ⇒ 3")


def test_the_command_tells_and_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    files = tmp_path / "a.parquet", tmp_path / "b.parquet"
    for file, model in zip(files, (Stack(), Stack(norm=nn.RMSNorm)), strict=True):
        recorded(model).save(file)
    assert talkerviz(monkeypatch, "diff", *files, "--fail-on", "structure") == 1
    shown = capfd.readouterr()
    assert "model.blocks.*.norm  4×" in shown.out
    assert shown.err == "talkerviz: the modules called differ: 5 changed\n"
    assert talkerviz(monkeypatch, "diff", files[0], files[0], "--fail-on", "structure") == 0
    assert "The same modules are called, with the same shapes." in capfd.readouterr().out
    assert talkerviz(monkeypatch, "diff", *files, "-f", "json") == 0
    read = json.loads(capfd.readouterr().out)
    assert [change["kind"] for change in read["changes"]] == ["changed", "changed"]
    assert {row["module"] for row in read["times"]} >= {"model", "model.blocks.*.norm"}
    assert read["notes"] == ["5 changed"]
    assert talkerviz(monkeypatch, "diff", *files, "-f", "csv") == 0
    heading, *rows = capfd.readouterr().out.splitlines()
    assert heading.startswith('"phase","modules","status"')
    assert len(rows) == len(read["times"])
