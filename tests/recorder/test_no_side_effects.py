"""Results and state under every measure, against the same run without a recording."""

from __future__ import annotations

import bisect
import copy
import functools
import pickle
import random
import resource
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flow_words import Does, X, Y, flow_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_examples import examples
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode_stack,
    is_in_torch_dispatch_mode,
)
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

import talkerviz as tv
from talkerviz.recorder import tap

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
    # The recorder's own faults, and what it could not measure.
    pytest.mark.filterwarnings("error::RuntimeWarning"),
]
WAYS = [
    pytest.param(way, marks=pytest.mark.skipif(way == "tap" and tap.Tap is None, reason="no C compiler built the tap"))
    for way in ("tap", "hooks")
]
every_measure = pytest.mark.parametrize("measure", [None, "cost", "flow"])
every_way = pytest.mark.parametrize("via", WAYS)

Program = Callable[[], tuple[nn.Module, Callable[[], Any]]]
PROGRAMS: dict[str, Program] = {}


def program(make: Program) -> Program:
    PROGRAMS[make.__name__.replace("_", " ")] = make
    return make


def does(function: Callable[..., Any], *inputs: Any, **modules: nn.Module) -> tuple[nn.Module, Callable[[], Any]]:
    model = Does(function, **modules).eval()
    return model, lambda: model(*inputs)


class Buffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.zeros(2, 4))

    def forward(self) -> Tensor:
        return self.memory


class Weight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 4))

    def forward(self) -> Tensor:
        return self.weight


@program
def writes_after_identity() -> tuple[nn.Module, Callable[[], Any]]:
    def run(self: Any, x: Tensor, y: Tensor) -> Any:
        same = self.drop(self.same(x))
        same.mul_(2)
        same[0] += y[0]
        return x, same, same is x

    return does(run, X.clone(), Y.clone(), same=nn.Identity(), drop=nn.Dropout(0.5))


@program
def writes_into_a_buffer() -> tuple[nn.Module, Callable[[], Any]]:
    def run(self: Any, x: Tensor, y: Tensor) -> Any:
        memory = self.cache()
        memory += x
        return memory.clone(), memory is self.cache.memory

    model = Does(run, cache=Buffer())
    return model, lambda: [model(X, Y) for _ in range(3)]


@program
def trains_a_parameter_that_a_module_gives() -> tuple[nn.Module, Callable[[], Any]]:
    model = Does(lambda self, x, y: x * self.table(), table=Weight())
    optimizer = torch.optim.Adam(model.parameters(), 0.1)

    def run() -> list[Tensor]:
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(X).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses

    return model, run


@program
def views_and_their_bases() -> tuple[nn.Module, Callable[[], Any]]:
    class View(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, 1:3]

    def run(self: Any, x: Tensor, y: Tensor) -> Any:
        view = self.view(x)
        view.fill_(7)
        flat = self.flat(x)
        flat[0] = 5
        return x, view, flat, view._base is x, flat.data_ptr() == x.data_ptr()

    return does(run, X.clone(), Y, view=View(), flat=nn.Flatten(0))


@program
def branches_on_identity() -> tuple[nn.Module, Callable[[], Any]]:
    def run(self: Any, x: Tensor, y: Tensor) -> Any:
        out = self.same(x)
        return (out.sin() if out is x else out.cos()), id(out) == id(x), {id(x): "known"}.get(id(out))

    return does(run, X, Y, same=nn.Sequential(nn.Identity(), nn.Dropout(0.1)))


@program
def hands_tuples_through() -> tuple[nn.Module, Callable[[], Any]]:
    class Swap(nn.Module):
        def forward(self, *values: Any) -> Any:
            return values

    def run(self: Any, x: Tensor, y: Tensor) -> Any:
        pair = (x, y, 3)
        first, second, third = out = self.swap(*pair)
        first.add_(second)
        return x, y, first is x, second is y, third, type(out) is tuple

    return does(run, X.clone(), Y.clone(), swap=Swap())


@program
def draws_random_numbers() -> tuple[nn.Module, Callable[[], Any]]:
    def run(self: Any, x: Tensor, y: Tensor) -> Any:
        return self.drop(x) + torch.randn(2, 4) * random.random() + torch.from_numpy(np.random.rand(4))

    model = Does(run, drop=nn.Dropout(0.5)).train()
    return model, lambda: model(X, Y)


@program
def updates_statistics() -> tuple[nn.Module, Callable[[], Any]]:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Identity(), nn.BatchNorm1d(4)).train()
    return model, lambda: [model(X * scale) for scale in (1, 2)]


@program
def hooks_of_its_own() -> tuple[nn.Module, Callable[[], Any]]:
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 4))
    seen: list[bool] = []
    model[0].register_forward_hook(lambda module, args, out: seen.append(out is args[0]))
    model[1].register_forward_pre_hook(lambda module, args: (args[0].mul_(2),))
    return model, lambda: (model(X), X, seen)


@program
def checkpointed_training() -> tuple[nn.Module, Callable[[], Any]]:
    def run(self: Any, x: Tensor, y: Tensor) -> Tensor:
        for reentrant in (True, False):
            x = checkpoint(lambda x: self.drop(self.lin(self.same(x))).sin(), x, use_reentrant=reentrant)
        return x.sum()

    model = Does(run, lin=nn.Linear(4, 4), same=nn.Identity(), drop=nn.Dropout(0.3)).train()

    def train() -> Any:
        x = X.clone().requires_grad_()
        loss = model(x)
        loss.backward()
        return loss, x.grad, [parameter.grad for parameter in model.parameters()]

    return model, train


@program
def transforms_of_functions() -> tuple[nn.Module, Callable[[], Any]]:
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 4), nn.Tanh())
    weights = dict(model.named_parameters())

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (x,)).sum()

    def run() -> Any:
        with torch.no_grad():
            mapped = torch.func.vmap(model)(X[None].expand(3, 2, 4))
            _, tangent = torch.func.jvp(model, (X,), (Y,))
        return (
            mapped,
            tangent,
            torch.func.grad(loss)(weights, X),
            torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, X),
            torch.func.jacrev(model)(X[0]),
        )

    return model, run


class Tagged(Tensor):
    """A subclass that sees functions."""

    seen: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


class Wrapped(Tensor):
    """A subclass around another tensor that sees operators, and calls functions in them."""

    seen: ClassVar[list[str]] = []
    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        out = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)
        out.inner = inner
        return out

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], meta: None, size: Any, stride: Any) -> Wrapped:
        return Wrapped(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(str(func))
        unwrap = lambda value: value.inner if isinstance(value, Wrapped) else value  # noqa: E731
        out = func(*map(unwrap, args), **{name: unwrap(value) for name, value in (kwargs or {}).items()})
        tagged = out.as_subclass(Tagged) if isinstance(out, Tensor) else out
        return Wrapped(torch.add(tagged, 0).as_subclass(Tensor)) if isinstance(out, Tensor) else out


@program
def a_subclass_that_sees_functions() -> tuple[nn.Module, Callable[[], Any]]:
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 4), nn.ReLU(inplace=True))

    def run() -> Any:
        Tagged.seen = []
        x = X.as_subclass(Tagged)
        out = model(x)
        return out.as_subclass(Tensor), type(out).__name__, model[0](x) is x, Tagged.seen

    return model, run


@program
def a_subclass_that_sees_operators() -> tuple[nn.Module, Callable[[], Any]]:
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 4), nn.ReLU())

    def run() -> Any:
        outs = []
        for inference in (False, True):
            Wrapped.seen, Tagged.seen = [], []
            with torch.inference_mode(inference), torch.no_grad():
                out = model(Wrapped(X.clone()))
            outs += [out.inner, type(out).__name__, Wrapped.seen, Tagged.seen]
        return outs

    return model, run


@program
def fake_tensors() -> tuple[nn.Module, Callable[[], Any]]:
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 4), nn.Dropout(0.5))

    def run() -> Any:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            out = model(mode.from_tensor(X))
        return type(out).__name__, out.shape, out.stride(), str(out.device)

    return model, run


@program
def meta_tensors() -> tuple[nn.Module, Callable[[], Any]]:
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 4)).to("meta")

    def run() -> Any:
        x = torch.empty(2, 4, device="meta")
        outs = [model(x), model(x), model(x.as_subclass(Tagged))]
        found = [(type(out).__name__, out.shape, out.stride(), out.requires_grad) for out in outs], model[0](x) is x
        model.to_empty(device="cpu").requires_grad_(False).zero_grad()
        for parameter in model.parameters():
            parameter.zero_()
        return found

    return model, run


@program
def compiled_inside() -> tuple[nn.Module, Callable[[], Any]]:
    torch._dynamo.reset()
    model = Does(
        lambda self, x, y: self.block(self.same(x)),
        block=torch.compile(nn.Sequential(nn.Identity(), nn.Linear(4, 4)), backend="eager"),
        same=nn.Identity(),
    )
    return model, lambda: model(X)


@program
def attention_of_the_user_s_own() -> tuple[nn.Module, Callable[[], Any]]:
    def run(self: Any, x: Tensor, y: Any) -> Tensor:
        q = self.q(x).view(1, 16, 2, 16).transpose(1, 2)
        return flex_attention(q, q, q, score_mod=lambda score, b, h, i, j: score + (i - j))

    model = Does(run, q=nn.Linear(32, 32)).requires_grad_(False)
    return model, lambda: model(torch.ones(1, 16, 32).cumsum(1))


@program
def conditions() -> tuple[nn.Module, Callable[[], Any]]:
    def run(self: Any, x: Tensor, y: Any) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: self.c(x).sin(), lambda x: self.c(x).cos(), (x,))

    return does(run, X, c=nn.Linear(4, 4))


@program
def conditions_that_are_trained() -> tuple[nn.Module, Callable[[], Any]]:
    model = Does(
        lambda self, x, y: torch.cond(x.sum() > 0, torch.sin, torch.cos, (self.c(x),)).sum(), c=nn.Linear(4, 4)
    )

    def run() -> Any:
        loss = model(X)
        loss.backward()
        return loss, model.c.weight.grad

    return model, run


@program
def loops_of_operators() -> tuple[nn.Module, Callable[[], Any]]:
    def run(self: Any, x: Tensor, y: Any) -> Any:
        start = torch.tensor(0), self.c(x)
        return while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y.sin()), start)[1]

    return does(run, X, c=nn.Linear(4, 4))


def rows() -> list[Tensor]:
    return [torch.ones(3, 8).cumsum(0), torch.ones(5, 8).cumsum(1)]


@program
def strided_nested_tensors() -> tuple[nn.Module, Callable[[], Any]]:
    model = nn.Sequential(nn.Identity(), nn.Linear(8, 8), nn.ReLU()).eval()
    return model, lambda: list(model(torch.nested.nested_tensor(rows())).unbind())


@program
def jagged_nested_tensors() -> tuple[nn.Module, Callable[[], Any]]:
    def run(self: Any, x: Tensor, y: Any) -> Tensor:
        heads = self.q(self.same(x)).unflatten(-1, [2, 4]).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2)

    model = Does(run, q=nn.Linear(8, 8), same=nn.Identity()).eval()
    return model, lambda: list(model(torch.nested.nested_tensor(rows(), layout=torch.jagged)).unbind())


@program
def a_padding_mask() -> tuple[nn.Module, Callable[[], Any]]:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2).eval(), torch.ones(2, 6, 32).cumsum(1).sin()
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[1, 4:] = True
    return model, lambda: model(x, src_key_padding_mask=mask)


def scripted(make: Callable[[nn.Module], nn.Module]) -> tuple[nn.Module, Callable[[], Any]]:
    script = make(nn.Sequential(nn.Identity(), nn.Linear(4, 4), nn.Dropout(0.5), nn.ReLU()).eval())
    model = Does(lambda self, x, y: self.script(self.same(x)), script=script, same=nn.Identity())
    return model, lambda: model(X)


@program
def code_that_is_scripted() -> tuple[nn.Module, Callable[[], Any]]:
    return scripted(torch.jit.script)


@program
def code_that_is_frozen() -> tuple[nn.Module, Callable[[], Any]]:
    return scripted(lambda module: torch.jit.freeze(torch.jit.script(module)))


@program
def code_that_is_traced() -> tuple[nn.Module, Callable[[], Any]]:
    return scripted(lambda module: torch.jit.trace(module, X))


@program
def tracing_in_the_run() -> tuple[nn.Module, Callable[[], Any]]:
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 4))

    def run() -> Any:
        traced = torch.jit.trace(model, X, check_trace=False)
        exported = torch.export.export(model, (X,))
        return traced(X), exported.module()(X), model(X)

    return model, run


@program
def other_threads() -> tuple[nn.Module, Callable[[], Any]]:
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 4))

    def run() -> Any:
        found: dict[int, Tensor] = {}

        def on_thread(number: int) -> None:
            with torch.no_grad():
                found[number] = model(X + number)

        threads = [threading.Thread(target=on_thread, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        mine = model(X)
        for thread in threads:
            thread.join()
        return mine, [found[number] for number in range(4)]

    return model, run


@program
def replicas() -> tuple[nn.Module, Callable[[], Any]]:
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 4))

    def run() -> Any:
        replica = model._replicate_for_data_parallel()  # type: ignore[operator]
        replica._modules = dict(model._modules)
        return replica(X), model(X)

    return model, run


@program
def weights_that_are_computed() -> tuple[nn.Module, Callable[[], Any]]:
    linear = nn.Linear(4, 4)
    parametrize.register_parametrization(linear, "weight", nn.Identity())
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), linear)
    return model, lambda: model(X)


@program
def sparse_and_complex_tensors() -> tuple[nn.Module, Callable[[], Any]]:
    def run(self: Any, x: Tensor, y: Tensor) -> Any:
        sparse = self.same(y.to_sparse())
        wave = self.same(torch.fft.fft(x).conj())
        return torch.sparse.mm(sparse, x.T.contiguous()), wave * wave.imag, self.same(x.to_sparse_csr()).to_dense()

    return does(run, X, Y, same=nn.Identity())


class Scales(TorchFunctionMode):
    """A mode of the user's that changes what functions give."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return out * 2 if getattr(func, "__name__", "") == "linear" else out


class Counts(TorchDispatchMode):
    """A mode of the user's that sees operators."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@program
def modes_of_its_own() -> tuple[nn.Module, Callable[[], Any]]:
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 4), nn.MultiheadAttention(4, 2, batch_first=True).eval().out_proj)

    def run() -> Any:
        with Scales(), Counts() as counts:
            first = model(X)
        with torch.device("meta"):
            created = torch.ones(2)
        with FlopCounterMode(display=False) as flops:
            second = model(X)
        return first, second, str(created.device), counts.seen, flops.get_total_flops()

    return model, run


@program
def conditions_under_modes_of_its_own() -> tuple[nn.Module, Callable[[], Any]]:
    model, run = conditions()

    def run_with_modes() -> Any:
        with torch.device("cpu"):
            return run()

    return model, run_with_modes


@program
def selective_checkpoints() -> tuple[nn.Module, Callable[[], Any]]:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Identity())
    context = functools.partial(create_selective_checkpoint_contexts, [torch.ops.aten.addmm.default])

    def run() -> Any:
        x = X.clone().requires_grad_()
        out = checkpoint(model, x, use_reentrant=False, context_fn=context).sum()
        out.backward()
        return out, x.grad

    return model, run


class Doubles(torch.autograd.Function):
    """A function with a backward of its own, that returns its input as it is when it is told to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, same: bool) -> Tensor:
        return x if same else x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * 2, None


@program
def functions_with_a_backward() -> tuple[nn.Module, Callable[[], Any]]:
    def forward(self: Any, x: Tensor, y: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = self.lin(Doubles.apply(self.same(x), False))
        return Doubles.apply(x, True).float()

    model = Does(forward, lin=nn.Linear(4, 4), same=nn.Identity())

    def run() -> Any:
        x, seen = X.clone().requires_grad_(), []
        out = model(x)
        out.register_hook(lambda grad: seen.append(grad.clone()))
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
            (out.sum() + model(x).sum()).backward()
        second = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)[0]
        return out, x.grad, seen, second

    return model, run


@program
def graphs_of_symbols() -> tuple[nn.Module, Callable[[], Any]]:
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 4), nn.ReLU())

    def run() -> Any:
        traced = torch.fx.symbolic_trace(model)
        flat = make_fx(model)(X)
        copied = copy.deepcopy(model)
        again = pickle.loads(pickle.dumps(model))
        return traced(X), flat(X), flat.code, copied(X), again(X), model(X)

    return model, run


@program
def quantized_weights() -> tuple[nn.Module, Callable[[], Any]]:
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 4)).eval()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    return quantized, lambda: quantized(X)


@program
def operators_of_its_own() -> tuple[nn.Module, Callable[[], Any]]:
    weight = nn.Linear(4, 4).requires_grad_(False)

    @torch.library.custom_op("harmless::project", mutates_args=())
    def project(x: Tensor) -> Tensor:
        return weight(x).sin()

    return does(lambda self, x, y: project(self.same(x)), X, same=nn.Identity())


@program
def parts_of_what_was_passed_on() -> tuple[nn.Module, Callable[[], Any]]:
    def run(self: Any, x: Tensor, y: Tensor) -> Any:
        q, k, v = x.view(2, 2, 2).unbind(1)[0], *y.chunk(2, 1)
        q, k = self.q(q), self.k(k)
        q += 1
        v[:] = k @ q
        return x, y, torch.view_as_complex(self.q(y).view(2, 2, 2)), self.k(x.view(torch.int32))

    return does(run, X.clone(), Y.clone(), q=nn.Identity(), k=nn.Identity())


@program
def exceptions() -> tuple[nn.Module, Callable[[], Any]]:
    def run(self: Any, x: Tensor, y: Tensor) -> Any:
        try:
            self.narrow(self.same(x))
        except RuntimeError as error:
            return str(error), x + y
        raise AssertionError("a matrix of another size")

    return does(run, X, Y, narrow=nn.Linear(3, 3), same=nn.Identity())


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in (*model.named_parameters(), *model.named_buffers())}


def outcome(make: Program, measure: Any, via: str) -> tuple[Any, ...]:
    """Return a program's results and side effects."""
    X.copy_(torch.arange(8.0).view(2, 4))
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(0)
    model, run = make()
    modes = [*_get_current_dispatch_mode_stack(), *_get_current_function_mode_stack()]
    limit = sys.getrecursionlimit()
    if measure == "untraced":
        result = run()
    else:
        with tv.recording(model, measure=measure, via=via) as rec:
            result = run()
        assert rec.trace.calls["host_ns"].notna().all()
    assert sys.getrecursionlimit() == limit
    assert modes == [*_get_current_dispatch_mode_stack(), *_get_current_function_mode_stack()]
    drawn = torch.get_rng_state(), random.getstate(), np.random.get_state()[1:]
    return result, state_of(model), drawn


def assert_same(one: Any, two: Any) -> None:
    assert type(one) is type(two)
    if isinstance(one, Tensor):
        assert (one.dtype, one.shape, one.requires_grad) == (two.dtype, two.shape, two.requires_grad)
        assert torch.equal(one.detach(), two.detach())
    elif isinstance(one, dict):
        assert list(one) == list(two)
        assert_same(list(one.values()), list(two.values()))
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, two)
    else:
        assert one == two


@pytest.mark.parametrize(
    ("measure", "via"),
    # Operators are watched alike either way.
    [pytest.param(measure, *way.values, marks=way.marks) for measure in (None, "cost", "flow") for way in WAYS][:3]
    + [pytest.param("flow", *way.values, marks=way.marks) for way in WAYS],
)
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_run_computes_what_it_computes_without(name: str, measure: str | None, via: str) -> None:
    assert_same(outcome(PROGRAMS[name], measure, via), untraced(name))


@functools.cache
def untraced(name: str) -> tuple[Any, ...]:
    return outcome(PROGRAMS[name], "untraced", "auto")


IN_PLACE: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "add_": lambda a, b: a.add_(b),
    "row": lambda a, b: a.__setitem__(1, b[0]),
    "column": lambda a, b: a[:, 2].mul_(b[:, 1]),
    "fill_": lambda a, b: a.fill_(3),
}
PURE: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "sub": lambda a, b: a - b,
    "tanh": lambda a, b: a.tanh(),
    "view": lambda a, b: a.view(2, 4),
    "rows": lambda a, b: a[:],
}
MODULES: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "dropout": lambda: nn.Dropout(0.5).eval(),
    "buffer": Buffer,
    "weight": Weight,
    "two": lambda: nn.Sequential(nn.Identity(), nn.Identity()),
}


class Aliases(nn.Module):
    """Runs steps on some values; those of modules are the modules' results."""

    def __init__(self, steps: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.steps = steps
        self.modules_by_name = nn.ModuleDict({name: make() for name, make in MODULES.items()})

    @torch.no_grad()
    def forward(self, *values: Tensor) -> tuple[list[Tensor], list[list[bool]]]:
        found = list(values)
        for name, first, second in self.steps:
            a, b = found[first % len(found)], found[second % len(found)]
            if name in MODULES:
                module = self.modules_by_name[name]
                found.append(module() if name in ("buffer", "weight") else module(a))
            elif name in IN_PLACE:
                IN_PLACE[name](a, b.clone())
            else:
                found.append(PURE[name](a, b))
        return found, [[a is b for a in found] for b in found]


STEPS = st.tuples(st.sampled_from(sorted([*MODULES, *IN_PLACE, *PURE])), st.integers(0, 20), st.integers(0, 20))


@given(st.lists(STEPS, min_size=1, max_size=12), st.sampled_from(["flow", "cost"]))
@settings(max_examples=examples(20), deadline=None)
def test_programs_that_are_drawn(steps: list[tuple[str, int, int]], measure: str) -> None:
    def make() -> tuple[nn.Module, Callable[[], Any]]:
        model = Aliases(steps)
        return model, lambda: model(X.clone(), Y.clone())

    assert_same(outcome(make, measure, "auto"), outcome(make, "untraced", "auto"))


@every_measure
def test_no_tensor_is_copied(measure: str | None) -> None:
    """A mask of 4 bytes that is expanded to 17 GB."""
    mask = torch.zeros(1, 1, 1, 1).expand(4, 16, 8192, 8192)
    model = Does(lambda self, x, y: self.same(x), same=nn.Identity())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tv.recording(model, measure=measure):
        assert model(mask) is mask
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@every_way
@every_measure
def test_no_tensor_lives_longer(measure: str | None, via: str) -> None:
    alive: list[int] = []
    made: list[weakref.ref[Tensor]] = []

    def run(self: Any, x: Tensor, y: Any) -> None:
        for _ in range(5):
            x = self.same(x * 2)
            x = self.lin(x)
            made.append(weakref.ref(x))
            alive.append(sum(ref() is not None for ref in made))
        del x
        alive.append(sum(ref() is not None for ref in made))

    model = Does(run, same=nn.Identity(), lin=nn.Linear(4, 4))
    with torch.no_grad(), tv.recording(model, measure=measure, via=via):
        model(X)
        assert not [ref for ref in made if ref() is not None]
    assert alive == [1, 1, 1, 1, 1, 0]


class Nests(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x: Tensor, depth: int) -> Tensor:
        return self(self.lin(x), depth - 1) if depth else self.lin(x)


def fits(run: Callable[[int], object], depth: int) -> bool:
    try:
        run(depth)
    except RecursionError:
        return False
    return True


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # where there is too little of it
@every_way
@every_measure
@torch.no_grad()
def test_what_fits_the_stack_still_does(measure: str | None, via: str) -> None:
    model, limit = Nests(), sys.getrecursionlimit()

    def recorded(depth: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the recorder's own frames may not fit where it overflows
            with tv.recording(model, measure=measure, via=via):
                model(X, depth)

    deepest = bisect.bisect(range(1000), False, key=lambda depth: not fits(lambda depth: model(X, depth), depth)) - 1
    assert fits(recorded, deepest)
    assert not fits(recorded, deepest * 12 // 10)
    assert sys.getrecursionlimit() == limit


@every_way
@pytest.mark.parametrize("measure", [None, "flow"])
def test_a_recursion_limit_that_the_run_sets_stays(measure: str | None, via: str) -> None:
    limit = sys.getrecursionlimit()
    model = Does(lambda self, x, y: sys.setrecursionlimit(limit + 300))
    try:
        with tv.recording(model, measure=measure, via=via):
            model()
        assert sys.getrecursionlimit() == limit + 300
    finally:
        sys.setrecursionlimit(limit)


@every_way
def test_a_call_that_is_interrupted_leaves_the_recursion_limit(via: str) -> None:
    def interrupt(self: Any, x: Any, y: Any) -> None:
        raise KeyboardInterrupt

    limit, model = sys.getrecursionlimit(), Does(lambda self, x, y: self.inner(), inner=Does(interrupt))
    with pytest.raises(KeyboardInterrupt), tv.recording(model, measure="flow", via=via):
        model()
    assert sys.getrecursionlimit() == limit


def test_no_module_is_called_in_a_condition_under_any_measure() -> None:
    for measure in (None, "cost", "flow"):
        for via in ("auto", "hooks"):
            model, run = PROGRAMS["conditions"]()
            with tv.recording(model, measure=measure, via=via) as rec:
                run()
            assert rec.trace.calls["path"].tolist() == ["model"]


def test_figures_of_operators_that_take_functions() -> None:
    model, run = PROGRAMS["attention of the user s own"]()
    with tv.recording(model, measure="cost") as rec:
        run()
    # A product with the weights, and two products of attention over two heads.
    product = 2 * 16 * 32 * 32
    assert rec.trace.calls["flops"].tolist() == [product + 2 * 2 * 2 * 16 * 16 * 16, product]
    read = 4 * (32 * 32 + 32 + 16 * 32)  # weights and input
    assert rec.trace.calls["bytes_read"].tolist() == [read, read]
    model, run = PROGRAMS["loops of operators"]()
    with tv.recording(model, measure="cost") as rec:
        run()
    assert rec.trace.calls["uncounted_operators"].tolist() == [0, 0]
    assert not rec.trace.facts["unknown_operators"]


def test_figures_of_nested_tensors() -> None:
    for name in ("strided nested tensors", "jagged nested tensors", "a padding mask"):
        model, run = PROGRAMS[name]()
        with torch.no_grad(), tv.recording(model, measure="cost") as rec:
            run()
        assert rec.trace.calls["bytes_read"].iloc[0] > 0
        assert rec.trace.calls["flops"].iloc[0] > 0


def test_a_fault_of_the_recorder_s_own_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("a fault")

    model = nn.Sequential(nn.Identity(), nn.Linear(4, 4))
    expected = model(X)
    for target, name in (
        ("talkerviz.recorder.instruments.flop_counter.FlopCounter._note", "cost"),
        ("talkerviz.recorder.dataflow.tracker.FlowTracker._note", "flow"),
        ("talkerviz.recorder.dataflow.tracker.FlowTracker._close", "flow"),
        ("talkerviz.recorder.dataflow.tracker.FlowTracker._note_end", "flow"),
        ("talkerviz.recorder.dataflow.provenance.Provenance.keep", "flow"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, fail)
            with pytest.warns(RuntimeWarning, match="the recorder failed") as said:  # noqa: SIM117
                with tv.recording(model, measure=name) as rec:
                    assert torch.equal(model(X), expected)
        assert len(said) == 1
        assert len(rec.trace.calls) == 3
        assert rec.trace.calls["flops"].isna().iloc[0]


def test_recordings_on_two_threads_leave_the_compiler_as_it_was() -> None:
    model, began, ended = nn.Linear(4, 4), threading.Event(), threading.Event()

    def record() -> None:
        with tv.recording(model, measure="flow"):
            model(X)
            began.set()
            ended.wait()

    thread = threading.Thread(target=record)
    before = torch._dynamo.eval_frame._stance.stance
    with tv.recording(model, measure="cost"):
        model(X)
        thread.start()
        began.wait()
    assert torch._dynamo.eval_frame._stance.stance == "force_eager"
    ended.set()
    thread.join()
    assert torch._dynamo.eval_frame._stance.stance == before
    assert not is_in_torch_dispatch_mode()


@pytest.mark.parametrize("to", ["cpu", "disk"])
@torch.no_grad()
def test_weights_that_are_moved_in(to: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    expected = model(X)
    if to == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    else:
        accelerate.disk_offload(model, tmp_path, execution_device="cpu")
    trace = tv.record(model, lambda: model(X), measure=("flow", "cost"))
    assert torch.equal(model(X), expected)
    assert trace.facts["device"] == "cpu"
    assert flow_of(trace) == [":input()", "0.linear(0)", "1.relu(1)", "2.linear(2)"]
    assert trace.calls["flops"].tolist() == [136, 64, 8, 64]
