"""Where the tensors of a run go: its operations, and what each read of what others made.

Three things are watched on the thread that the recording was started on. Every function of torch that Python code
calls: it is one operation, whatever it does inside. Every torch operator as it is dispatched: the tensors that it
really gets and gives. And every call of a module, outermost, around the recorder's tap. This is several times slower
than the run itself, so it is done in a run of its own, and in a loop for a few of its frames: see `FollowedFrames`.
"""

from __future__ import annotations

import inspect
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

from talkerviz.recorder.dataflow.builder import INPUT, OP, PASS, FlowNotes
from talkerviz.recorder.dataflow.followed_frames import FollowedFrames
from talkerviz.recorder.dataflow.input_names import given_arguments
from talkerviz.recorder.dataflow.meta_cache import MetaMemory
from talkerviz.recorder.dataflow.offloaded_weights import watch_moved_weights
from talkerviz.recorder.dataflow.op_rules import Rule, name_of, rule_of, tensors_of
from talkerviz.recorder.dataflow.passthrough import passed
from talkerviz.recorder.dataflow.provenance import Provenance, Storage
from talkerviz.recorder.dataflow.repeated_frames import FlowOfFrames
from talkerviz.recorder.dataflow.torch_modes import OperatorMode, Watching, is_plain, run_higher_order
from talkerviz.recorder.instruments.base import Instrument, Readings, RunContext, Undo
from talkerviz.recorder.method_patch import modules_are_hidden, step_in
from talkerviz.recorder.recursion_limit import allow_frames
from talkerviz.recorder.tensor_signatures import is_tracing, named_tensors_in, tensors_in
from talkerviz.trace.flow import renumber_calls

_without_functions = torch._C.DisableTorchFunction
# They run the backward of other functions, and modules that were checkpointed.
_FRAMES_A_CALL = 2  # between the code that makes a module's call and what was called there before
_CALLS_ALLOWED_AT_ONCE = 32  # deeper than most models nest: setting the limit takes a microsecond
_RUN_OTHERS = frozenset((Tensor.backward, torch.autograd.backward, torch.autograd.grad))
# They do not take their fast path, which calls none of the modules inside, where functions are watched.
_ASK_FOR_FUNCTIONS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


@dataclass(slots=True)
class _Group:
    """A function that is being called: all operators inside are one operation.

    Attributes:
        func, args, kwargs: the call.
        number: the operation's; -1 until something is made.
        heavy: whether one of the operators was.
        reads: the operations that it read from -> whether it only left something of what they made.
        given: the storages of its arguments, once they were needed.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    number: int = -1
    heavy: bool = False
    reads: dict[int, bool] = field(default_factory=dict)
    given: list[Storage | None] | None = None


@dataclass(slots=True)
class _Call:
    """A module's call that is going on.

    Attributes:
        module, args, kwargs: the call.
        edge: the number of its beginning among the edges of calls; -1 if it is not recorded.
        mark: the mark it began with.
        first: the first operation that can be inside.
        passed: storages of tensors that calls inside have returned as they had received them.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    edge: int = -1
    mark: int = -1
    first: int = 0
    passed: list[Storage] = field(default_factory=list)


class _Functions(TorchFunctionMode):
    """Function mode that tells the tracker of each function that Python code calls."""

    def __init__(self, tracker: FlowTracker) -> None:
        super().__init__()
        self._tracker = tracker

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function; what it runs is one operation."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        # An attribute is at most a view; what an operator calls is a part of it.
        if name in ("__get__", "__set__") or self._tracker.is_blind() or is_tracing():
            return func(*args, **kwargs)
        runs_others = name in ("backward", "grad") and func in _RUN_OTHERS
        return self._tracker.call(_Group(func, args, kwargs), runs_others)


class FlowTracker(OperatorMode, Instrument):
    """Instrument that tracks the data flow, and adds no columns."""

    def __init__(self, run: RunContext) -> None:
        super().__init__(run.fault)
        self._thread = run.thread
        self._model = run.model
        self._mark = run.mark_number
        self._marks = run.marks
        self._functions = _Functions(self)
        self._watching = Watching(self, self._functions)
        self._ident = self._own_ident = -1  # the second stays when it has stopped: calls may be inside
        self._depth = self._allowed = 0  # of calls of modules, and how deep the recursion limit lets them nest
        self._undo: list[Callable[[], None]] = []
        self._unseen = False  # whether what runs is not the model's
        self._group: _Group | None = None
        self._in_operator = False
        self._hidden = False  # whether functions are not seen: inside a function
        self._calls: list[_Call] = []
        self._edge_count = 0
        self._open: list[int] = []  # edges at which the open calls began, outermost first
        self._begun = -1  # the edge at which the last call began
        self._beside = -1  # and the last that is no module's
        self._provenance = Provenance(self._met, lambda source, target: self._notes.link(source, target, True))
        self._meta = MetaMemory()
        self._notes = FlowNotes()
        self._frames = FollowedFrames(self._notes, run.marks)
        self._following = True
        self._calls_hash = 0  # of the modules that the frame has called
        self._failed: tuple[int, str, tuple[int, ...]] | None = None  # the function that raised last, see `_fail`
        self._other_modes: tuple[list[Any], list[Any]] = [], []  # in force when following was left off

    def attach(self, undo: Undo) -> None:
        """Patch `nn.Module.__call__`, around the tap, and track this thread's tensors."""
        step_in(nn.Module, "__call__", self._wrap_call, undo)
        self._own_thread = self._thread()
        self._ident = self._own_ident = threading.get_ident()
        self._keep_weights(self._model, recurse=True)
        self._frames.begin(self._mark(), 0)
        watch_moved_weights(self._run_unseen, lambda one: self._guarded(self._keep, [one]), self._undo)
        self._watching.begin()

    def stop(self) -> None:
        """Watch no more."""
        if self._ident != -1:
            self._frames.end(self._calls_hash)
        self._ident = -1
        self._watching.end()
        while self._undo:
            self._undo.pop()()

    def stamp(self, entry: bool) -> None:
        """Count an edge of a call, and note the tensors that an outermost one gets."""
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
        # The module that was called last is the one whose call begins.
        if self._following and self._calls and (call := self._calls[-1]).edge < 0 and not is_tracing():
            if not self._open:
                self._guarded(self._note_arguments, call)
            call.edge, call.mark, call.first = edge, self._mark(), len(self._notes)
        self._open.append(edge)
        self._begun = edge

    def stamp_collective(self, entry: bool) -> None:
        """Count an entry or exit of a collective."""
        if entry and self._thread() == self._own_thread:
            self._beside = self._begun = self._edge_count
            self._open.append(self._edge_count)
            self._edge_count += 1
        else:
            self.stamp(False)

    def _begin_outermost(self, edge: int, call: _Call) -> None:
        """A call begins inside no other: the only place where a frame may begin that is followed, or not."""
        mark = self._mark()
        if self._frames.is_new(mark):
            self._frames.end(self._calls_hash)
            self._calls_hash = 0
            frame = self._frames.begin(mark, edge)
            # Whether functions are seen inside of these was settled as the call came.
            if frame.followed != self._following and not isinstance(call.module, _ASK_FOR_FUNCTIONS):
                self._follow(frame.followed)
            frame.followed = self._following
        self._calls_hash = hash((self._calls_hash, id(call.module)))

    def _follow(self, follow: bool) -> None:
        """Take the modes out of force, or put them back, where no other modes have come or gone."""
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

    # Calls of modules.

    def _wrap_call(self, below: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != tracker._ident:
                return below_on_other_thread(self, *args, **kwargs)
            tracker._depth += 1
            try:
                if tracker._depth > tracker._allowed:
                    tracker._allow_calls(_CALLS_ALLOWED_AT_ONCE)
                if is_tracing() or modules_are_hidden():
                    return below(self, *args, **kwargs)
                if tracker._calls:
                    tracker._calls_hash = hash((tracker._calls_hash, id(self)))
                    if not tracker._following:
                        return below(self, *args, **kwargs)
                return tracker._around(below, _Call(self, args, kwargs))
            finally:
                tracker._depth -= 1
                if tracker._depth == 0:
                    tracker._allow_calls(-tracker._allowed)

        def below_on_other_thread(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            allow_frames(_FRAMES_A_CALL)
            try:
                return below(self, *args, **kwargs)
            finally:
                allow_frames(-_FRAMES_A_CALL)

        tracker = self
        torch._dynamo.eval_frame.skip_code(call.__code__)
        return call

    def _allow_calls(self, more: int) -> None:
        """Raise the recursion limit by the frames of so many nested calls, or lower it if negative."""
        allow_frames(more * _FRAMES_A_CALL)
        self._allowed += more

    def _around(self, below: Callable[..., Any], call: _Call) -> Any:
        outer = self._group, self._hidden
        self._group, self._hidden = None, self._is_to_hide_from(call.module)
        self._calls.append(call)
        out, returned = None, False
        try:
            if self._following:
                # They may be others for this call, as `functional_call` has it.
                self._keep_weights(call.module, recurse=False)
            with self._functions_from(outer[1]):
                out = below(call.module, *call.args, **call.kwargs)
            returned = True
        except Exception as error:
            self._guarded(self._note_failed, error, call)
            raise
        finally:
            self._calls.pop()
            self._group, self._hidden = outer
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

    def _run_unseen(self, function: Callable[[], Any]) -> Any:
        """Run what is no operation of the model, if it runs on this thread."""
        if threading.get_ident() != self._ident:
            return function()
        outer, self._unseen = self._unseen, True
        try:
            return function()
        finally:
            self._unseen = outer

    def _functions_from(self, hidden: bool) -> AbstractContextManager[Any]:
        if hidden == self._hidden:
            return nullcontext()
        return self._functions if hidden else _pop_mode_temporarily()

    def _is_to_hide_from(self, module: nn.Module) -> bool:
        if not isinstance(module, _ASK_FOR_FUNCTIONS) or module.training:
            return False
        trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters())
        # Other modes in front, as that of `with torch.device(...)`, would be asked for as well.
        return not trained and (self._hidden or self._functions in _get_current_function_mode_stack()[-1:])

    def _note_end(self, call: _Call, out: Any, returned: bool) -> None:
        """A call is over: what it returned may be what it received; what its own code called that is forgotten."""
        noted = returned and call.edge >= 0
        try:
            with _without_functions():
                if noted:
                    self._note_returned(out, call)
                given = list(self._aliases_in(out)) if returned and self._following else []
                through = [self._provenance.read(tensor, len(self._notes)) for tensor in given]
        finally:
            for storage in call.passed:
                storage.passed = [one for one in storage.passed if one.scope is not call]
        # Above are `_guarded`, `_around` and the stand-in, and then the code that made the call.
        caller = sys._getframe(3).f_back if given else None
        with _without_functions():
            for tensor, producers in zip(given, through, strict=True):
                self._note_passed(tensor, producers, call, noted, caller)

    def _aliases_in(self, out: Any) -> Iterator[Tensor]:
        """The tensors in what a call returned that it may have received, each once."""
        tensors = {id(one): one for one in (out if type(out) is tuple else (out,)) if isinstance(one, Tensor)}
        for tensor in tensors.values():
            is_dense = is_plain(tensor) and tensor.layout is torch.strided and tensor.numel() > 0
            if is_dense and self._provenance.storage(tensor) is not None:
                yield tensor

    def _note_passed(
        self, tensor: Tensor, producers: tuple[int, ...], call: _Call, noted: bool, caller: FrameType | None
    ) -> None:
        storage = self._provenance.storage(tensor)
        assert storage is not None
        made = self._provenance.made(tensor, storage, len(self._notes))
        if not noted or any(number >= call.first and not self._notes.is_input(number) for number in producers):
            # Made inside, or passed on inside and returned from there.
            numbers = [number for number in producers if number not in made]
        else:
            numbers = [self._add("pass", PASS, call.edge, call.mark)]
            for source in producers:
                self._notes.link(source, numbers[0], False)
            self._notes.describe(numbers[0], (tensor,), {}, tensor)
        around = self._calls[-1] if self._calls else None
        for number in numbers:
            storage.passed.append(passed(number, made, around, caller, tensor))
            if around is not None:
                around.passed.append(storage)

    def _note_returned(self, out: Any, call: _Call) -> None:
        for tensor in tensors_in(out):
            for number in self._provenance.read(tensor, len(self._notes)):
                if number >= call.first:
                    self._notes.returned(number, call.edge)

    def _note_failed(self, error: Exception, call: _Call) -> None:
        """A call raised: the function that raised in it is an operation that gave nothing."""
        if self._failed is None or call.edge < 0:
            return
        (raised, name, sources), self._failed = self._failed, None
        if raised == id(error):
            number = self._add(name, OP, call.edge, call.mark)
            for source in sources:
                self._notes.link(source, number, False)

    def _note_arguments(self, call: _Call) -> None:
        with _without_functions():
            for name, value in _named(call):
                for place, tensor in named_tensors_in(value, name):
                    storage = self._provenance.storage(tensor)
                    if storage is not None and storage.foreign and not storage.spans and storage.input < 0:
                        self._note_input(tensor, storage, place)

    def _note_input(self, tensor: Tensor, storage: Storage, name: str) -> int:
        """A new input, by what the run calls it, else by the name of its place."""
        known = (one for one, value in given_arguments().items() if self._provenance.storage(value) is storage)
        name = next(known, name)
        storage.input = self._add(name, INPUT, -1, self._mark())
        self._notes.describe(storage.input, (), {}, tensor)
        return storage.input

    # Functions and operators.

    def is_blind(self) -> bool:
        """Whether functions are no operations now: what an operator calls is a part of it."""
        return self._in_operator or self._unseen

    def call(self, group: _Group, runs_others: bool) -> Any:
        """Call a function and note it; one that `runs_others` is no operation, but each operator inside is."""
        outer = self._group, self._hidden
        self._group, self._hidden = None if runs_others else group, True
        out = None
        try:
            out = group.func(*group.args, **group.kwargs)
            if group.number < 0 and type(out) is Tensor:
                self._guarded(self._note_made_out_of_sight, group, out)
        except Exception as error:
            if self._open and group.number < 0:
                self._guarded(self._fail, error, group)
            raise
        finally:
            self._group, self._hidden = outer
            if group.number >= 0:
                self._guarded(self._close, group, out)
        return out

    def _fail(self, error: Exception, group: _Group) -> None:
        """Keep what a function had read that raised before it ran an operator, in case it ends a call."""
        sources: dict[int, None] = {}
        with _without_functions():
            for tensor in tensors_in((group.args, group.kwargs)):
                storage = self._provenance.storage(tensor)
                if storage is not None and (storage.spans or storage.input >= 0):
                    sources.update(dict.fromkeys(self._provenance.read(tensor, len(self._notes))))
        self._failed = id(error), name_of(group.func), tuple(sources)

    def _note_made_out_of_sight(self, group: _Group, out: Tensor) -> None:
        """`from_numpy`, and `tensor` on the meta device, are dispatched to nobody."""
        if next(tensors_in((group.args, group.kwargs)), None) is None:
            number = len(self._notes)
            if self._provenance.make(out, (number,)):
                self._begin(group)

    def _begin(self, group: _Group, call: int = -1) -> None:
        if call < 0 and self._open:
            call = self._open[-1]
        group.number = self._add(name_of(group.func), OP, call, self._mark())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, and note it."""
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
        if not (rule.view or self._unseen):
            # A collective is a call of its own, which may be over by now.
            call = self._beside if rule.collective and self._beside >= before else -1
            self._guarded(self._note_operator, func, rule, args, kwargs, out, call)
        return out

    def _note_operator(self, func: Any, rule: Rule, args: Any, kwargs: dict[str, Any], out: Any, call: int) -> None:
        with _without_functions():
            if self._group is not None:
                self._note(self._group, rule, args, kwargs, out, call)
                return
            # Code that is not Python called it.
            self._group = group = _Group(func, args, kwargs)
            try:
                self._note(group, rule, args, kwargs, out, call)
                if group.number >= 0:
                    self._close(group, out)
            finally:
                self._group = None

    def _note(self, group: _Group, rule: Rule, args: Any, kwargs: dict[str, Any], out: Any, call: int) -> None:
        """Note an operator; `call` is the edge at which the call that it is began, if it is one, else -1."""
        provenance = self._provenance
        reads, writes = rule.split(args, kwargs)
        reader = group.number if group.number >= 0 else len(self._notes)
        read: dict[int, bool] = {}
        if not rule.creates:
            for tensor in reads:
                for source in provenance.read(tensor, reader):
                    read[source] = False
        if rule.moves or (rule.joins and sum(tensor.numel() > 0 for tensor in reads) == 1):
            for tensor in tensors_of(out):
                provenance.make(tensor, tuple(read))
            return
        for tensor in writes:
            # What is met here has not been made here, though the operator gives it back.
            storage = provenance.storage(tensor)
            # What the model keeps from run to run, as the statistics of a norm.
            if storage is not None and storage.kept and rule.reads_written:
                read |= dict.fromkeys(provenance.read(tensor, reader), True)
        number = len(self._notes) if group.number < 0 else group.number
        made = [provenance.make(tensor, (number,)) for tensor in tensors_of(out)]
        if not writes and not any(made):
            return  # nothing is left of it: `item`
        if group.number < 0:
            self._begin(group, call)
        for tensor in writes:
            for source in provenance.write(tensor, group.number, rule.rows):
                read.setdefault(source, True)
        for source, state in read.items():
            group.reads[source] = group.reads.get(source, True) and state
        group.heavy |= rule.heavy

    def _close(self, group: _Group, out: Any) -> None:
        number = group.number
        for source, state in group.reads.items():
            if source != number:
                self._notes.link(source, number, state)
        if out is None and group.args:
            out = group.args[0]  # `a[i] = b` returns nothing
        self._notes.describe(number, group.args, group.kwargs, out, group.heavy)

    def _met(self, tensor: Tensor, storage: Storage) -> int:
        """The operation that stands for a tensor from outside; -1 for one that only torch itself made, as for the 1 in
        `x + 1`."""
        if storage.input >= 0:
            return storage.input
        group = self._group
        if group is not None:
            if group.given is None:
                given = tuple(tensors_in((group.args, group.kwargs)))
                if isinstance(group.func, OpOverload):
                    given = tuple(one for one in given if one.dim() or one.device.type != "cpu")
                group.given = [self._provenance.storage(one) for one in given]
            if not any(storage is one for one in group.given):
                return -1
        number = self._note_input(tensor, storage, "input")
        if group is not None and group.number >= 0:
            self._notes.met_late(number, group.number)
        return number

    # What is noted.

    def _add(self, name: str, kind: int, call: int, mark: int) -> int:
        return self._notes.add(name, kind, call, self._begun, mark)

    def finish(self, calls: pd.DataFrame, edges: pd.DataFrame) -> Readings:
        """Return the data flow between calls."""
        rows = np.flatnonzero(edges["thread"].to_numpy() == self._own_thread)
        begin = edges["begin"].to_numpy()[rows]
        rows, begin = rows[begin < self._edge_count], begin[begin < self._edge_count]
        begun = np.full(self._edge_count + 1, -1)
        begun[begin] = np.arange(len(rows))
        own = calls.iloc[rows]
        flow = FlowOfFrames(self._notes, self._frames, begin, own).flow(begun, self._marks)
        return Readings(flow=renumber_calls(flow, np.arange(len(rows)), own["call"].to_numpy()))


def _named(call: _Call) -> Iterator[tuple[str, Any]]:
    """The arguments of a module's call, under the names that its `forward` has for them."""
    try:
        parameters = list(inspect.signature(call.module.forward).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    names = [one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    further = next((one.name for one in parameters if one.kind is one.VAR_POSITIONAL), "input")
    for place, value in enumerate(call.args):
        yield names[place] if place < len(names) else further, value
    yield from call.kwargs.items()
