"""Fuzz of the tap: arguments that change while they are read, threads, recordings and modules that come and go.

Values are drawn from a seed; how threads take turns is not. Hence no shrinking: the seed that hypothesis
prints gives the same values again, and mostly the same failure. `tests/sanitize.sh` runs this file under
AddressSanitizer, where a dangling reference is a report and not a matter of luck.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gc
import importlib
import importlib.util
import random
import sys
import threading
import time
import weakref
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import talkerviz as tv
from talkerviz.recorder import recording as recorder

VIAS = ["tap", "hooks"]
"""Ways to record, values of `via`, of which "auto" is one or the other."""

SECONDS = 0.2
"""Time that threads race for in one example."""

EXAMPLES = 5
SWITCH_INTERVAL_S = 1e-5
PLAIN_CALL = nn.Module.__call__

each_via = pytest.mark.parametrize(
    "via",
    [
        pytest.param(
            via,
            marks=pytest.mark.skipif(
                via == "tap" and importlib.util.find_spec("talkerviz.recorder._tap") is None,
                reason="no C compiler built _tap.c",
            ),
        )
        for via in VIAS
    ],
)
fuzz = settings(
    deadline=None,
    max_examples=EXAMPLES,
    # Threads do not take turns the same way twice, so neither a smaller example nor a stored one tells more.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
seeds = given(seed=st.integers(0, 2**32 - 1))


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    # Logs are written away after few events, so between and inside many calls.
    monkeypatch.setattr(recorder, "_BATCH", 16)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    interval, threads = sys.getswitchinterval(), set(threading.enumerate())
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
    assert nn.Module.__call__ is PLAIN_CALL
    assert set(threading.enumerate()) <= threads


def recording(model: nn.Module, via: str) -> Any:
    return tv.recording(model, via=via)


# ---- Leaves.


class Plain(torch.Tensor):
    """A subclass without code of its own."""


class Slow(torch.Tensor):
    """A subclass whose every use runs Python, as quantized and distributed tensors do."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for _ in range(5):
            pass
        return super().__torch_function__(func, types, args, kwargs or {})


class Mutating(torch.Tensor):
    """A subclass whose `shape` changes the container that it is in, and so may delete itself."""

    change: Callable[[], None]

    @property
    def shape(self) -> torch.Size:
        vars(self).get("change", int)()
        return torch.Size((2,))


class Refusing(torch.Tensor):
    """A subclass whose attributes raise."""

    @property
    def shape(self) -> torch.Size:
        raise RuntimeError("no shape")

    @property
    def dtype(self) -> torch.dtype:
        raise LookupError("no dtype")


class Absent(torch.Tensor):
    """A subclass whose functions all raise."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError("not here")


class Lying(torch.Tensor):
    """A subclass whose attributes are of other types than a tensor's."""

    @property
    def shape(self) -> Any:
        return [2, "x"]

    @property
    def device(self) -> Any:
        return []  # which has no hash


class Calling(torch.Tensor):
    """A subclass whose `shape` calls a module, collects garbage and lets other threads run."""

    module = nn.Identity()

    @property
    def shape(self) -> torch.Size:
        Calling.module(0)
        gc.collect(0)
        time.sleep(0)
        return torch.Size((1,))


SUBCLASSES = [Plain, Slow, Slow, Mutating, Mutating, Refusing, Absent, Lying, Calling]
NESTED = [
    torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged),
]
LONG = [list(range(20_000)), [torch.zeros(1)] * 700, {str(i): None for i in range(2_000)}]
CIRCLE: list[Any] = [1]
CIRCLE.append(CIRCLE)
CIRCLE_OF_DICTS: dict[str, Any] = {"tensor": torch.zeros(1)}
CIRCLE_OF_DICTS["self"] = [CIRCLE_OF_DICTS]


# ---- Containers.


@dataclasses.dataclass
class Pair:
    first: Any
    second: Any


@dataclasses.dataclass(slots=True)
class Slotted:
    first: Any
    second: Any


@dataclasses.dataclass(frozen=True)
class Frozen:
    first: Any
    second: Any


class Named(NamedTuple):
    left: Any
    right: Any


class Object:
    def __init__(self, **items: Any) -> None:
        vars(self).update(items)


class CacheLayer:
    def __init__(self, keys: Any, values: Any) -> None:
        self.keys, self.values = keys, values


class LayeredCache:
    """Cache of transformers' kind: a list of layers, each with keys and values."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers


class OtherCache(LayeredCache):
    pass


class OwnDict(dict[Any, Any]):
    """A dict that says something else than it holds."""

    def items(self) -> Any:
        return [("other", torch.zeros(1)), *super().items()]

    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError("not to be iterated")

    def __len__(self) -> int:
        return 1


class Unloaded(collections.abc.Mapping[str, Any]):
    """A mapping whose items cannot be had, such as a batch that is loaded when it is used."""

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("not loaded")

    def __iter__(self) -> Iterator[str]:
        yield "a"

    def __len__(self) -> int:
        return 1


class OwnList(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError("not to be iterated")


class OddKey:
    """A key without text, whose comparison lets other threads run."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        time.sleep(0)
        return self is other


class Values:
    """Values drawn from a seed, and the changeable ones among them, to be changed while they are read.

    Attributes:
        containers: mutable containers that were drawn lately.
        leaves: weak references to tensors that were drawn lately.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.containers: collections.deque[Any] = collections.deque(maxlen=40)
        self.leaves: collections.deque[weakref.ref[torch.Tensor]] = collections.deque(maxlen=400)

    def draw(self, depth: int = 3) -> Any:
        """Draw a value whose nesting goes no deeper than this."""
        if depth == 0 or self._random.random() < 0.3:
            return self._leaf()
        inner = lambda: self.draw(depth - 1)  # noqa: E731
        some = lambda: [inner() for _ in range(self._random.randrange(5))]  # noqa: E731
        items = lambda: {self._key(): inner() for _ in range(self._random.randrange(5))}  # noqa: E731
        named = lambda: {self._name(): inner() for _ in range(self._random.randrange(5))}  # noqa: E731
        make: Callable[[], Any] = self._random.choice(
            [
                some,
                some,
                lambda: tuple(some()),
                lambda: OwnList(some()),
                items,
                items,
                lambda: OrderedDict(items()),
                lambda: UserDict(items()),
                lambda: defaultdict(list, items()),
                lambda: OwnDict(items()),
                lambda: Pair(inner(), inner()),
                lambda: Slotted(inner(), inner()),
                lambda: Frozen(inner(), inner()),
                lambda: Named(inner(), inner()),
                lambda: Object(**named()),
                lambda: LayeredCache([CacheLayer(inner(), inner()) for _ in range(self._random.randrange(4))]),
                lambda: type("LateCache", (), {})(),
            ]
        )
        container = make()
        if not isinstance(container, (tuple, Frozen)):
            self.containers.append(container)
            if isinstance(container, LayeredCache):
                self.containers.extend([container.layers, *container.layers])
        return container

    def change(self) -> None:
        """Change a container in place, as far as no other thread stands in the way."""
        with contextlib.suppress(Exception):
            self._change(self._random.choice(self.containers))

    def _change(self, container: Any) -> None:
        if isinstance(container, list):
            self._change_list(container)
        elif isinstance(container, (dict, UserDict)):
            self._change_dict(container)
        elif isinstance(container, Slotted):
            container.first = self._item()
        else:
            self._change_object(container)

    def _change_list(self, container: list[Any]) -> None:
        action, size = self._random.randrange(6), list.__len__(container)
        if action == 0:
            container.clear()
        elif action == 1:
            container[:] = [self._item() for _ in range(self._random.randrange(4))]
        elif action == 2 and size:
            container.pop()
        elif action == 3 and size < 8:
            container.append(self._item())
        elif size:
            container[self._random.randrange(size)] = self._item()

    def _change_dict(self, container: Any) -> None:
        action, keys = self._random.randrange(6), list(dict.keys(getattr(container, "data", container)))
        if action == 0:
            container.clear()
        elif action == 1 and keys:
            del container[self._random.choice(keys)]
        elif action == 2 and len(keys) < 8:
            container[self._key()] = self._item()
        elif action == 3:
            container.update({self._key(): self._leaf() for _ in range(9 - len(keys))})  # so that it is made anew
        elif keys:
            container[self._random.choice(keys)] = self._item()

    def _change_object(self, container: Any) -> None:
        action = self._random.randrange(4)
        if action == 0:
            container.__dict__ = {**vars(container)}
        elif action == 1 and isinstance(container, LayeredCache):
            container.__class__ = self._random.choice([LayeredCache, OtherCache])
        elif action == 2 and not isinstance(container, (LayeredCache, Pair, CacheLayer)):
            vars(container).clear()
        else:
            setattr(container, self._name(), self._item())

    def _item(self) -> Any:
        # Nothing that is changed itself, so that values stay small.
        kind = self._random.randrange(4)
        return [self._leaf(), self._leaf()] if kind == 0 else {self._key(): self._leaf()} if kind == 1 else self._leaf()

    def _leaf(self) -> Any:
        kind = self._random.randrange(20)
        if kind < 9:
            tensor = torch.zeros(self._random.randrange(4)).as_subclass(self._random.choice(SUBCLASSES))
            if isinstance(tensor, Mutating):
                tensor.change = self._reentrant_change
            self.leaves.append(weakref.ref(tensor))
            return tensor
        if kind == 9:
            late = type("Late", (torch.Tensor,), {})
            return torch.zeros(2).as_subclass(late)
        return self._random.choice(
            [
                torch.zeros(self._random.randrange(3), 1),
                nn.Parameter(torch.zeros(1)),
                torch.empty(2, device="meta"),
                torch.zeros(2, dtype=torch.bfloat16),
                self._random.choice(NESTED),
                None,
                "text",
                1.5,
                torch.Size((1, 2)),
                self._random.choice(LONG) if self._random.random() < 0.2 else [],
                CIRCLE,
                CIRCLE_OF_DICTS,
                Unloaded(),
            ]
        )

    def _reentrant_change(self) -> None:
        for _ in range(2):
            self.change()

    def _name(self) -> str:
        return f"name_{self._random.randrange(6)}"  # a new object each time

    def _key(self) -> Any:
        return self._name() if self._random.random() < 0.9 else self._random.choice([3, ("a", 1), None, OddKey()])


# ---- The model.


class ExpectedError(Exception):
    """What the model raises itself."""


class Inner(nn.Module):
    def forward(self, x: torch.Tensor, value: Any, *, other: Any = None) -> Any:
        return x + 1, value, other


class Model(nn.Module):
    """Hands its arguments on, and calls three modules of its own: `PATHS`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Inner(), nn.ModuleList([Inner()])
        self.late: list[nn.Module] = []

    def forward(self, x: torch.Tensor, value: Any, error: ExpectedError | None = None, **more: Any) -> Any:
        x, value, _ = self.first(x, value)
        x, value, _ = self.second[0](x, value, other=more)
        # Modules that no recording knows, at addresses that are used again and again.
        self.late.append(nn.Identity())
        late, self.late = self.late, self.late[-3:]
        late[0](value)
        if error is not None:
            raise error
        return x * 2, value


PATHS = ["model", "model.first", "model.second.0"]


def check_call(model: nn.Module, number: int, value: Any, **more: Any) -> None:
    """Call the model, and compare what it returns or raises with what it would without a recording."""
    if number % 7 == 3:
        error = ExpectedError(number)
        with pytest.raises(ExpectedError) as caught:
            model(torch.full((2,), float(number)), value, error=error, **more)
        assert caught.value is error
        assert error.__cause__ is error.__context__ is None
    else:
        output, same = model(torch.full((2,), float(number)), value, **more)
        assert output.tolist() == [(number + 2) * 2] * 2
        assert same is value


def check_recorded(trace: tv.Trace, calls: int) -> None:
    """Compare the rows of the thread that began the recording with the number of the model's calls on it."""
    rows = trace.calls[trace.calls["thread"] == 0]
    counts = collections.Counter(rows["path"])
    assert {path: counts[path] for path in PATHS} == dict.fromkeys(PATHS, calls)
    failed = rows[rows["path"] == "model"]["error"].fillna("")
    assert failed.tolist() == ["ExpectedError" if number % 7 == 3 else "" for number in range(calls)]


@contextmanager
def running(*works: Callable[[], None]) -> Iterator[None]:
    """Run functions again and again on threads of their own; what they raise is raised at the end."""
    over, errors = threading.Event(), []

    def repeat(work: Callable[[], None]) -> None:
        while not over.is_set():
            try:
                work()
            except BaseException as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        for thread in threads:
            thread.start()
        yield
    finally:
        sys.setswitchinterval(5e-3)
        over.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def until(seconds: float, start: int = 0) -> Iterator[int]:
    """Count up until the time is over, from `start`, but at least 20 times."""
    end, number = time.monotonic() + seconds, start
    while number < start + 20 or time.monotonic() < end:
        yield number
        number += 1


# ---- The tests.


@each_via
@fuzz
@seeds
def test_arguments_that_change_while_they_are_read(via: str, seed: int) -> None:
    values, elsewhere, model = Values(seed), Values(seed + 1), Model()
    elsewhere.containers = values.containers
    value: list[Any] = []
    more: dict[str, Any] = {}

    def call(number: int) -> None:
        if number % 4 == 0:
            value[:] = [values.draw(), values.draw()]
            more.update(keyword=values.draw(2))
        check_call(model, number, value, **more)

    def change() -> None:
        for _ in range(20):
            elsewhere.change()

    with recording(model, via) as rec:
        # First alone: only the values themselves run code then.
        for number in until(SECONDS / 2):
            call(number)
        with running(change):
            for number in until(SECONDS, number + 1):  # noqa: B020
                call(number)
    check_recorded(rec.trace, number + 1)
    # Nor is any argument kept.
    value.clear()
    more.clear()
    values.containers.clear()
    del rec
    gc.collect()
    assert [type(leaf()) for leaf in (*values.leaves, *elsewhere.leaves) if leaf() is not None] == []


@each_via
@fuzz
@seeds
def test_threads_recordings_and_modules_that_come_and_go(via: str, seed: int) -> None:
    values, model, other = Values(seed), Model(), Model()
    value = values.draw()

    def call() -> None:
        for number in range(20):
            check_call(model, number, value)

    def call_on_short_threads() -> None:
        threads = [threading.Thread(target=check_call, args=(model, 0, value)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def change() -> None:
        for _ in range(20):
            values.change()

    def record_the_same() -> None:
        first, second = ExitStack(), ExitStack()
        with first, second:
            earlier = first.enter_context(recording(model, via))
            check_call(model, 0, value)
            later = second.enter_context(recording(model, via))
            check_call(model, 1, value)
            first.close()
            check_call(model, 2, value)
        check_recorded(earlier.trace, 2)
        check_recorded(later.trace, 2)

    def record_another() -> None:
        other.extra = Inner()
        with recording(other, via) as rec:
            for number in range(9):
                check_call(other, number, value)
                other.extra(torch.zeros(1), value)
            del other.extra
            for number in range(9, 12):
                Inner()(torch.zeros(1), value)  # at the address of the one that was deleted, if it was let go
                check_call(other, number, value)
        check_recorded(rec.trace, 12)
        assert (rec.trace.calls["path"] == "model.extra").sum() == 9

    work = [call, call_on_short_threads, change, record_another]
    # torch walks over a module's hooks as it calls them: to add some meanwhile raises there.
    if via != "hooks":
        work.append(record_the_same)
    with recording(model, via) as rec, running(*work):
        for number in until(SECONDS):
            check_call(model, number, value)
    check_recorded(rec.trace, number + 1)


@each_via
@fuzz
@seeds
def test_threads_that_outlive_the_recording(via: str, seed: int) -> None:
    values, pool = Values(seed), ThreadPoolExecutor(2)

    def record() -> list[weakref.ref[Any]]:
        inside, over = threading.Event(), threading.Event()
        model = Model()

        def wait(*_: Any) -> None:
            inside.set()
            over.wait()

        with recording(model, via) as rec:
            for number in range(8):
                pool.submit(check_call, model, number, values.draw()).result()
                check_call(model, number, values.draw())
            # And one call that goes on when the recording ends.
            hook = model.second[0].register_forward_hook(wait)
            late = pool.submit(check_call, model, 0, values.draw())
            inside.wait()
            hook.remove()
        over.set()
        late.result()
        check_recorded(rec.trace, 8)
        check_call(model, 0, values.draw())
        return [weakref.ref(model), weakref.ref(model.first), weakref.ref(rec)]

    with pool:
        kept = [ref for _ in range(2) for ref in record()]
        pool.submit(int).result()  # which lets go of what it ran before
        values.containers.clear()
        gc.collect()
        assert [type(ref()) for ref in (*kept, *values.leaves) if ref() is not None] == []


@each_via
def test_classes_and_names_that_come_and_go(via: str) -> None:
    """Another object at the address of a class, a key or a shape that was seen before is not taken for that."""
    model, expected = Model(), []
    late = lambda base: type("LateCache", (base,), {})  # noqa: E731
    makers: list[Any] = [
        lambda n: (torch.zeros(n).as_subclass(late(torch.Tensor)), [("value", (n,))]),
        lambda n: (late(str)("text"), []),
        lambda n: (late(dict)({f"key_{n}": torch.zeros(n, 1)}), [(f"key_{n}", (n, 1))]),
        lambda n: (late(tuple)([torch.zeros(1), torch.zeros(n)]), [("0", (1,)), ("1", (n,))]),
        lambda n: (late(OtherCache)([torch.zeros(n)]), [("0", (n,))]),
        lambda n: ({"".join(["k", str(n)]): torch.zeros(2)}, [(f"k{n}", (2,))]),
    ]
    random.seed(0)
    with recording(model, via) as rec:
        for number in range(150):
            value, tensors = random.choice(makers)(random.randrange(1, 4))
            model(torch.zeros(2), value=value)
            expected.append([("0", (2,)), *tensors])
            del value
            if number % 25 == 0:
                gc.collect()
    calls = rec.trace.calls
    for row, tensors in zip(calls.loc[calls["path"] == "model", "inputs"], expected, strict=True):
        assert [(tensor.name.split(".")[-1], tensor.shape) for tensor in row] == tensors
