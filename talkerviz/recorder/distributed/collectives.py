"""See every collective and message of torch.distributed, whoever calls it.

`dist.all_reduce` under any name, functional collectives, DTensor, compiled code and what C++ calls by itself all come
to torch's dispatcher as operators of the namespace `c10d`. For the length of a recording each has a kernel in front of
the backend's own, at the key `BackendSelect`, that no mode switches off. It tells the recordings and goes on. Nothing
else of torch.distributed is touched but `Work.wait`, which is where the host waits for what has been begun.
"""

from __future__ import annotations

import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from talkerviz.recorder.dataflow.op_rules import tensors_of
from talkerviz.recorder.method_patch import patch_method

Tensors = tuple[Tensor, ...]

_KINDS = {
    **dict.fromkeys(("allreduce_", "allreduce_coalesced_"), "all_reduce"),
    **dict.fromkeys(("allgather_", "_allgather_base_", "allgather_coalesced_"), "all_gather"),
    "allgather_into_tensor_coalesced_": "all_gather",
    **dict.fromkeys(("reduce_scatter_", "_reduce_scatter_base_"), "reduce_scatter"),
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    **dict.fromkeys(("alltoall_", "alltoall_base_"), "all_to_all"),
    **dict.fromkeys(("barrier", "monitored_barrier_"), "barrier"),
    "broadcast_": "broadcast",
    "reduce_": "reduce",
    "gather_": "gather",
    "scatter_": "scatter",
    "send": "send",
    **dict.fromkeys(("recv_", "recv_any_source_"), "recv"),
}
"""What an operator of `c10d` is called, of `log.SPECIAL_CALLS`."""

_MOST_PENDING = 1024
_ANYONE = "*"


class Listener(Protocol):
    """A recording, to which collectives are told on the threads that they run on."""

    def begin(self, kind: str, peers: str, inputs: Tensors, outputs: Tensors) -> Any:
        """A collective begins.

        Args:
            kind: which, of `log.SPECIAL_CALLS`.
            peers: the ranks that it is among.
            inputs, outputs: its tensors.

        Returns:
            What is to be given to the others.
        """

    def wait(self, begun: Any) -> Any:
        """A wait begins for one that was begun before; gives what is to be given to `end`."""

    def end(self, begun: Any, error: type[BaseException] | None, done: bool) -> None:
        """What was begun is over, or has failed; `done` if the results are there."""


@dataclass(frozen=True)
class _Operator:
    """How one of them is called: the places of its arguments, -1 for none."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    group: int
    peer: int
    tag: int
    is_async: int


@dataclass(eq=False)
class _Collective:
    """One that has been begun.

    Attributes:
        told: the listeners, and what they gave for it.
        work: what a wait for it is called on.
        storages: addresses of what it leaves its results in.
    """

    told: list[tuple[Listener, Any]]
    work: weakref.ref[Any] | None = None
    storages: list[int] = field(default_factory=list)


class _Thread(threading.local):
    """What is going on on a thread.

    Attributes:
        inside: whether it is in a collective already.
        blocking: what its caller is going to wait for at once, and that therefore goes on.
        latest: the last work, kept so that it is the same object when its caller gets it.
    """

    inside = False
    blocking: _Collective | None = None
    latest: Any = None


_thread = _Thread()
_lock = threading.RLock()
_listeners: list[Listener] = []
_undo: list[Callable[[], None]] = []
_pending: dict[int, _Collective] = {}  # by the identity of its work
_by_storage: dict[int, _Collective] = {}
_groups: dict[tuple[str, int], tuple[Sequence[int], str]] = {}


def watch_collectives(listener: Listener, undo: list[Callable[[], None]]) -> None:
    """Tell a listener of all collectives; what ends that is in `undo` before it begins."""
    with _lock:
        undo.append(lambda: _leave(listener))
        _listeners.append(listener)
        if not _undo:
            _step_in()


def _leave(listener: Listener) -> None:
    with _lock:
        if listener in _listeners:
            _listeners.remove(listener)
        while not _listeners and _undo:
            _undo[-1]()
            _undo.pop()


def _step_in() -> None:
    for table in (_pending, _by_storage, _groups):
        table.clear()
    # Not every torch has all of them.
    collectives = tuple(name for name in _KINDS if hasattr(torch.ops.c10d, name))
    for namespace, names in (("c10d", collectives), ("_c10d_functional", ("wait_tensor",))):
        library = torch.library.Library(namespace, "IMPL")
        _undo.append(library._destroy)
        for name in names:
            operator = getattr(getattr(torch.ops, namespace), name).default
            kernel = _kernel(operator, _operator(operator, _KINDS[name])) if name in _KINDS else _wait_kernel(operator)
            # Between the pieces of a compiled region Dynamo looks at all Python code that runs.
            library.impl(name, torch.compiler.disable(kernel), "BackendSelect", with_keyset=True)
    patch_method(dist.Work, "wait", _make_wait, _undo)


def _operator(operator: Any, kind: str) -> _Operator:
    names = [argument.name for argument in operator._schema.arguments]

    def place(*any_of: str) -> int:
        return next((at for at, name in enumerate(names) if name in any_of), -1)

    def places(beginning: str) -> tuple[int, ...]:
        return tuple(at for at, name in enumerate(names) if name.startswith(beginning))

    in_place = places("tensor") if kind != "barrier" else ()
    return _Operator(
        kind=kind,
        inputs=places("input") or (in_place if kind != "recv" else ()),
        outputs=places("output") or (in_place if kind != "send" else ()),
        group=place("process_group"),
        peer=place("src", "dst"),
        tag=place("tag"),
        is_async=place("async_op", "asyncOp"),
    )


def _kernel(operator: Any, how: _Operator) -> Callable[..., Any]:
    below = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)

    def kernel(keyset: Any, *args: Any) -> Any:
        if _thread.inside or not _listeners:
            return operator.redispatch(keyset & below, *args)
        if _thread.blocking is not None:  # which its caller did not wait for after all
            _end(_take_blocking())
        inputs = tuple(tensors_of([args[at] for at in how.inputs]))
        outputs = inputs if how.outputs == how.inputs else tuple(tensors_of([args[at] for at in how.outputs]))
        peers = _peers(how, args)
        collective = _Collective([(one, one.begin(how.kind, peers, inputs, outputs)) for one in _listeners])
        _thread.inside = True
        try:
            result = operator.redispatch(keyset & below, *args)
        except BaseException as error:
            _end(collective, type(error))
            raise
        finally:
            _thread.inside = False
        last = result[-1] if isinstance(result, tuple | list) else result
        work = dist.Work.unbox(last) if isinstance(last, torch.ScriptObject) else None
        if work is not None and _waits_at_once(how, args):
            _thread.blocking = _expect(collective, work, ())
        else:
            _end(collective, done=work is None)
            if work is not None:
                _expect(collective, work, outputs)
        return result

    return kernel


def _wait_kernel(operator: Any) -> Callable[..., Any]:
    below = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)

    def kernel(keyset: Any, tensor: Tensor) -> Any:
        def go_on() -> Any:
            return operator.redispatch(keyset & below, tensor)

        collective = None if tensor.is_meta else _by_storage.get(tensor.untyped_storage().data_ptr())
        return go_on() if collective is None else _wait_for(collective, go_on)

    return kernel


def _make_wait(below: Callable[..., Any]) -> Callable[..., Any]:
    def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        collective = _pending.get(id(self))
        if collective is None or _thread.inside:
            return below(self, *args, **kwargs)
        if collective is not _thread.blocking:
            return _wait_for(collective, lambda: below(self, *args, **kwargs))
        error: type[BaseException] | None = None
        try:
            return below(self, *args, **kwargs)
        except BaseException as raised:
            error = type(raised)
            raise
        finally:
            _forget(_take_blocking())
            _end(collective, error)

    found: Callable[..., Any] = torch.compiler.disable(wait)  # as the kernels
    return found


def _wait_for(collective: _Collective, go_on: Callable[[], Any]) -> Any:
    """Wait for what was begun before, which is a row of its own."""
    _forget(collective)
    told = [(listener, listener.wait(begun)) for listener, begun in collective.told if listener in _listeners]
    error: type[BaseException] | None = None
    try:
        return go_on()
    except BaseException as raised:
        error = type(raised)
        raise
    finally:
        _end(_Collective(told), error)


def _end(collective: _Collective, error: type[BaseException] | None = None, done: bool = True) -> None:
    for listener, begun in collective.told:
        if listener in _listeners:
            listener.end(begun, error, done)


def _take_blocking() -> _Collective:
    collective, _thread.blocking = _thread.blocking, None
    assert collective is not None
    return collective


def _expect(collective: _Collective, work: Any, results: Tensors) -> _Collective:
    """Have a wait for it known by its work, or, as functional collectives have no work, by what its results are in."""
    _thread.latest = work
    known = id(work)
    # Not kept: what C++ alone waits for is never met again, and holds its tensors.
    collective.work = weakref.ref(work, lambda _: _pending.pop(known, None))
    _pending[known] = collective
    for tensor in results:
        collective.storages.append(address := tensor.untyped_storage().data_ptr())
        _by_storage.pop(address, None)
        _by_storage[address] = collective
    while len(_by_storage) > _MOST_PENDING:
        del _by_storage[next(iter(_by_storage))]
    return collective


def _forget(collective: _Collective) -> None:
    work = collective.work and collective.work()
    if work is not None:
        _pending.pop(id(work), None)
    for address in collective.storages:
        if _by_storage.get(address) is collective:
            del _by_storage[address]
    _thread.latest = None


def _peers(how: _Operator, args: Sequence[Any]) -> str:
    group = dist.ProcessGroup.unbox(args[how.group])
    known = group.group_name, group.size()
    if known not in _groups:
        ranks: Sequence[int] = range(group.size())
        with suppress(KeyError, ValueError):  # of one that torch.distributed was not asked for
            ranks = dist.get_process_group_ranks(group)
        _groups[known] = ranks, ranges_text(ranks)
    ranks, text = _groups[known]
    if how.tag < 0:
        return text
    own = ranks[group.rank()]
    other = ranks[args[how.peer]] if how.peer >= 0 else _ANYONE
    tag = f" tag {args[how.tag]}" if args[how.tag] else ""
    return f"{own}>{other}{tag}" if how.kind == "send" else f"{other}>{own}{tag}"


def ranges_text(numbers: Sequence[int]) -> str:
    """Numbers as `0-3,6`."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _waits_at_once(how: _Operator, args: Sequence[Any]) -> bool:
    if how.tag < 0:
        # What is at its default is not handed to a kernel, and that is to be asynchronous.
        return how.is_async >= 0 and how.is_async < len(args) and not args[how.is_async]
    # No argument tells of messages; but these two functions wait for theirs.
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code not in _WAITING:
        frame = frame.f_back
    return frame is not None


_WAITING = {inspect.unwrap(function).__code__ for function in (dist.send, dist.recv)} if dist.is_available() else set()
