"""Data flow instrument: the operations of a run, and the edges from each operation to the readers of its result.

It observes three things on the thread that started the recording: torch functions that Python code calls, each of which
is one operation, whatever it runs inside; torch operators as they are dispatched, with the tensors that they really
read and return; and module calls, in a wrapper around the recorder's tap. This is several times slower than the run
itself, so it has a run of its own, and in a loop it follows only a few frames: see `FollowedFrames`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode_temporarily
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from talkerviz.recorder.dataflow.builder import INPUT, OP, PASS, FlowBuilder
from talkerviz.recorder.dataflow.followed_frames import FollowedFrames
from talkerviz.recorder.dataflow.input_names import named_arguments, named_inputs
from talkerviz.recorder.dataflow.meta_cache import MetaCache
from talkerviz.recorder.dataflow.offloaded_weights import watch_moved_weights
from talkerviz.recorder.dataflow.op_rules import Rule, name_of, rule_of, tensors_of
from talkerviz.recorder.dataflow.passthrough import alias_passthrough
from talkerviz.recorder.dataflow.provenance import Provenance, Storage
from talkerviz.recorder.dataflow.repeated_frames import RepeatedFrames
from talkerviz.recorder.dataflow.torch_modes import ActiveModes, OperatorMode, is_plain, run_higher_order
from talkerviz.recorder.instruments.base import Instrument, Readings, RunContext, Undo
from talkerviz.recorder.method_patch import allow_frames, modules_are_hidden, patch_method
from talkerviz.recorder.tensor_signatures import is_tracing, named_tensors_in, tensors_in
from talkerviz.trace.flow import renumber_calls

_without_functions = torch._C.DisableTorchFunction
_FRAMES_PER_CALL = 2  # Python frames of the wrapper between a module's caller and the original `__call__`
_CALLS_PER_RAISE = 32  # nested calls per raise of the recursion limit, which takes 1 µs: most models nest less deeply
# Functions that run the backward of other functions, and checkpointed modules.
_RUN_OTHERS = frozenset((Tensor.backward, torch.autograd.backward, torch.autograd.grad))
# Modules that skip their fast path, which calls none of their submodules, while a function mode is in force.
_FAST_PATH_MODULES = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


@dataclass(slots=True)
class _FunctionCall:
    """A torch function's call in progress: all operators inside are one operation.

    Attributes:
        func, args, kwargs: the call.
        number: number of the operation; -1 until an operator inside makes or writes a tensor.
        heavy: whether one of the operators is heavy.
        reads: operations that it read from -> whether it only left a part of their results.
        argument_storages: storages of its arguments, once they were needed.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    number: int = -1
    heavy: bool = False
    reads: dict[int, bool] = field(default_factory=dict)
    argument_storages: list[Storage | None] | None = None


@dataclass(slots=True)
class _ModuleCall:
    """A module's call in progress.

    Attributes:
        module, args, kwargs: the call.
        edge: number of its begin among the edges of calls; -1 if it is not recorded.
        mark: number of the mark that it began with.
        first: the first operation that can be inside.
        passthrough_storages: storages of tensors that calls inside have returned unchanged.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    edge: int = -1
    mark: int = -1
    first: int = 0
    passthrough_storages: list[Storage] = field(default_factory=list)


class _Functions(TorchFunctionMode):
    """Function mode that reports each torch function that Python code calls to the tracker."""

    def __init__(self, tracker: FlowTracker) -> None:
        super().__init__()
        self._tracker = tracker

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function as one operation."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        # An attribute is at most a view; functions that an operator calls are a part of it.
        if name in ("__get__", "__set__") or self._tracker.is_blind() or is_tracing():
            return func(*args, **kwargs)
        runs_others = name in ("backward", "grad") and func in _RUN_OTHERS
        return self._tracker.call(_FunctionCall(func, args, kwargs), runs_others)


class FlowTracker(OperatorMode, Instrument):
    """Instrument that tracks the data flow between calls, and adds no columns."""

    def __init__(self, run: RunContext) -> None:
        super().__init__(run.fault)
        self._thread = run.thread
        self._model = run.model
        self._mark = run.mark_number
        self._marks = run.marks
        self._functions = _Functions(self)
        self._modes = ActiveModes(self, self._functions)
        self._ident = self._own_ident = -1  # of the observed thread; the second stays after `stop`, for calls inside
        self._depth = self._allowed = 0  # of nested module calls: now, and allowed by the raised recursion limit
        self._undo: list[Callable[[], None]] = []
        self._ignored = False  # whether the running code is not the model's
        self._function_call: _FunctionCall | None = None
        self._in_operator = False
        self._functions_hidden = False  # whether functions are not observed: inside a function
        self._calls: list[_ModuleCall] = []
        self._edge_count = 0
        self._open: list[int] = []  # begin edges of the open calls, outermost first
        self._last_begin = -1  # begin edge of the last call
        self._last_other = -1  # begin edge of the last call that is no module's, such as a collective
        self._provenance = Provenance(
            self._add_external_input, lambda source, target: self._builder.link(source, target, True)
        )
        self._meta = MetaCache()
        self._builder = FlowBuilder()
        self._frames = FollowedFrames(self._builder, run.marks)
        self._following = True
        self._calls_hash = 0  # of the modules that the frame has called
        self._failed: tuple[int, str, tuple[int, ...]] | None = None  # the last function that raised, see `_fail`
        self._other_modes: tuple[list[Any], list[Any]] = [], []  # modes in force when following was suspended

    def attach(self, undo: Undo) -> None:
        """Patch `nn.Module.__call__`, around the tap, and track this thread's tensors."""
        patch_method(nn.Module, "__call__", self._wrap_call, undo)
        self._own_thread = self._thread()
        self._ident = self._own_ident = threading.get_ident()
        self._keep_weights(self._model, recurse=True)
        self._frames.begin(self._mark(), 0)
        watch_moved_weights(self._run_ignored, lambda weight: self._guarded(self._keep, [weight]), self._undo)
        self._modes.begin()

    def stop(self) -> None:
        """Stop observing."""
        if self._ident != -1:
            self._frames.end(self._calls_hash)
        self._ident = -1
        self._modes.end()
        while self._undo:
            self._undo.pop()()

    def stamp(self, entry: bool) -> None:
        """Count an edge of a call, and name the input tensors of an outermost call.

        Args:
            entry: whether the edge is a call's begin.
        """
        if threading.get_ident() != self._own_ident:
            return
        edge = self._edge_count
        self._edge_count += 1
        if not entry:
            if self._open:
                self._open.pop()
            return
        if not self._open and len(self._calls) == 1:
            self._guarded(self._begin_outermost, edge, self._calls[0])
        # The innermost module call is the one that begins.
        if self._following and self._calls and (call := self._calls[-1]).edge < 0 and not is_tracing():
            if not self._open:
                self._guarded(self._note_arguments, call)
            call.edge, call.mark, call.first = edge, self._mark(), len(self._builder)
        self._open.append(edge)
        self._last_begin = edge

    def stamp_collective(self, entry: bool) -> None:
        """Count an edge of a call that is no module's, such as a collective."""
        if entry and self._thread() == self._own_thread:
            self._last_other = self._last_begin = self._edge_count
            self._open.append(self._edge_count)
            self._edge_count += 1
        else:
            self.stamp(False)

    def _begin_outermost(self, edge: int, call: _ModuleCall) -> None:
        """Begin a frame if an outermost call belongs to a new one: only here may following start or stop."""
        mark = self._mark()
        if self._frames.is_new(mark):
            self._frames.end(self._calls_hash)
            self._calls_hash = 0
            frame = self._frames.begin(mark, edge)
            # For these modules `_call_module` has already decided whether functions inside are observed.
            if frame.followed != self._following and not isinstance(call.module, _FAST_PATH_MODULES):
                self._follow(frame.followed)
            frame.followed = self._following
        self._calls_hash = hash((self._calls_hash, id(call.module)))

    def _follow(self, follow: bool) -> None:
        """Leave the modes, or enter them again, unless other modes have been entered or left meanwhile."""
        functions, operators = _get_current_function_mode_stack(), _get_current_dispatch_mode_stack()
        if follow:
            if (functions, operators) == self._other_modes:
                self.__enter__()
                self._functions.__enter__()
                self._following = True
                self._keep_weights(self._model, recurse=True)
        elif functions[-1:] == [self._functions] and operators[-1:] == [self]:
            self._following = False
            self._other_modes = functions[:-1], operators[:-1]
            self._functions.__exit__(None, None, None)
            self.__exit__(None, None, None)

    # Module calls.

    def _wrap_call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != tracker._ident:
                return original_on_other_thread(self, *args, **kwargs)
            tracker._depth += 1
            try:
                if tracker._depth > tracker._allowed:
                    tracker._allow_calls(_CALLS_PER_RAISE)
                if is_tracing() or modules_are_hidden():
                    return original(self, *args, **kwargs)
                if tracker._calls:
                    tracker._calls_hash = hash((tracker._calls_hash, id(self)))
                    if not tracker._following:
                        return original(self, *args, **kwargs)
                return tracker._call_module(original, _ModuleCall(self, args, kwargs))
            finally:
                tracker._depth -= 1
                if tracker._depth == 0:
                    tracker._allow_calls(-tracker._allowed)

        def original_on_other_thread(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            allow_frames(_FRAMES_PER_CALL)
            try:
                return original(self, *args, **kwargs)
            finally:
                allow_frames(-_FRAMES_PER_CALL)

        tracker = self
        torch._dynamo.eval_frame.skip_code(call.__code__)
        return call

    def _allow_calls(self, more: int) -> None:
        """Raise the recursion limit by the frames of a number of nested calls, or lower it if negative."""
        allow_frames(more * _FRAMES_PER_CALL)
        self._allowed += more

    def _call_module(self, original: Callable[..., Any], call: _ModuleCall) -> Any:
        outer = self._function_call, self._functions_hidden
        self._function_call, self._functions_hidden = None, self._hides_functions_from(call.module)
        self._calls.append(call)
        out, returned = None, False
        try:
            if self._following:
                # A call may have weights of its own, as with `functional_call`.
                self._keep_weights(call.module, recurse=False)
            with self._function_visibility(outer[1]):
                out = original(call.module, *call.args, **call.kwargs)
            returned = True
        except Exception as error:
            self._guarded(self._note_failed, error, call)
            raise
        finally:
            self._calls.pop()
            self._function_call, self._functions_hidden = outer
            self._guarded(self._note_end, call, out, returned)
        return out

    def _guarded(self, function: Callable[..., None], *args: Any) -> None:
        try:
            function(*args)
        except Exception as error:
            self._fault(error)

    def _keep_weights(self, module: nn.Module, recurse: bool) -> None:
        self._guarded(lambda: self._keep([*module.parameters(recurse), *module.buffers(recurse)]))

    def _keep(self, tensors: Sequence[Tensor | None]) -> None:
        if threading.get_ident() == self._ident:
            with _without_functions():
                self._provenance.keep(tensors)

    def _run_ignored(self, function: Callable[[], Any]) -> Any:
        """Run a function; on this thread its operators are not the model's."""
        if threading.get_ident() != self._ident:
            return function()
        outer, self._ignored = self._ignored, True
        try:
            return function()
        finally:
            self._ignored = outer

    def _function_visibility(self, hidden: bool) -> AbstractContextManager[Any]:
        if hidden == self._functions_hidden:
            return nullcontext()
        return self._functions if hidden else _pop_mode_temporarily()

    def _hides_functions_from(self, module: nn.Module) -> bool:
        if not isinstance(module, _FAST_PATH_MODULES) or module.training:
            return False
        trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters())
        # With another innermost mode, as that of `with torch.device(...)`, the fast path is skipped in any case.
        return not trained and (self._functions_hidden or self._functions in _get_current_function_mode_stack()[-1:])

    def _note_end(self, call: _ModuleCall, out: Any, returned: bool) -> None:
        """Record a call's end: the passthroughs in its result, and no longer those of calls in its own code."""
        noted = returned and call.edge >= 0
        try:
            with _without_functions():
                if noted:
                    self._note_returned(out, call)
                aliases = list(self._aliases_in(out)) if returned and self._following else []
                through = [self._provenance.read(tensor, len(self._builder)) for tensor in aliases]
        finally:
            for storage in call.passthrough_storages:
                storage.passthroughs = [each for each in storage.passthroughs if each.scope is not call]
        # The frames above are `_guarded`, `_call_module` and the wrapper's `call`, then the code that made the call.
        caller = sys._getframe(3).f_back if aliases else None
        with _without_functions():
            for tensor, producers in zip(aliases, through, strict=True):
                self._note_passthrough(tensor, producers, call, noted, caller)

    def _aliases_in(self, out: Any) -> Iterator[Tensor]:
        """Iterate over the tensors in a call's result that may be among its arguments, each once."""
        tensors = {id(item): item for item in (out if type(out) is tuple else (out,)) if isinstance(item, Tensor)}
        for tensor in tensors.values():
            is_dense = is_plain(tensor) and tensor.layout is torch.strided and tensor.numel() > 0
            if is_dense and self._provenance.storage(tensor) is not None:
                yield tensor

    def _note_passthrough(
        self, tensor: Tensor, producers: tuple[int, ...], call: _ModuleCall, noted: bool, caller: FrameType | None
    ) -> None:
        storage = self._provenance.storage(tensor)
        assert storage is not None
        writers = self._provenance.writers(tensor, storage, len(self._builder))
        if not noted or any(number >= call.first and not self._builder.is_input(number) for number in producers):
            # Made inside the call, or a passthrough of a call inside.
            numbers = [number for number in producers if number not in writers]
        else:
            numbers = [self._add("pass", PASS, call.edge, call.mark)]
            for source in producers:
                self._builder.link(source, numbers[0], False)
            self._builder.describe(numbers[0], (tensor,), {}, tensor)
        scope = self._calls[-1] if self._calls else None
        for number in numbers:
            storage.passthroughs.append(alias_passthrough(number, writers, scope, caller, tensor))
            if scope is not None:
                scope.passthrough_storages.append(storage)

    def _note_returned(self, out: Any, call: _ModuleCall) -> None:
        for tensor in tensors_in(out):
            for number in self._provenance.read(tensor, len(self._builder)):
                if number >= call.first:
                    self._builder.mark_returned(number, call.edge)

    def _note_failed(self, error: Exception, call: _ModuleCall) -> None:
        """Record a call that raised: the function that raised in it is an operation without a result."""
        if self._failed is None or call.edge < 0:
            return
        (raised, name, sources), self._failed = self._failed, None
        if raised == id(error):
            number = self._add(name, OP, call.edge, call.mark)
            for source in sources:
                self._builder.link(source, number, False)

    def _note_arguments(self, call: _ModuleCall) -> None:
        with _without_functions():
            for name, value in named_arguments(call.module, call.args, call.kwargs):
                for path, tensor in named_tensors_in(value, name):
                    storage = self._provenance.storage(tensor)
                    if storage is not None and storage.external and not storage.spans and storage.input < 0:
                        self._note_input(tensor, storage, path)

    def _note_input(self, tensor: Tensor, storage: Storage, name: str) -> int:
        """Add an input under the name that the caller has set, else under `name`; return its number."""
        names = (known for known, value in named_inputs().items() if self._provenance.storage(value) is storage)
        name = next(names, name)
        storage.input = self._add(name, INPUT, -1, self._mark())
        self._builder.describe(storage.input, (), {}, tensor)
        return storage.input

    # Functions and operators.

    def is_blind(self) -> bool:
        """Return whether functions are no operations now: inside an operator, or in code that is not the model's."""
        return self._in_operator or self._ignored

    def call(self, function_call: _FunctionCall, runs_others: bool) -> Any:
        """Call a function as one operation.

        Args:
            function_call: the function with its arguments.
            runs_others: whether the operators inside are operations instead, as in a backward pass.
        """
        outer = self._function_call, self._functions_hidden
        self._function_call, self._functions_hidden = None if runs_others else function_call, True
        out = None
        try:
            out = function_call.func(*function_call.args, **function_call.kwargs)
            if function_call.number < 0 and type(out) is Tensor:
                self._guarded(self._note_undispatched, function_call, out)
        except Exception as error:
            if self._open and function_call.number < 0:
                self._guarded(self._fail, error, function_call)
            raise
        finally:
            self._function_call, self._functions_hidden = outer
            if function_call.number >= 0:
                self._guarded(self._close, function_call, out)
        return out

    def _fail(self, error: Exception, function_call: _FunctionCall) -> None:
        """Keep the sources of a function that raised before it ran an operator, in case its exception ends a call."""
        sources: dict[int, None] = {}
        with _without_functions():
            for tensor in tensors_in((function_call.args, function_call.kwargs)):
                storage = self._provenance.storage(tensor)
                if storage is not None and (storage.spans or storage.input >= 0):
                    sources.update(dict.fromkeys(self._provenance.read(tensor, len(self._builder))))
        self._failed = id(error), name_of(function_call.func), tuple(sources)

    def _note_undispatched(self, function_call: _FunctionCall, out: Tensor) -> None:
        """Record a function that creates a tensor without dispatch: `from_numpy`, or `tensor` on the meta device."""
        if next(tensors_in((function_call.args, function_call.kwargs)), None) is None:
            number = len(self._builder)
            if self._provenance.create(out, (number,)):
                self._begin(function_call)

    def _begin(self, function_call: _FunctionCall, call: int = -1) -> None:
        if call < 0 and self._open:
            call = self._open[-1]
        function_call.number = self._add(name_of(function_call.func), OP, call, self._mark())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and record it."""
        kwargs = kwargs or {}
        rule = rule_of(func)
        if rule.composite and all(map(is_plain, tensors_of([*args, *kwargs.values()]))):
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        before = self._edge_count
        outer, self._in_operator = self._in_operator, True
        try:
            if isinstance(func, HigherOrderOperator):
                out = run_higher_order(func, args, kwargs)
            else:
                out = self._meta.run(func, args, kwargs)
        finally:
            self._in_operator = outer
        if not (rule.view or self._ignored):
            # A collective is a call of its own, which may have ended already.
            call = self._last_other if rule.collective and self._last_other >= before else -1
            self._guarded(self._note_operator, func, rule, args, kwargs, out, call)
        return out

    def _note_operator(self, func: Any, rule: Rule, args: Any, kwargs: dict[str, Any], out: Any, call: int) -> None:
        with _without_functions():
            if self._function_call is not None:
                self._note(self._function_call, rule, args, kwargs, out, call)
                return
            # Called by code outside Python, such as a backward.
            self._function_call = function_call = _FunctionCall(func, args, kwargs)
            try:
                self._note(function_call, rule, args, kwargs, out, call)
                if function_call.number >= 0:
                    self._close(function_call, out)
            finally:
                self._function_call = None

    def _note(
        self, function_call: _FunctionCall, rule: Rule, args: Any, kwargs: dict[str, Any], out: Any, call: int
    ) -> None:
        """Record an operator.

        Args:
            function_call: the function around it.
            rule: the operator's rule.
            args: its positional arguments.
            kwargs: its keyword arguments.
            out: its result.
            call: begin edge of the operator's own call, if it is a collective; else -1.
        """
        provenance = self._provenance
        reads, writes = rule.split(args, kwargs)
        reader = function_call.number if function_call.number >= 0 else len(self._builder)
        read: dict[int, bool] = {}
        if not rule.creates:
            for tensor in reads:
                for source in provenance.read(tensor, reader):
                    read[source] = False
        if rule.copies or (rule.concatenates and sum(tensor.numel() > 0 for tensor in reads) == 1):
            for tensor in tensors_of(out):
                provenance.create(tensor, tuple(read))
            return
        for tensor in writes:
            # Looked up before `create`: a written tensor is not new, though the operator returns it.
            storage = provenance.storage(tensor)
            # State that the model keeps between runs, such as the running statistics of a norm.
            if storage is not None and storage.model_state and rule.reads_written:
                read |= dict.fromkeys(provenance.read(tensor, reader), True)
        number = len(self._builder) if function_call.number < 0 else function_call.number
        made = [provenance.create(tensor, (number,)) for tensor in tensors_of(out)]
        if not writes and not any(made):
            return  # no tensor is left of it, as of `item`
        if function_call.number < 0:
            self._begin(function_call, call)
        for tensor in writes:
            for source in provenance.write(tensor, function_call.number, rule.writes_rows):
                read.setdefault(source, True)
        for source, state in read.items():
            function_call.reads[source] = function_call.reads.get(source, True) and state
        function_call.heavy |= rule.heavy

    def _close(self, function_call: _FunctionCall, out: Any) -> None:
        number = function_call.number
        for source, state in function_call.reads.items():
            if source != number:
                self._builder.link(source, number, state)
        if out is None and function_call.args:
            out = function_call.args[0]  # `a[i] = b` returns nothing
        self._builder.describe(number, function_call.args, function_call.kwargs, out, function_call.heavy)

    def _add_external_input(self, tensor: Tensor, storage: Storage) -> int:
        """Return the operation of an external tensor; -1 for one that torch itself made, as for the 1 in `x + 1`."""
        if storage.input >= 0:
            return storage.input
        function_call = self._function_call
        if function_call is not None:
            if function_call.argument_storages is None:
                arguments = tuple(tensors_in((function_call.args, function_call.kwargs)))
                if isinstance(function_call.func, OpOverload):
                    arguments = tuple(each for each in arguments if each.dim() or each.device.type != "cpu")
                function_call.argument_storages = [self._provenance.storage(each) for each in arguments]
            if not any(storage is each for each in function_call.argument_storages):
                return -1
        number = self._note_input(tensor, storage, "input")
        if function_call is not None and function_call.number >= 0:
            self._builder.place_before(number, function_call.number)
        return number

    # Results.

    def _add(self, name: str, kind: int, call: int, mark: int) -> int:
        return self._builder.add(name, kind, call, self._last_begin, mark)

    def finish(self, calls: pd.DataFrame, edges: pd.DataFrame) -> Readings:
        """Return the data flow between calls."""
        rows = np.flatnonzero(edges["thread"].to_numpy() == self._own_thread)
        begin = edges["begin"].to_numpy()[rows]
        rows, begin = rows[begin < self._edge_count], begin[begin < self._edge_count]
        begun = np.full(self._edge_count + 1, -1)
        begun[begin] = np.arange(len(rows))
        own = calls.iloc[rows]
        flow = RepeatedFrames(self._builder, self._frames, begin, own).flow(begun, self._marks)
        return Readings(flow=renumber_calls(flow, np.arange(len(rows)), own["call"].to_numpy()))
