"""Arguments and results of modules: containers, and tensors of all kinds."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import torch
from small_model import shapes
from taps import every_way
from torch import nn

import talkerviz as tv

pytestmark = [
    pytest.mark.usefixtures("nothing_is_left"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]


class Giving(nn.Module):
    """Gives what it is told to, whatever it takes."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.value


class Budget:
    """Fails what takes too long, instead of hanging."""

    def __enter__(self) -> None:
        self.before = signal.signal(signal.SIGALRM, self.stop)
        signal.setitimer(signal.ITIMER_REAL, 5)

    def __exit__(self, *args: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.before)

    def stop(self, *args: object) -> None:
        raise TimeoutError


def given(value: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Return recorded inputs and outputs, checked to be the same twice."""
    model = Giving()
    model.value = value
    with Budget():
        trace = tv.record(model, lambda: [model(*args, **kwargs) for _ in range(2)])
    inputs, outputs = trace.calls["inputs"], trace.calls["outputs"]
    assert inputs[0] == inputs[1]
    assert outputs[0] == outputs[1]
    return inputs[0], outputs[0]


@every_way
def test_containers_that_are_huge_or_contain_themselves(any_tap: str) -> None:
    one = torch.zeros(1)
    narrow: list[Any] = [one]
    narrow.append(narrow)
    assert shapes(given(narrow)[1])[0] == ("0", (1,))
    wide: list[Any] = [one]
    wide += [wide] * 20
    assert shapes(given(wide)[1])[0] == ("0", (1,))
    named: dict[str, Any] = {"here": one}
    named |= dict.fromkeys("abcdefghij", named)
    assert shapes(given(named)[1])[0] == ("here", (1,))
    # Of a long list the ends are looked at, and equal neighbours are one.
    assert given([one] * 3000)[1] == (("0-2999", (1,), "float32", "cpu", 3000),)
    assert given(tuple([one] * 20 + [torch.zeros(2)] * 20))[1] == (
        ("0-15", (1,), "float32", "cpu", 16),
        ("24-39", (2,), "float32", "cpu", 16),
    )
    assert given(tuple(map(torch.zeros, range(40))))[1][16].name == "24"
    assert given([0] * 100_000 + [{"a": one}])[1][0].name == "100000.a"
    deep: Any = one
    for _ in range(5000):
        deep = [deep]
    assert given(deep)[1] == ()


@every_way
def test_tensors_of_all_kinds(any_tap: str) -> None:
    class Own(torch.Tensor):
        pass

    ones, places = torch.ones(2, 2), torch.tensor([[0, 1], [1, 0]])
    kinds: list[tuple[torch.Tensor, tuple[int, ...], str, str]] = [
        (ones.as_subclass(Own), (2, 2), "float32", "cpu"),
        (nn.Parameter(ones), (2, 2), "float32", "cpu"),
        (torch.sparse_coo_tensor(places, torch.ones(2), (2, 2)), (2, 2), "float32", "cpu"),
        (ones.to_sparse_csr(), (2, 2), "float32", "cpu"),
        (torch.quantize_per_tensor(ones, 0.1, 0, torch.quint8), (2, 2), "quint8", "cpu"),
        (ones.to(torch.complex64).conj(), (2, 2), "complex64", "cpu"),
        (ones.to(torch.complex64).conj().imag, (2, 2), "float32", "cpu"),
        (ones.to(torch.float8_e4m3fn), (2, 2), "float8_e4m3fn", "cpu"),
        (ones.to(torch.uint16), (2, 2), "uint16", "cpu"),
        (ones.to("meta"), (2, 2), "float32", "meta"),
        (ones.expand(0, 2, 2).transpose(0, 2), (2, 2, 0), "float32", "cpu"),
        (torch.ones(()), (), "float32", "cpu"),
    ]
    for tensor, shape, dtype, device in kinds:
        for found, name in zip(given(tensor, tensor), ("0", "output"), strict=True):
            assert found == ((name, shape, dtype, device, 1),)


@every_way
def test_tensors_whose_sizes_are_not_numbers(any_tap: str) -> None:
    """They are recorded with what can be said of them, and do not stop the run."""
    rows = [torch.zeros(2, 4), torch.zeros(3, 4)]
    for layout in (torch.strided, torch.jagged):
        nested = torch.nested.nested_tensor(rows, layout=layout)
        for found in given(nested, nested):
            assert len(found) == 1
            assert found[0].dtype == "float32"
            assert -1 in found[0].shape
    assert [tensor.device for tensor in given(nn.UninitializedParameter())[1]] == ["cpu"]


@every_way
def test_names_of_nested_tensors(any_tap: str) -> None:
    class SmallCache:
        __slots__ = ("tensor",)

    one, two, three = (torch.zeros(size) for size in (1, 2, 3))
    small = SmallCache()
    small.tensor = one
    odd = {1: one, (2, 3): two, None: three, "1": two}
    assert shapes(given(odd)[1]) == [("1", (1,)), ("(2, 3)", (2,)), ("None", (3,)), ("1", (2,))]
    assert shapes(given(None, three, z=one, a=two)[0]) == [("0", (3,)), ("z", (1,)), ("a", (2,))]
    assert shapes(given(None, a=two, z=one)[0]) == [("a", (2,)), ("z", (1,))]
    assert shapes(given(None, **{"out put": one})[0]) == [("out put", (1,))]
    assert shapes(given([small, one])[1]) == [("0.tensor", (1,)), ("1", (1,))]
