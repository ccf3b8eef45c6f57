"""Training steps: the loader, backward passes by module, optimizers, and the rest of the loop, as rows of the trace."""

from __future__ import annotations

import gc
import threading
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from time import perf_counter_ns
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.data.dataloader import _BaseDataLoaderIter

from talkerviz.recorder.method_patch import patch_method
from talkerviz.trace.event_log import NO_TENSORS, Mark

DATA, FORWARD, BACKWARD, RECOMPUTE, OPTIMIZER, OTHER, VALIDATION = TRAINING_PHASES = (
    *("data", "forward", "backward", "recompute", "optimizer", "other", "validation"),
)
"""Phases of a training step. `recompute` has the modules that activation checkpointing runs again in a backward pass;
`other` is the rest of the loop: the loss's own code, clipping, schedulers, logging."""

_next_sequence_number = torch._C._autograd._get_sequence_nr  # torch has no public name for it
_MAX_EDGES = 1 << 18  # call entries and exits kept of forward passes whose backward may come: 6 MB
_ACCUMULATE_GRAD = 1 << 63  # nodes that add to a parameter's gradient have larger sequence numbers


class _ForwardCalls:
    """Calls of forward passes, by autograd's sequence numbers.

    Each node of the graph has the next number of the thread that runs the operation. So the innermost call in which an
    operation ran is the one that was open at its number, and neither tensors nor modules need hooks.
    """

    def __init__(self) -> None:
        self._sequence = array("Q")  # next sequence number at each entry and exit, ascending
        self._innermost = array("q")  # call that is open after it; -1 for none
        self._module = array("i")  # of each call
        self._parent = array("q")
        self._first_call = 0  # number of the first call that is kept
        self.current = -1

    def edge(self, number: int) -> None:
        """Note the entry of a call of a module by its number, or an exit by -1 minus the number."""
        if number >= 0:
            self._module.append(number)
            self._parent.append(self.current)
            self.current = self._first_call + len(self._module) - 1
        elif self.current >= self._first_call:
            self.current = self._parent[self.current - self._first_call]
        else:
            self.current = -1  # its entry is not kept
        self._sequence.append(_next_sequence_number())
        self._innermost.append(self.current)
        if len(self._sequence) > _MAX_EDGES and self.current < 0:
            self._drop()

    def _drop(self) -> None:
        """Drop the older half."""
        del self._sequence[: _MAX_EDGES // 2], self._innermost[: _MAX_EDGES // 2]
        first = next((call for call in self._innermost if call >= 0), self._first_call + len(self._module))
        del self._module[: first - self._first_call], self._parent[: first - self._first_call]
        self._first_call = first

    def call_of(self, sequence: int) -> int:
        """Return the innermost call in which the node of a sequence number was made; -1 for none."""
        edge = bisect_right(self._sequence, sequence) - 1
        return self._innermost[edge] if edge >= 0 else -1

    def chain(self, call: int) -> list[int]:
        """Return the modules of a call and of those around it, outermost first."""
        modules: list[int] = []
        while call >= self._first_call:
            modules.append(self._module[call - self._first_call])
            call = self._parent[call - self._first_call]
        return modules[::-1]


class TrainingSteps:
    """Rows of the parts of a training loop that are no module's.

    The loop begins with the first batch once the program has made an optimizer, with the first pass in training
    mode of a model whose parameters an optimizer has, or else with the first backward pass, and is that thread's.
    From then on its time is in rows without a gap. A frame is a step: from one update of the weights to the next,
    beginning with the loader where there is one. Forward passes that share an update, in gradient accumulation, are
    numbered by `step`.

    Args:
        add_row: function from a path to the number of its rows, for what is no module.
        set_mark: sets the mark of the calls from here on.
        last_frame: returns the last frame of the run so far.
        guarded: wraps a function so that its exceptions are warnings.

    Attributes:
        began: whether a training loop was found.
    """

    def __init__(
        self,
        add_row: Callable[[str], int],
        set_mark: Callable[[Mark], None],
        last_frame: Callable[[], int | None],
        guarded: Callable[[Callable[..., None]], Callable[..., None]],
    ) -> None:
        self.began = False
        self._add_row, self._set_mark, self._last_frame, self._guarded = add_row, set_mark, last_frame, guarded
        self._events: Any = None
        self._stamp: Callable[[bool], None] = lambda entry: None
        self._thread = -1
        self._calls = _ForwardCalls()
        self._rows: dict[str, int] = {}
        self._open: list[int] = []  # rows that are open, outermost first
        self._gap_ns = -1  # since when no row has been open; -1 before the loop
        self._frame, self._micro = 0, 0
        self._updated = self._has_data = self._has_gradients = self._uses_optimizer = False
        self._validates = False
        self._backward_depth = 0
        self._has_stamps = False
        self._known: WeakSet[Optimizer] = WeakSet()
        self._elsewhere: list[tuple[int, list[int], int]] = []  # when engine threads entered which modules
        self._optimizers: dict[int, str] = {}
        self._first_optimizer = 0
        self._groups: set[type] = set()  # classes whose groups are told apart
        self._undo: list[Callable[[], None]] = []

    def attach(
        self, events: Any, stamp: Callable[[bool], None], has_stamps: bool, undo: list[Callable[[], None]]
    ) -> None:
        """Begin to watch the program.

        Args:
            events: the log of calls.
            stamp: samples the instruments at the entry or exit of a row.
            has_stamps: whether there are instruments to sample; they cannot be on the engine's own threads.
            undo: functions that undo it, appended to.
        """
        self._events, self._stamp, self._has_stamps, self._undo = events, stamp, has_stamps, undo
        gc.collect()  # optimizers of loops that have ended are no longer those of the program
        self._known = WeakSet(value for value in gc.get_objects() if issubclass(type(value), Optimizer))
        patch_method(Optimizer, "__init__", self._wrap_init, undo)
        patch_method(torch.autograd, "_engine_run_backward", self._wrap_backward, undo)
        patch_method(_BaseDataLoaderIter, "__next__", self._wrap_next, undo)
        before, after = self._guarded(self._on_optimizer), self._guarded(self._after_optimizer)
        undo.append(register_optimizer_step_pre_hook(lambda optimizer, args, kwargs: before(optimizer)).remove)
        undo.append(register_optimizer_step_post_hook(lambda optimizer, args, kwargs: after(optimizer)).remove)

    # Rows.

    def _is_here(self) -> bool:
        return threading.get_ident() == self._thread

    def _begin(self, number: int, began_ns: int) -> None:
        self._stamp(True)
        now = perf_counter_ns()
        self._events.put(number, NO_TENSORS, now, now - began_ns)
        self._open.append(number)

    def _end(self, began_ns: int) -> None:
        """End the innermost row as it was when the recorder was called; what follows is the recorder's own time."""
        self._stamp(False)
        self._events.put(-1 - self._open.pop(), NO_TENSORS, began_ns, perf_counter_ns() - began_ns)

    def _end_to(self, depth: int, began_ns: int) -> None:
        """End the rows that are open inside the outermost `depth` ones."""
        while len(self._open) > depth:
            self._end(began_ns)
            began_ns = perf_counter_ns()  # what it took is counted as the recorder's own already

    def _row(self, path: str) -> int:
        if path not in self._rows:
            self._rows[path] = self._add_row(path)
        return self._rows[path]

    def _leave_gap(self) -> None:
        """Log the time since the last row as `other`."""
        now = perf_counter_ns()
        if self._gap_ns >= 0 and not self._open and self._calls.current < 0:
            self._set_mark(Mark(VALIDATION) if self._validates else Mark(OTHER, self._frame))
            number = self._row(OTHER)
            self._stamp(True)
            self._events.put(number, NO_TENSORS, min(self._gap_ns, now), 0)
            self._stamp(False)
            self._events.put(-1 - number, NO_TENSORS, now, perf_counter_ns() - now)
        self._gap_ns = -1

    def _begin_gap(self) -> None:
        if self.began and not self._open and self._calls.current < 0:
            self._gap_ns = perf_counter_ns()

    def _next_frame(self) -> None:
        self._frame += 1
        self._micro = 0
        self._updated = self._has_data = self._has_gradients = False

    # Forward passes.

    def edge(self, number: int) -> None:
        """Note the entry of a module's call by the module's number, or an exit by -1 minus the number."""
        if not torch.is_grad_enabled() and not self.began:
            return
        if self.began and threading.get_ident() != self._thread:
            return
        outermost = self._calls.current < 0
        if number >= 0 and outermost and self._backward_depth:
            self._mark(RECOMPUTE)
        self._calls.edge(number)
        if number < 0 and self._calls.current < 0:
            if self._backward_depth:
                self._mark(BACKWARD)
            else:
                self._begin_gap()

    def _mark(self, phase: str) -> None:
        self._set_mark(Mark(phase, self._frame, self._micro))

    def on_pass(self, module: nn.Module) -> bool:
        """Mark a pass of the loop, and return whether it was one; other passes have their own phases."""
        if not self._uses_optimizer and module.training and torch.is_grad_enabled():
            self._uses_optimizer = self._is_optimised(module)
        if not self.began and self._uses_optimizer and module.training and torch.is_grad_enabled():
            self._begin_loop(self._frame_after_last())
        if not self.began or not self._is_here():
            return False
        if self._backward_depth or self._calls.current >= 0:
            return True
        self._leave_gap()
        trains = torch.is_grad_enabled() and (module.training or not self._validates)
        if not trains:
            self._validates = True
            self._set_mark(Mark(VALIDATION))
            return True
        self._validates = False
        if self._updated and not self._has_data:
            self._next_frame()
        elif self._has_gradients and not self._uses_optimizer:
            self._next_frame()  # the program updates the weights itself
        elif self._has_gradients:
            self._micro += 1
            self._has_gradients = False
        self._mark(FORWARD)
        return True

    def _is_optimised(self, module: nn.Module) -> bool:
        """Return whether an optimizer of the program has a parameter of a model."""
        groups = (group for optimizer in self._known for group in getattr(optimizer, "param_groups", ()))
        optimised = {id(parameter) for group in groups for parameter in group["params"]}
        return any(id(parameter) in optimised for parameter in module.parameters())

    # The loader.

    def _wrap_next(self, original: Callable[..., Any]) -> Callable[..., Any]:
        begin, end = self._guarded(self._on_data), self._guarded(self._after_data)

        def next_batch(loader: Any) -> Any:
            begin()
            try:
                return original(loader)
            finally:
                end()

        return next_batch

    def _on_data(self) -> None:
        if not self.began and self._known and torch.is_grad_enabled():
            self._begin_loop(self._frame_after_last())
        if not self.began or not self._is_here() or self._open:
            return
        began = perf_counter_ns()
        self._leave_gap()
        if self._updated and not self._validates:
            self._next_frame()
        self._has_data = self._has_data or not self._validates
        self._set_mark(Mark(VALIDATION) if self._validates else Mark(DATA, self._frame))
        self._begin(self._row("DataLoader"), began)

    def _after_data(self) -> None:
        if self._is_here() and self._open == [self._rows.get("DataLoader")]:
            self._end(perf_counter_ns())
            self._begin_gap()

    # Backward passes.

    def _wrap_backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        begin, end = self._guarded(self._on_backward), self._guarded(self._after_backward)

        def run_backward(outputs: Any, *args: Any, **kwargs: Any) -> Any:
            opened: list[Any] = []
            begin(outputs, kwargs, opened)
            try:
                return original(outputs, *args, **kwargs)
            finally:
                end(opened)

        return run_backward

    def _on_backward(self, outputs: Iterable[Any], options: Mapping[str, Any], opened: list[Any]) -> None:
        """Begin a backward pass.

        Args:
            outputs: tensors that it begins with.
            options: arguments of the engine.
            opened: gets the number of open rows before, and then handles of hooks to remove.
        """
        if torch.compiler.is_compiling():
            return
        began = perf_counter_ns()
        if not self.began and options.get("accumulate_grad"):
            self._begin_loop(self._last_frame() or 0)  # the forward pass was a frame already
        if not self.began or not self._is_here():
            return
        if not self._backward_depth:
            self._leave_gap()
            self._validates = False
            self._mark(BACKWARD)
        depth = len(self._open)
        hooks = self._hook_nodes(outputs)
        self._begin(self._row(BACKWARD), began)
        opened += [depth, *hooks]
        self._backward_depth += 1

    def _after_backward(self, opened: list[Any]) -> None:
        if not opened:
            return
        now = perf_counter_ns()
        depth, *hooks = opened
        self._log_elsewhere()
        self._end_to(depth, now)
        self._backward_depth -= 1
        for hook in hooks:
            hook.remove()
        self._has_gradients = True
        if not self._backward_depth:
            self._begin_gap()

    def _begin_loop(self, frame: int) -> None:
        self.began, self._thread, self._frame = True, threading.get_ident(), frame

    def _frame_after_last(self) -> int:
        last = self._last_frame()
        return 0 if last is None else last + 1

    def _hook_nodes(self, outputs: Iterable[Any]) -> list[Any]:
        """Register hooks on the nodes at which the backward pass goes from one module to another.

        The engine runs nodes in the order of their sequence numbers, the last operation first. A hook before a node
        sees its gradients and returns none, so it changes nothing.
        """
        call_of, chain_of = self._calls.call_of, self._calls.chain
        seen: set[Any] = set()
        nodes: list[tuple[int, Any]] = []
        waiting = [node for output in outputs if (node := getattr(output, "grad_fn", None)) is not None]
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            sequence = node._sequence_nr()
            if sequence < _ACCUMULATE_GRAD:
                nodes.append((sequence, node))
                waiting += [inner for inner, _ in node.next_functions if inner is not None]
        nodes.sort(key=_by_sequence, reverse=True)
        hooks, last, base = [], -1, len(self._open) + 1
        enter = self._guarded(self._enter)
        for sequence, node in nodes:
            call = call_of(sequence)
            if call != last:
                hooks.append(node.register_prehook(_Before(enter, chain_of(call), base)))
                last = call
        return hooks

    def _enter(self, chain: list[int], base: int) -> None:
        """Log that the backward pass goes on inside these modules, outermost first."""
        if not self._is_here():  # a thread of the engine, as on CUDA
            if not self._has_stamps:
                self._elsewhere.append((perf_counter_ns(), chain, base))
            return
        began = perf_counter_ns()
        same = self._shared(chain, base)
        if len(self._open) > base + same:
            self._end_to(base + same, began)
            began = perf_counter_ns()
        for number in chain[same:]:
            self._begin(number, began)
            began = perf_counter_ns()

    def _log_elsewhere(self) -> None:
        """Log where the engine's threads went, while this one waited for them."""
        for time_ns, chain, base in self._elsewhere:
            same = self._shared(chain, base)
            while len(self._open) > base + same:
                self._events.put(-1 - self._open.pop(), NO_TENSORS, time_ns, 0)
            for number in chain[same:]:
                self._events.put(number, NO_TENSORS, time_ns, 0)
                self._open.append(number)
        self._elsewhere.clear()

    def _shared(self, chain: list[int], base: int) -> int:
        """Return how many of these modules are open already, from the outermost on."""
        same, most = 0, min(len(self._open) - base, len(chain))
        while same < most and self._open[base + same] == chain[same]:
            same += 1
        return same

    # Optimizers.

    def _wrap_init(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def init(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
            self._uses_optimizer = True
            self._known.add(optimizer)
            original(optimizer, *args, **kwargs)

        return init

    def _on_optimizer(self, optimizer: Optimizer) -> None:
        self._uses_optimizer = True
        if not self.began or not self._is_here() or torch.compiler.is_compiling():
            return
        began = perf_counter_ns()
        if not self._open:
            self._leave_gap()
            if self._updated and id(optimizer) == self._first_optimizer:
                self._next_frame()
            self._set_mark(Mark(OPTIMIZER, self._frame))
        self._tell_groups(type(optimizer))
        self._begin(self._row(self._name(optimizer)), began)

    def _after_optimizer(self, optimizer: Optimizer) -> None:
        number = self._rows.get(self._optimizers.get(id(optimizer), ""), -1)
        if not self._is_here() or number not in self._open or torch.compiler.is_compiling():
            return
        self._end_to(self._open.index(number), perf_counter_ns())
        self._first_optimizer = self._first_optimizer or id(optimizer)
        self._updated |= id(optimizer) == self._first_optimizer
        self._has_gradients = False
        self._begin_gap()

    def _name(self, optimizer: Optimizer) -> str:
        if id(optimizer) not in self._optimizers:
            name, taken = type(optimizer).__name__, set(self._optimizers.values())
            free = (f"{name}_{number}" for number in range(2, len(taken) + 3))
            self._optimizers[id(optimizer)] = name if name not in taken else next(n for n in free if n not in taken)
        return self._optimizers[id(optimizer)]

    def _tell_groups(self, kind: type) -> None:
        """Have a class of optimizers tell when it goes on to another group of parameters."""
        owner = next((base for base in kind.__mro__ if "_init_group" in vars(base)), None)
        if owner is not None and owner not in self._groups:
            self._groups.add(owner)
            patch_method(owner, "_init_group", self._wrap_group, self._undo)

    def _wrap_group(self, original: Callable[..., Any]) -> Callable[..., Any]:
        tell = self._guarded(self._on_group)

        def init_group(optimizer: Optimizer, group: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            tell(optimizer, group)
            return original(optimizer, group, *args, **kwargs)

        return init_group

    def _on_group(self, optimizer: Optimizer, group: dict[str, Any]) -> None:
        name = self._optimizers.get(id(optimizer), "")
        number = self._rows.get(name, -1)
        several = len(optimizer.param_groups) > 1
        if not several or not self._is_here() or number not in self._open or torch.compiler.is_compiling():
            return
        self._end_to(self._open.index(number) + 1, perf_counter_ns())
        began = perf_counter_ns()
        index = next(index for index, other in enumerate(optimizer.param_groups) if other is group)
        self._begin(self._row(f"{name}.{group.get('name', f'group_{index}')}"), began)


def _by_sequence(entry: tuple[int, Any]) -> int:
    return entry[0]


class _Before:
    """Hook before a node of the graph that tells which modules it belongs to."""

    def __init__(self, enter: Callable[..., None], chain: list[int], base: int) -> None:
        self._enter, self._chain, self._base = enter, chain, base

    def __call__(self, gradients: Any) -> None:
        self._enter(self._chain, self._base)
