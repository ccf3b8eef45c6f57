"""Hooks on every collective and message of torch.distributed, whatever calls it.

`dist.all_reduce` under any name, functional collectives, DTensor, compiled code and calls from C++ all reach torch's
dispatcher as operators of the namespace `c10d`. During a recording each has a kernel in front of the backend's own, at
the key `BackendSelect`, that no mode switches off. It calls the listeners, and then the backend's kernel. Beside it
only `Work.wait` is patched, where the host waits for a collective that was begun before.
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
from talkerviz.recorder.tap import not_compiled

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
"""Kind of collective of each operator of `c10d`, one of `event_log.SPECIAL_CALLS`."""

_MAX_PENDING = 1024  # storages with results that nobody has waited for; the oldest are dropped
_ANY_RANK = "*"


class Listener(Protocol):
    """Listener for collectives, called on the threads that they run on."""

    def begin(self, kind: str, peers: str, begun: Callable[[], int], inputs: Tensors, outputs: Tensors) -> Any:
        """Note that a collective begins.

        Args:
            kind: one of `event_log.SPECIAL_CALLS`.
            peers: its group of ranks, see `trace.schema.CALLS`.
            begun: returns the number of collectives that this group has begun before; 0 for messages.
            inputs: tensors that it reads.
            outputs: tensors that it writes.

        Returns:
            A handle for `wait` and `end`.
        """

    def wait(self, begun: Any) -> Any:
        """Note that a wait begins for a collective, by its handle; return a handle of the wait for `end`."""

    def end(self, begun: Any, error: type[BaseException] | None, done: bool) -> None:
        """Note the end of a collective or wait.

        Args:
            begun: its handle.
            error: type of the exception that it raised; None if it returned.
            done: whether the results are there.
        """


@dataclass(frozen=True)
class _Operator:
    """Signature of a collective's operator: positions of its arguments, -1 for an argument it lacks."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    group: int
    peer: int
    tag: int
    is_async: int


@dataclass(eq=False)
class _Collective:
    """A collective that has begun.

    Attributes:
        handles: the listeners, each with its handle.
        work: the `Work` on which a wait for it is called.
        storages: addresses of the storages that get its results.
    """

    handles: list[tuple[Listener, Any]]
    work: weakref.ref[Any] | None = None
    storages: list[int] = field(default_factory=list)


class _Thread(threading.local):
    """State of a thread.

    Attributes:
        inside: whether it is inside a collective.
        blocking: the collective that its caller waits for at once, and that therefore has not ended.
        latest: the last `Work`, kept so that it is the same object when its caller gets it.
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
_groups: dict[tuple[str, int], tuple[Sequence[int], str]] = {}  # ranks of a group, and their text


def watch_collectives(listener: Listener, undo: list[Callable[[], None]]) -> None:
    """Call a listener at all collectives; the function that ends it is appended to `undo` first."""
    with _lock:
        undo.append(lambda: _leave(listener))
        _listeners.append(listener)
        if not _undo:
            _add_kernels()


def _leave(listener: Listener) -> None:
    with _lock:
        if listener in _listeners:
            _listeners.remove(listener)
        while not _listeners and _undo:
            _undo[-1]()
            _undo.pop()


def _add_kernels() -> None:
    for table in (_pending, _by_storage, _groups):
        table.clear()
    # Not every torch has all of these operators.
    collectives = tuple(name for name in _KINDS if hasattr(torch.ops.c10d, name))
    for namespace, names in (("c10d", collectives), ("_c10d_functional", ("wait_tensor",))):
        library = torch.library.Library(namespace, "IMPL")
        _undo.append(library._destroy)
        for name in names:
            operator = getattr(getattr(torch.ops, namespace), name).default
            kernel = _kernel(operator, _operator(operator, _KINDS[name])) if name in _KINDS else _wait_kernel(operator)
            library.impl(name, not_compiled(kernel), "BackendSelect", with_keyset=True)
    patch_method(dist.Work, "wait", _wrap_wait, _undo)


def _operator(operator: Any, kind: str) -> _Operator:
    names = [argument.name for argument in operator._schema.arguments]

    def position(*any_of: str) -> int:
        return next((index for index, name in enumerate(names) if name in any_of), -1)

    def positions(prefix: str) -> tuple[int, ...]:
        return tuple(index for index, name in enumerate(names) if name.startswith(prefix))

    in_place = positions("tensor") if kind != "barrier" else ()
    return _Operator(
        kind=kind,
        inputs=positions("input") or (in_place if kind != "recv" else ()),
        outputs=positions("output") or (in_place if kind != "send" else ()),
        group=position("process_group"),
        peer=position("src", "dst"),
        tag=position("tag"),
        is_async=position("async_op", "asyncOp"),
    )


def _kernel(operator: Any, signature: _Operator) -> Callable[..., Any]:
    below = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)

    def kernel(keyset: Any, *args: Any) -> Any:
        if _thread.inside or not _listeners:
            return operator.redispatch(keyset & below, *args)
        if _thread.blocking is not None:  # its caller did not wait for it after all
            _end(_take_blocking())
        inputs = tuple(tensors_of([args[index] for index in signature.inputs]))
        in_place = signature.outputs == signature.inputs
        outputs = inputs if in_place else tuple(tensors_of([args[index] for index in signature.outputs]))
        peers, begun = _peers(signature, args)
        collective = _Collective(
            [(listener, listener.begin(signature.kind, peers, begun, inputs, outputs)) for listener in _listeners]
        )
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
        if work is not None and _waits_at_once(signature, args):
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
        def wait() -> Any:
            return operator.redispatch(keyset & below, tensor)

        collective = None if tensor.is_meta else _by_storage.get(tensor.untyped_storage().data_ptr())
        return wait() if collective is None else _wait_for(collective, wait)

    return kernel


def _wrap_wait(original: Callable[..., Any]) -> Callable[..., Any]:
    def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        collective = _pending.get(id(self))
        if collective is None or _thread.inside:
            return original(self, *args, **kwargs)
        if collective is not _thread.blocking:
            return _wait_for(collective, lambda: original(self, *args, **kwargs))
        error: type[BaseException] | None = None
        try:
            return original(self, *args, **kwargs)
        except BaseException as raised:
            error = type(raised)
            raise
        finally:
            _forget(_take_blocking())
            _end(collective, error)

    return not_compiled(wait)


def _wait_for(collective: _Collective, wait: Callable[[], Any]) -> Any:
    """Wait for a collective that was begun before; the wait is a row of its own."""
    _forget(collective)
    handles = [(listener, listener.wait(begun)) for listener, begun in collective.handles if listener in _listeners]
    error: type[BaseException] | None = None
    try:
        return wait()
    except BaseException as raised:
        error = type(raised)
        raise
    finally:
        _end(_Collective(handles), error)


def _end(collective: _Collective, error: type[BaseException] | None = None, done: bool = True) -> None:
    for listener, begun in collective.handles:
        if listener in _listeners:
            listener.end(begun, error, done)


def _take_blocking() -> _Collective:
    collective, _thread.blocking = _thread.blocking, None
    assert collective is not None
    return collective


def _expect(collective: _Collective, work: Any, results: Tensors) -> _Collective:
    """Remember a collective by its work, or, as functional collectives have none, by the storages of its results."""
    _thread.latest = work
    key = id(work)
    # A weak reference: a work that only C++ waits for is never seen again, and holds its tensors.
    collective.work = weakref.ref(work, lambda _: _pending.pop(key, None))
    _pending[key] = collective
    for tensor in results:
        collective.storages.append(address := tensor.untyped_storage().data_ptr())
        _by_storage.pop(address, None)
        _by_storage[address] = collective
    while len(_by_storage) > _MAX_PENDING:
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


def _peers(signature: _Operator, args: Sequence[Any]) -> tuple[str, Callable[[], int]]:
    """Return the text of a collective's or message's ranks, and the function that counts those begun before it."""
    group = dist.ProcessGroup.unbox(args[signature.group])
    key = group.group_name, group.size()
    if key not in _groups:
        ranks: Sequence[int] = range(group.size())
        with suppress(KeyError, ValueError):  # a group that was not made by torch.distributed
            ranks = dist.get_process_group_ranks(group)
        is_default = dist.group.WORLD is not None and key[0] == dist.group.WORLD.group_name
        # Several groups may have the same ranks; a group's name is equal on all of them.
        _groups[key] = ranks, ranges_text(ranks) + ("" if is_default else f" group {key[0]}")
    ranks, text = _groups[key]
    if signature.tag < 0:
        return text, lambda: _sequence_number(group)
    own = ranks[group.rank()]
    other = ranks[args[signature.peer]] if signature.peer >= 0 else _ANY_RANK
    tag = f" tag {args[signature.tag]}" if args[signature.tag] else ""
    ends = f"{own}>{other}" if signature.kind == "send" else f"{other}>{own}"
    return ends + text.removeprefix(ranges_text(ranks)) + tag, lambda: 0


def _sequence_number(group: Any) -> int:
    """Return the number of collectives that a group's backends have begun; 0 where none of them counts.

    It is equal on all ranks that begin the same collective, whenever they began to record. Gloo counts a rank's
    messages as well: where those differ between ranks, wrong pairs are found by their times when traces are merged.
    """
    backends = {id(backend): backend for backend in map(group._get_backend, group._device_types)}
    total = 0
    for backend in backends.values():
        with suppress(RuntimeError):  # this backend does not count
            total += int(backend._get_sequence_number_for_group())
    return total


def ranges_text(numbers: Sequence[int]) -> str:
    """Format numbers as ranges, such as `0-3,6`."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _waits_at_once(signature: _Operator, args: Sequence[Any]) -> bool:
    if signature.tag < 0:
        # Arguments at their defaults are not passed to a kernel, and the default is asynchronous.
        return signature.is_async >= 0 and signature.is_async < len(args) and not args[signature.is_async]
    # Messages have no such argument; `dist.send` and `dist.recv` wait for theirs.
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code not in _WAITING:
        frame = frame.f_back
    return frame is not None


_WAITING = {inspect.unwrap(function).__code__ for function in (dist.send, dist.recv)} if dist.is_available() else set()
