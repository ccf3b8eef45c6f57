"""The flow of tensors in programs that are drawn, against what changes when an input does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from flow_words import flow, follow
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_examples import examples
from torch import Tensor, nn

# What a program may do with two tensors [3, 4]: give a new one by one operation,
PURE: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "add": lambda a, b: a + b,
    "sin": lambda a, b: a.sin(),
    "mul": lambda a, b: a * b[0],
    "maximum": lambda a, b: torch.maximum(a.T, b.T).T,
    "cumsum": lambda a, b: a.cumsum(0),
    "tanh": lambda a, b: a.chunk(2, 1)[0].expand(2, 3, 2).transpose(0, 1).reshape(3, 4).tanh(),
    "cat": lambda a, b: torch.cat([a, b])[1:4],
    "softmax": lambda a, b: F.softmax(a, -1),
}
READ_ONE = {"sin", "cumsum", "tanh", "softmax"}
# the same values in another place,
COPIES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "clone": lambda a, b: a.clone(),
    "float": lambda a, b: a.float().double(),
}
# the same place,
VIEWS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "view_as": lambda a, b: a.view_as(b),
    "getitem": lambda a, b: a[:],
}
# or write into one.
WRITES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "add_": lambda a, b: a.add_(b),
    "sigmoid_": lambda a, b: a.sigmoid_(),
    "copy_": lambda a, b: a.copy_(b),
    "zero_": lambda a, b: a.zero_(),
    "row": lambda a, b: a.__setitem__(1, b[2]),
    "rows": lambda a, b: a[:2].mul_(b[1:].clone()),
    "column": lambda a, b: a[:, 3].copy_(b[:, 1]),
    "columns": lambda a, b: a[:, 1:3].add_(b.clone()[:, :2]),
    "chosen": lambda a, b: a.index_add_(0, torch.tensor([2, 0]), b[:2].clone()),
    "place": lambda a, b: a.__setitem__((torch.tensor([1]), torch.tensor([2])), b[0, 0].clone()),
    "out": lambda a, b: torch.sin(b.clone(), out=a),
}

Program = list[tuple[str, int, int]]


class Runs(nn.Module):
    """Runs a program on three tensors, and then reads each of the values that there are."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
        values = [x, y, z]
        for name, first, second in self.program:
            a, b = values[first % len(values)], values[second % len(values)]
            if name in WRITES:
                WRITES[name](a, b)
            else:
                values.append((PURE | COPIES | VIEWS)[name](a, b))
        return [value.atan() for value in values]


def leaves(changed: int | None = None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = [torch.rand(3, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    if changed is not None:
        values[changed] += torch.rand(3, 4, generator=generator, dtype=torch.float64) + 0.1
    return values


def programs(*kinds: dict[str, Any]) -> st.SearchStrategy[Program]:
    names = sorted(name for kind in kinds for name in kind)
    return st.lists(st.tuples(st.sampled_from(names), st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=12)


@given(programs(PURE, COPIES, VIEWS))
@settings(max_examples=examples(30), deadline=None)
def test_programs_without_writes(program: Program) -> None:
    expected = [":x()", ":y()", ":z()"]
    made_by = [0, 1, 2]
    for name, first, second in program:
        a, b = made_by[first % len(made_by)], made_by[second % len(made_by)]
        if name not in PURE:
            made_by.append(a)
            continue
        made_by.append(len(expected))
        sources = sorted({a} if name in READ_ONE else {a, b})
        expected.append(f"{name}({', '.join(map(str, sources))})")
    expected += [f"atan({number})" for number in made_by]
    assert flow(Runs(program), *leaves()) == expected


@given(programs(PURE, COPIES, VIEWS, WRITES))
@settings(max_examples=examples(60), deadline=None)
def test_programs_with_writes(program: Program) -> None:
    """What really changes with an input comes from it; and nothing comes from what never went into its storage."""
    model = Runs(program)
    with torch.no_grad():
        given = leaves()
        trace = follow(model, lambda: model(*given))
        results = model(*leaves())
        changes = [
            {i for i, (one, two) in enumerate(zip(results, model(*leaves(leaf)), strict=True)) if not one.equal(two)}
            for leaf in range(3)
        ]
    assert trace.flow is not None
    assert list(trace.flow.ops["name"].iloc[:3]) == ["x", "y", "z"]
    above: list[set[int]] = [set() for _ in range(len(trace.flow.ops))]
    for source, target, _ in trace.flow.edges.itertuples(index=False):
        above[target] |= {source} | above[source]

    storage, holds = [0, 1, 2], {0: {0}, 1: {1}, 2: {2}}
    for name, first, second in program:
        a, b = storage[first % len(storage)], storage[second % len(storage)]
        if name in WRITES:
            overwritten = name in ("copy_", "out", "zero_")
            holds[a] = (set() if overwritten else holds[a]) | (set() if name in ("sigmoid_", "zero_") else holds[b])
        elif name in VIEWS:
            storage.append(a)
        else:
            storage.append(len(holds))
            holds[len(holds)] = holds[a] | (set() if name in READ_ONE or name in COPIES else holds[b])
    reads = len(above) - len(storage)
    for number, place in enumerate(storage):
        found = {leaf for leaf in range(3) if leaf in above[reads + number]}
        assert {leaf for leaf in range(3) if number in changes[leaf]} <= found <= holds[place]
