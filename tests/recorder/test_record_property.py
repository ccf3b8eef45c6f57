"""Random trees of modules and random nested tensors, against an interpreter that logs itself."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import UserDict
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis_examples import examples
from random_values import KEYS, VALUES, KVCache, Pair, Slotted
from taps import every_way
from torch import nn

import talkerviz as tv
from talkerviz.recorder import recording as recorder


class Seen(NamedTuple):
    path: str
    parent: int | None
    depth: int
    inputs: list[tuple[str, tuple[int, ...], str]]
    outputs: list[tuple[str, tuple[int, ...], str]]
    error: str | None


def flatten(value: Any, name: str = "") -> list[tuple[str, tuple[int, ...], str]]:
    """Names, shapes and dtypes of a value's tensors, in the plainest way there is."""
    join = lambda inner: f"{name}.{inner}" if name else str(inner)  # noqa: E731
    if isinstance(value, torch.Tensor):
        return [(name, tuple(value.shape), str(value.dtype)[6:])]
    if isinstance(value, (dict, UserDict)):
        return [found for key, inner in value.items() for found in flatten(inner, join(key))]
    if isinstance(value, (tuple, list)):
        return [found for place, inner in enumerate(value) for found in flatten(inner, join(place))]
    if isinstance(value, Slotted):
        return flatten(value.only, join("only"))
    if isinstance(value, (Pair, KVCache)):
        return [found for key, inner in vars(value).items() for found in flatten(inner, join(key))]
    return []


@dataclasses.dataclass
class Plan:
    """What a module does when it is called: call children with values, then return one or raise."""

    calls: list[tuple[int, tuple[Any, ...], dict[str, Any]]]
    result: Any
    raises: bool


class Acting(nn.Module):
    def __init__(self, plan: Plan, children: list[nn.Module], log: list[Any]) -> None:
        super().__init__()
        self.inner = nn.Sequential(*children)
        self.plan = plan
        self.log = log
        self.path = "model"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        begun = [*flatten(args), *flatten(kwargs)]
        rows, stack = self.log
        number = len(rows)
        rows.append(None)
        parent = stack[-1] if stack else None
        stack.append(number)
        error, result = None, None
        try:
            for child, child_args, child_kwargs in self.plan.calls:
                try:
                    self.inner[child % len(self.inner)](*child_args, **child_kwargs)
                except ArithmeticError:
                    error = "ArithmeticError"
                    raise
            if self.plan.raises:
                error = "ArithmeticError"
                raise ArithmeticError
            result = self.plan.result
        finally:
            stack.pop()
            named = flatten(result, "output") if isinstance(result, torch.Tensor) else flatten(result)
            rows[number] = Seen(self.path, parent, len(stack), begun, named, error)
        return result


ARGUMENTS = st.tuples(
    st.integers(0, 5), st.lists(VALUES, max_size=2).map(tuple), st.dictionaries(KEYS, VALUES, max_size=2)
)
PLANS = st.builds(Plan, st.lists(ARGUMENTS, max_size=3), VALUES, st.sampled_from([False] * 9 + [True]))


@st.composite
def trees(draw: st.DrawFn, depth: int = 3) -> Any:
    """Return a tree of plans."""
    plan = draw(PLANS)
    children = draw(st.lists(trees(depth - 1), max_size=2)) if depth else []
    if not children:
        plan.calls = []
    return plan, children


def build(tree: Any, log: Any) -> Acting:
    plan, children = tree
    return Acting(plan, [build(child, log) for child in children], log)


@every_way
@settings(
    deadline=None,
    max_examples=examples(30),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(tree=trees(), first=ARGUMENTS, times=st.integers(1, 3), batch=st.sampled_from([2, 7, 1 << 15]))
def test_what_a_reference_interpreter_sees(any_tap: str, tree: Any, first: Any, times: int, batch: int) -> None:
    log: Any = ([], [])
    model = build(tree, log)
    for path, module in model.named_modules(prefix="model"):
        if isinstance(module, Acting):
            module.path = path
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "_BATCH", batch)
        with tv.recording(model) as rec:
            for _ in range(times):
                with contextlib.suppress(ArithmeticError):
                    model(*first[1], **first[2])
    calls = rec.trace.calls
    assert len(calls) == len(log[0])
    for seen, row in zip(log[0], calls.itertuples(index=False), strict=True):
        assert row.path == seen.path
        assert (None if row.parent is calls["parent"].dtype.na_value else row.parent) == seen.parent
        assert row.depth == seen.depth
        assert [(t.name, t.shape, t.dtype) for t in row.inputs] == seen.inputs
        assert [(t.name, t.shape, t.dtype) for t in row.outputs] == seen.outputs
        assert (row.error if isinstance(row.error, str) else None) == seen.error
    nested = calls[calls["parent"].notna()]
    for row in nested.itertuples():
        assert calls["host_start_ns"][row.parent] <= row.host_start_ns
        assert row.host_start_ns + row.host_ns <= calls["host_start_ns"][row.parent] + calls["host_ns"][row.parent]
    assert (calls["host_self_ns"] >= 0).all()
    garbage = rec.trace.collections
    inside = garbage["host_ns"][garbage["call"] >= 0].sum()
    assert calls["host_self_ns"].sum() + inside == calls.loc[calls["depth"] == 0, "host_ns"].sum()
