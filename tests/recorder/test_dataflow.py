"""The flow of tensors, against flows worked out by hand."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from flow_words import Does, X, Y, flow, flow_of, follow
from taps import every_way
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.checkpoint import checkpoint

import talkerviz as tv
from talkerviz.trace.join import join


def test_a_residual_goes_around_what_it_goes_around() -> None:
    model = Does(lambda self, x, y: x + self.lin(x), lin=nn.Linear(4, 4))
    assert flow(model, X) == [":x()", "lin.linear(0)", "add(0, 1)"]
    trace = follow(model, lambda: model(X))
    assert trace.flow is not None
    ops = trace.flow.ops
    assert list(ops["call"]) == [-1, 1, 0]
    assert list(ops["after"]) == [-1, 1, 1]
    assert list(ops["heavy"]) == [False, True, False]
    assert list(ops["frame"]) == [0, 0, 0]
    assert [t.shape for t in ops["inputs"][1]] == [(2, 4), (4, 4), (4,)]
    assert [t.name for t in ops["inputs"][2]] == ["0", "1"]
    assert [t.shape for t in ops["outputs"][0]] == [(2, 4)]


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("inference", [True, False])
def test_it_is_the_same_in_every_grad_mode(grad: bool, inference: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Conv1d(2, 2, 1), nn.Flatten(), nn.Softmax(-1))
    with torch.set_grad_enabled(grad), torch.inference_mode(inference):
        trace = follow(model.eval(), lambda: model(torch.ones(1, 2, 4)))
    assert flow_of(trace) == [
        "ones()",
        "0.linear(0)",
        ":1.pass(1)",
        "2.conv1d(2)",
        ":3.pass(3)",
        "4.softmax(4)",
    ]


def test_what_a_call_hands_on_comes_from_it() -> None:
    model = Does(
        lambda self, x, y: self.conv(x) + self.same(x),
        same=nn.Sequential(nn.Identity(), nn.Dropout(0.5)),
        conv=nn.Linear(4, 4),
    ).eval()
    assert flow(model, X) == [
        ":x()",
        "conv.linear(0)",
        ":same.0.pass(0)",
        ":same.1.pass(2)",
        "add(1, 3)",
    ]

    def shortcut_first(self: Any, x: Tensor, y: Any) -> Tensor:
        shortcut = self.same(x)
        return self.conv(x) + shortcut

    model = Does(shortcut_first, same=nn.Identity(), conv=nn.Linear(4, 4))
    assert flow(model, X) == [":x()", ":same.pass(0)", "conv.linear(0)", "add(1, 2)"]
    assert flow(nn.Identity(), X) == [":input()", ":pass(0)"]


@pytest.mark.parametrize(
    ("function", "lines"),
    [
        # One tensor under two names: the name that an expression loads tells which is read.
        (lambda self, x, y: x + self.same(x), ["add(0, 1)"]),
        (lambda self, x, y: self.same(x) + x, ["add(0, 1)"]),
        (lambda self, x, y: self.lin(self.same(x)) + x, ["lin.linear(1)", "add(0, 2)"]),
        (lambda self, x, y: self.lin(x) * x + self.same(x), ["lin.linear(0)", "mul(0, 1)", "add(2, 3)"]),
        (lambda self, x, y: torch.stack([self.same(x), x]), ["stack(0, 1)"]),
        (lambda self, x, y: x.add(self.same(x)), ["add(0, 1)"]),
    ],
)
def test_what_is_handed_on_is_read_beside_the_original(function: Any, lines: list[str]) -> None:
    model = Does(function, lin=nn.Linear(4, 4), same=nn.Identity())
    passes = [":same.pass(0)"]
    at = 2 if lines[0].startswith("lin.linear(0)") and len(lines) == 3 else 0
    assert flow(model, X) == [":x()", *lines[:at], *passes, *lines[at:]]


def test_what_is_handed_on_has_a_name() -> None:
    def both(self: Any, x: Tensor, y: Any) -> Tensor:
        same = self.same(x)
        return self.lin(x).cos() + self.lin(same).sin()

    model = Does(both, lin=nn.Linear(4, 4), same=nn.Identity())
    expected = [":x()", ":same.pass(0)", "lin.linear(0)", "cos(2)", "lin.linear(1)", "sin(4)", "add(3, 5)"]
    assert flow(model, X) == expected

    def one_after_another(self: Any, x: Tensor, y: Any) -> Tensor:
        first = self.same(x)
        second = self.same(first)
        return torch.stack([x, first, second])

    model = Does(one_after_another, same=nn.Identity())
    assert flow(model, X) == [":x()", ":same.pass(0)", ":same.pass(1)", "stack(0, 1, 2)"]

    def in_a_loop(self: Any, x: Tensor, y: Any) -> Tensor:
        kept = x
        for _ in range(2):
            x = self.same(x)
            x = self.same(x)
        return self.lin(x) + kept

    model = Does(in_a_loop, lin=nn.Linear(4, 4), same=nn.Identity())
    passes = [f":same.pass({number})" for number in range(4)]
    # `kept` was never given to a module: it counts as what the last of them returned.
    assert flow(model, X) == [":x()", *passes, "lin.linear(4)", "add(4, 5)"]

    def two_at_once(self: Any, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.same(x), self.same(y)
        return self.lin(y) + x

    model = Does(two_at_once, lin=nn.Linear(4, 4), same=nn.Identity())
    expected = [":x()", ":y()", ":same.pass(0)", ":same.pass(1)", "lin.linear(3)", "add(2, 4)"]
    assert flow(model, X, Y) == expected


def test_what_is_handed_on_inside_a_call_is_as_it_was_outside() -> None:
    inner = Does(lambda self, x, y: self.same(x).sum() + x.sin(), same=nn.Identity())
    model = Does(lambda self, x, y: self.inner(x) + self.lin(x), inner=inner, lin=nn.Linear(4, 4))
    expected = [":x()", ":inner.same.pass(0)", "inner.sum(1)", "inner.sin(0)", "inner.add(2, 3)", "lin.linear(0)"]
    assert flow(model, X) == [*expected, "add(4, 5)"]


def test_what_is_handed_on_is_written_in_place() -> None:
    def run(self: Any, x: Tensor, y: Tensor) -> Tensor:
        same = self.same(x)
        same += y
        return same.sin() + x.cos()

    expected = [":x()", ":y()", ":same.pass(0)", "add_(1, 2)", "sin(3)", "cos(3)", "add(4, 5)"]
    assert flow(Does(run, same=nn.Identity()), X.clone(), Y) == expected

    def rows(self: Any, x: Tensor, y: Tensor) -> Tensor:
        same = self.same(x + 1)
        same[0] = y[0]
        return same.sin()

    expected = [":x()", ":y()", "add(0)", ":same.pass(2)", "setitem(1, 3*)", "sin(4)"]
    assert flow(Does(rows, same=nn.Identity()), X, Y) == expected


def test_parts_of_what_is_handed_on() -> None:
    def run(self: Any, x: Tensor, y: Any) -> Tensor:
        q, k, v = self.lin(x).view(2, 3, 2, 2).unbind(1)
        q, k = self.q(q), self.k(k)
        return F.scaled_dot_product_attention(q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)) + v

    model = Does(run, lin=nn.Linear(4, 12), q=nn.Identity(), k=nn.Identity())
    attention = "scaled_dot_product_attention(1, 2, 3)"
    assert flow(model, X) == [":x()", "lin.linear(0)", ":q.pass(1)", ":k.pass(1)", attention, "add(1, 4)"]


def test_a_call_that_raises_has_what_it_read() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(5, 4))
    with pytest.raises(RuntimeError, match="shapes"), tv.recording(model, measure="flow") as rec:
        model(X)
    assert flow_of(rec.trace) == [":input()", "0.linear(0)", "1.relu(1)", "2.linear(2)"]

    def tries(self: Any, x: Tensor, y: Any) -> Tensor:
        with contextlib.suppress(RuntimeError):
            x.view(3)
        with contextlib.suppress(RuntimeError):
            self.lin(x)
        return x.sin()

    # What is caught inside of a call is no operation of that one.
    assert flow(Does(tries, lin=nn.Linear(5, 4)), X) == [":x()", "lin.linear(0)", "sin(0)"]


def test_tensors_of_a_tuple_are_handed_on_one_by_one() -> None:
    class Swap(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
            return y, x.sin(), y, 3

    def use(self: Any, x: Tensor, y: Tensor) -> Tensor:
        first, second, third, _ = self.swap(x, y)
        assert first is third
        return first * second

    assert flow(Does(use, swap=Swap()), X, Y) == [":x()", ":y()", "swap.sin(0)", ":swap.pass(1)", "mul(2, 3)"]


def test_a_parameter_that_a_module_gives_comes_from_it() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 4))

        def forward(self) -> Tensor:
            return self.weight

    assert flow(Does(lambda self, x, y: x + self.table(), table=Table()), X) == [
        ":x()",
        ":table.pass()",
        "add(0, 1)",
    ]


def test_written_in_place() -> None:
    def run(self: Any, x: Tensor, y: Tensor) -> Tensor:
        z = x * 2
        z += y
        before = z.sin()
        z.relu_()
        torch.add(x, y, out=z)
        return z + before

    assert flow(Does(run), X, Y) == [
        ":x()",
        ":y()",
        "mul(0)",
        "add_(1, 2)",
        "sin(3)",
        "relu_(3)",
        "add(0, 1)",
        "add(4, 6)",
    ]


def test_written_in_part() -> None:
    def columns(self: Any, x: Tensor, y: Tensor) -> Tensor:
        out = torch.empty(2, 8)
        out[:, :4] = x
        out[:, 4:] = y
        return out.sin()

    assert flow(Does(columns), X, Y) == [
        ":x()",
        ":y()",
        "empty()",
        "setitem(0, 2*)",
        "setitem(1, 3*)",
        "sin(4)",
    ]

    def rows(self: Any, x: Tensor, y: Tensor) -> Tensor:
        out = torch.zeros(8, 4)
        out[:2] = x
        out[2:4] = y
        return out[:2].sin() + out[2:4].cos() + out[4:6].tan() + out[1:3].exp()

    assert flow(Does(rows), X, Y) == [
        ":x()",
        ":y()",
        "zeros()",
        "setitem(0)",
        "setitem(1)",
        "sin(3)",
        "cos(4)",
        "add(5, 6)",
        "tan(2)",
        "add(7, 8)",
        "exp(3, 4)",
        "add(9, 10)",
    ]


def test_a_part_is_read_and_written() -> None:
    def run(self: Any, x: Tensor, y: Tensor) -> Tensor:
        z = x.clone()
        z[:, 0].add_(y[:, 0])
        return z.sin()

    assert flow(Does(run), X, Y) == [":x()", ":y()", "add_(0, 1)", "sin(2)"]


class Cached(nn.Module):
    """Layers with one cache [layers, heads, positions, 4], as the talker's."""

    def __init__(self, heads: int, positions: int, layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4 * heads, bias=False) for _ in range(layers))
        self.cache = torch.zeros(layers, heads, positions, 4)
        self.length = 0

    def forward(self, x: Tensor) -> Tensor:
        end = self.length + 1
        for number, layer in enumerate(self.layers):
            self.cache[number, :, self.length : end] = layer(x).view(-1, 1, 4)
            x = self.cache[number, :, :end].sum((0, 1))
        self.length = end
        return x


@pytest.mark.parametrize("heads", [1, 3])
def test_a_cache_that_is_there_from_the_beginning(heads: int) -> None:
    model = Cached(heads, positions=20)

    def run() -> None:
        for _ in range(20):
            model(torch.ones(4))

    with torch.no_grad():
        lines = flow_of(follow(model, run))
    # Each write of a layer is made from the one before of this layer, and each read has one edge, from the last write.
    expected: list[str] = []
    writes: dict[int, int] = {}
    for frame in range(20):
        x = len(expected)
        expected.append("ones()")
        for layer in range(2):
            linear = len(expected)
            expected.append(f"layers.{layer}.linear({x})")
            if heads > 1 and not frame:
                if not layer:
                    expected.append(":input()")
                writes[layer] = 2  # the heads' positions are apart: what is between them stays
            sources = sorted([(linear, ""), *([(writes[layer], "*")] if layer in writes else [])])
            writes[layer] = len(expected)
            expected.append(f"setitem({', '.join(f'{number}{state}' for number, state in sources)})")
            x = len(expected)
            expected.append(f"sum({x - 1})")
    assert lines == expected


def test_a_cache_that_grows() -> None:
    def run(self: Any, x: Tensor, y: Any) -> None:
        cache = x
        for _ in range(3):
            cache = torch.cat([cache, self.lin(x)])
            cache.sum()

    assert flow(Does(run, lin=nn.Linear(4, 4)), X) == [
        ":x()",
        "lin.linear(0)",
        "cat(0, 1)",
        "sum(2)",
        "lin.linear(0)",
        "cat(2, 4)",
        "sum(5)",
        "lin.linear(0)",
        "cat(5, 7)",
        "sum(8)",
    ]


@dataclass
class Pair:
    left: Tensor
    right: Tensor


def test_what_calls_return_in_containers() -> None:
    outer = Does(lambda self, x, y: {"a": x.sin(), "b": Pair(x.cos(), x.tan())})
    model = Does(lambda self, x, y: (out := self.inner(x))["a"] + out["b"].right, inner=outer)
    assert flow(model, X) == [":x()", "inner.sin(0)", "inner.cos(0)", "inner.tan(0)", "add(1, 3)"]


def test_arguments_in_containers_are_inputs_by_their_places() -> None:
    model = Does(lambda self, x, y: x[0] + x[1].left + y["mask"])
    assert flow(model, (X, Pair(Y, X)), y={"mask": Y.clone(), "no": None}) == [
        ":x.0()",
        ":x.1.left()",
        ":y.mask()",
        "add(0, 1)",
        "add(2, 3)",
    ]
    many = flow(Does(lambda self, x, y: torch.stack(x)), [X.clone() for _ in range(9)])
    assert many == [*[":x()"] * 9, "stack(0, 1, 2, 3, 4, 5, 6, 7, 8)"]
    constant = torch.ones(4)
    assert flow(Does(lambda self, x, y: x * constant + torch.tensor([1.0])), X) == [
        ":x()",
        ":input()",
        "mul(0, 1)",
        "tensor()",
        "add(2, 3)",
    ]


def test_parameters_and_buffers_are_no_inputs_until_they_are_written() -> None:
    model = nn.BatchNorm1d(4)
    lines = flow(nn.Sequential(model), X)
    assert lines == [":input()", "0.add_()", "0.batch_norm(0)"]

    def run() -> None:
        for _ in range(2):
            model(X)

    assert flow_of(follow(model, run)) == [
        ":input()",
        "add_()",
        "batch_norm(0)",
        "add_(1*)",
        "batch_norm(0)",  # torch does not say that its operator writes the statistics
    ]


def test_parameters_of_one_call_are_no_inputs_either() -> None:
    """What `functional_call` puts in their place, unless it is made in the run itself."""
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    others = {name: weight.detach() * 2 for name, weight in model.named_parameters()}
    given = follow(model, lambda: torch.func.functional_call(model, others, (X,)))
    assert flow_of(given) == [":input()", "0.linear(0)", "1.layer_norm(1)"]

    def run() -> None:
        torch.func.functional_call(model, others | {"0.weight": others["0.weight"] + 1}, (X,))

    assert flow_of(follow(model, run)) == [
        ":input()",
        "add(0)",
        ":input()",
        "0.linear(1, 2)",
        "1.layer_norm(3)",
    ]


def test_attention() -> None:
    def run(self: Any, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(1, 5, 3, 2, 4).unbind(2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        scores = q @ k.mT / 2
        scores = scores.masked_fill(mask.expand(1, 2, 5, 5), -torch.inf)
        mixed = F.softmax(scores, -1, dtype=torch.float64).to(x.dtype) @ v
        mixed = mixed + F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return mixed.transpose(1, 2).reshape(1, 5, 8)

    model = Does(run, qkv=nn.Linear(8, 24))
    assert flow(model, torch.ones(1, 5, 8), torch.ones(5, 5).triu(1).bool()) == [
        ":x()",
        ":y()",
        "qkv.linear(0)",
        "matmul(2)",
        "div(3)",
        "masked_fill(1, 4)",
        "softmax(5)",
        "matmul(2, 6)",
        "scaled_dot_product_attention(1, 2)",
        "add(7, 8)",
    ]


def test_experts() -> None:
    def run(self: Any, x: Tensor, y: Any) -> Tensor:
        weights, chosen = self.gate(x).topk(1)
        out = torch.zeros_like(x)
        for number, expert in enumerate((self.a, self.b)):
            rows, _ = (chosen == number).nonzero(as_tuple=True)
            out.index_add_(0, rows, expert(x[rows]) * weights[rows])
        return out + x

    model = Does(run, gate=nn.Linear(4, 2), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    assert flow(model, torch.randn(64, 4)) == [
        ":x()",
        "gate.linear(0)",
        "topk(1)",
        "zeros_like()",
        "eq(2)",
        "nonzero(4)",
        "getitem(0, 5)",
        "a.linear(6)",
        "getitem(2, 5)",
        "mul(7, 8)",
        "index_add_(3*, 5, 9)",
        "eq(2)",
        "nonzero(11)",
        "getitem(0, 12)",
        "b.linear(13)",
        "getitem(2, 12)",
        "mul(14, 15)",
        "index_add_(10*, 12, 16)",
        "add(0, 17)",
    ]


def test_views_are_seen_through() -> None:
    def run(self: Any, x: Tensor, y: Tensor) -> Tensor:
        left, right = (x + 1).chunk(2, dim=-1)
        left = left[None].expand(3, 2, 2).transpose(0, 1).reshape(6, 2).contiguous().double().float()
        return left.view(3, 2, 2)[0].T[:, :2] * right.clone()[:2, :2]

    assert flow(Does(run), X, Y) == [":x()", ":y()", "add(0)", "mul(2)"]


def test_behind_nothing_a_tensor_stays_what_it_is() -> None:
    # A cache that grows begins empty.
    def run(self: Any, x: Tensor, y: Tensor) -> Tensor:
        first = torch.cat([x.new_empty(0, 4), x + 1])
        return torch.cat([first, y]) * 2

    assert flow(Does(run), X, Y) == [":x()", ":y()", "new_empty()", "add(0)", "cat(1, 3)", "mul(4)"]


def test_a_module_that_is_called_twice() -> None:
    model = Does(lambda self, x, y: self.lin(self.lin(x)), lin=nn.Linear(4, 4))
    trace = follow(model, lambda: model(X))
    assert flow_of(trace) == [":x()", "lin.linear(0)", "lin.linear(1)"]
    assert trace.flow is not None
    assert list(trace.flow.ops["call"]) == [-1, 1, 2]


def test_addresses_that_are_used_again() -> None:
    def run(self: Any, x: Tensor, y: Tensor) -> None:
        for _ in range(3000):
            x = x + y
            _ = x.sin()  # let go at once

    lines = flow(Does(run), X, Y)
    last = 0
    for number in range(2, 6002, 2):
        assert lines[number : number + 2] == [f"add({', '.join(map(str, sorted((1, last))))})", f"sin({number})"]
        last = number


def test_no_tensor_is_kept_alive() -> None:
    seen = []

    def run(self: Any, x: Tensor, y: Any) -> None:
        for _ in range(5000):
            x = self.same(x) + 1
            seen.append(weakref.ref(x))

    model = Does(run, same=nn.Identity())
    with torch.no_grad(), tv.recording(model, measure="flow") as rec:
        model(X)
        gc.collect()
        assert not [ref for ref in seen if ref() is not None]
        assert len(rec._instruments[0]._provenance._storages) < 1100  # type: ignore[attr-defined]


def modes() -> list[Any]:
    return [*_get_current_dispatch_mode_stack(), *_get_current_function_mode_stack(), nn.Module.__call__]


@every_way
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_behind(any_tap: str, error: type[BaseException]) -> None:
    def fail(self: Any, x: Tensor, y: Any) -> None:
        x = self.same(x).sin()
        raise error

    before = modes()
    model = Does(lambda self, x, y: self.fails(x), fails=Does(fail, same=nn.Identity()))
    with pytest.raises(error), tv.recording(model, measure="flow") as rec:
        model(X)
    assert modes() == before
    assert flow_of(rec.trace) == [":x()", ":fails.same.pass(0)", "fails.sin(1)"]
    with tv.recording(nn.Identity(), measure="flow") as rec, pytest.raises(RuntimeError):
        torch.ones(2).sin() + torch.ones(3)
    assert flow_of(rec.trace) == ["ones()", "sin(0)", "ones()"]
    assert modes() == before


def test_calls_that_are_not_recorded() -> None:
    inner = Does(lambda self, x, y: self.lin(self.same(x)).sin(), lin=nn.Linear(4, 4), same=nn.Identity())
    model = Does(lambda self, x, y: self.inner(x) + x, inner=inner)
    trace = follow(model, lambda: model(X), exclude=["model.inner", "*.same"])
    assert flow_of(trace) == [":x()", "inner.lin.linear(0)", "sin(1)", "add(0, 2)"]


def test_backward_and_checkpoints() -> None:
    model = Does(
        lambda self, x, y: checkpoint(lambda x: self.lin(x).sin(), x, use_reentrant=False), lin=nn.Linear(4, 4)
    )
    with tv.recording(model, measure="flow") as rec:
        model(X).sum().backward()
    lines = flow_of(rec.trace)
    if "empty()" in lines:  # with which torch 2.11 begins a checkpoint
        pytest.skip("other operations make up a checkpoint")
    assert lines[:6] == [":x()", "lin.linear(0)", "sin(1)", "sum(2)", "ones_like()", "lin.linear(0)"]
    assert lines[6:8] == ["cos(5)", "mul(4, 6)"]


def test_other_threads_are_not_seen() -> None:
    model = nn.Linear(4, 4)

    def run() -> None:
        thread = threading.Thread(target=lambda: model(X))
        thread.start()
        thread.join()
        model(Y)

    trace = follow(model, run)
    assert len(trace.calls) == 2
    assert trace.flow is not None
    assert list(trace.flow.ops["call"]) == [-1, 1]


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.down = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.down(x)
        out = self.conv2(self.relu(self.norm1(self.conv1(x))))
        out += shortcut
        return self.relu(out)


def test_a_convolutional_net() -> None:
    model = nn.Sequential(Block(4), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    trace = follow(model, lambda: model(torch.ones(1, 4, 6, 6)))
    assert flow_of(trace) == [
        "ones()",
        ":0.down.pass(0)",
        "0.conv1.conv2d(0)",
        "0.norm1.batch_norm(2)",
        "0.relu.relu(3)",
        "0.conv2.conv2d(4)",
        "0.add_(1, 5)",
        "0.relu.relu(6)",
        "1.max_pool2d(7)",
        "2.adaptive_avg_pool2d(8)",
        ":3.pass(9)",
        "4.linear(10)",
    ]
    assert trace.flow is not None
    heavy = trace.flow.ops.set_index("name")["heavy"]
    assert set(heavy.index[heavy]) == {"conv2d", "batch_norm", "max_pool2d", "adaptive_avg_pool2d", "linear"}


@pytest.mark.parametrize("train", [True, False])
def test_torch_s_own_large_modules(train: bool) -> None:
    x = torch.ones(2, 5, 16)
    assert flow(nn.LSTM(16, 4, batch_first=True).train(train), x) == [
        ":input()",
        "zeros()",
        "zeros()",
        "lstm(0, 1, 2)",
    ]
    attention = nn.MultiheadAttention(16, 4, batch_first=True).train(train)
    attend = "multi_head_attention_forward" if train else "native_multi_head_attention"
    assert flow(attention, x, x, x) == [":query()", f"{attend}(0)"]
    layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True).train(train)
    lines = flow(layer, x)
    if train:
        assert lines[1:4] == ["self_attn.multi_head_attention_forward(0)", ":dropout1.pass(1)", "add(0, 2)"]
    else:  # it calls none of its modules then, as without a recording
        assert lines == [":src()", "transformer_encoder_layer_fwd(0)"]
    plain = tv.record(layer, torch.no_grad()(lambda: layer(x)))
    joined = join(plain, follow(layer, torch.no_grad()(lambda: layer(x))))
    assert joined.flow is not None


def test_code_that_is_not_python() -> None:
    model = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    assert flow(model, X) == [":input()", "addmm(0)", "relu(1)"]
    model = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), backend="eager")
    assert flow(model, X)[1:] == ["_orig_mod.0.linear(0)", "_orig_mod.1.relu(1)"]


def test_tracing_is_left_alone() -> None:
    model = Does(lambda self, x, y: self.lin(self.same(x)) + x, lin=nn.Linear(4, 4), same=nn.Identity())
    plain = torch.jit.trace(model, X, check_trace=False)
    with tv.recording(model, measure="flow") as rec:
        traced = torch.jit.trace(model, X, check_trace=False)
    nodes = [[node.kind() for node in one.inlined_graph.nodes()] for one in (plain, traced)]
    assert nodes[0] == nodes[1]
    assert rec.trace.flow is not None


def test_tensors_without_a_storage() -> None:
    def run(self: Any, x: Tensor, y: Tensor) -> Tensor:
        sparse = self.same(y.to_sparse())
        return torch.sparse.mm(sparse, x.T.contiguous()) + self.same(torch.empty(0, 2).sum())

    assert flow(Does(run, same=nn.Identity()), X, Y)[-1].startswith("add(")


def test_select() -> None:
    inner = Does(lambda self, x, y: self.lin(x).sin(), lin=nn.Linear(4, 4))
    model = Does(lambda self, x, y: self.inner(x) + y, inner=inner)

    def run() -> None:
        x = X
        for _ in range(2):
            x = model(x, Y).cos()

    trace = follow(model, run)
    assert flow_of(trace) == [
        ":x()",
        ":y()",
        "inner.lin.linear(0)",
        "inner.sin(2)",
        "add(1, 3)",
        "cos(4)",
        "inner.lin.linear(5)",
        "inner.sin(6)",
        "add(1, 7)",
        "cos(8)",
    ]
    one = trace.select(depth=1)
    assert flow_of(one) == [line.replace("inner.lin", "inner") for line in flow_of(trace)]
    assert one.flow is not None
    assert list(one.flow.ops["after"]) == [-1, -1, 1, 1, 1, 1, 4, 4, 4, 4]
    second = trace.select(frame=1, depth=0)
    assert second.flow is not None
    assert list(second.flow.ops["call"]) == [3, 3, 3, -1]
    assert list(second.flow.ops["name"]) == ["linear", "sin", "add", "cos"]
    edges = list(second.flow.edges.itertuples(index=False, name=None))
    assert edges == [(-1, 0, False), (0, 1, False), (-1, 2, False), (1, 2, False), (2, 3, False)]
    assert trace.select(phase="forward") == trace
    assert trace.select(frame=1).select(depth=0) == second
