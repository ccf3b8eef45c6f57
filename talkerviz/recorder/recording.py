"""Record every call of a model's modules while some code runs it."""

from __future__ import annotations

import datetime
import inspect
import os
import platform
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from dataclasses import replace
from functools import cached_property
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import perf_counter_ns, time_ns
from typing import Any, Generic

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parameter import is_lazy

from talkerviz.atomic_file import reason_of
from talkerviz.recorder.dataflow.offloaded_weights import parameter_devices
from talkerviz.recorder.dataflow.tracker import FlowTracker
from talkerviz.recorder.distributed.collective_log import CollectiveLog
from talkerviz.recorder.distributed.collectives import watch_collectives
from talkerviz.recorder.distributed.process import file_of_rank, process_facts, this_process
from talkerviz.recorder.event_writer import EventWriter
from talkerviz.recorder.forward_hooks import ForwardHooks
from talkerviz.recorder.garbage_collections import GarbageCollectionTimer
from talkerviz.recorder.instruments.base import Gauge
from talkerviz.recorder.instruments.cuda_clock import CudaClock
from talkerviz.recorder.instruments.cuda_graph_clock import GraphReplays
from talkerviz.recorder.instruments.memory import peak_bytes
from talkerviz.recorder.instruments.nvtx import NvtxRanges
from talkerviz.recorder.instruments.registry import cuda_devices, make_gauges
from talkerviz.recorder.method_patch import patch_method
from talkerviz.recorder.module_tree import (
    check_model,
    info_of,
    layers_of,
    one_call_regions,
    select_modules,
    takes_hooks,
    tree_of,
)
from talkerviz.recorder.partial_file import partial_path
from talkerviz.recorder.phases.generic import PassPhases, passes_of
from talkerviz.recorder.phases.talker import PhaseRule
from talkerviz.recorder.phases.user_defined import NO_PHASE, PhaseBlocks
from talkerviz.recorder.python_events import (
    EXCLUDED,
    FRAME_LANDMARK,
    JOINS,
    JOINS_OTHERS,
    LANDMARK_ONLY,
    NO_LANDMARK,
    NOT_RECORDED,
    PASS_LANDMARK,
    RULE_LANDMARK,
    Callbacks,
    Contexts,
)
from talkerviz.recorder.tap import Tap, choose_way, make_events, not_compiled
from talkerviz.recorder.tensor_signatures import TensorKinds
from talkerviz.trace.calls_table import log_edges, log_frame
from talkerviz.trace.event_log import Log, Mark, Names, read_log
from talkerviz.trace.parquet import check_name, write_log
from talkerviz.trace.trace import RecordT, TraceRecord
from talkerviz.trace.validation import check_given_facts
from talkerviz.version import __version__

_BATCH = 1 << 15  # events: 16,384 calls, 768 KiB
_CALLS_THAT_TELL = 100  # what a call costs: the first ones, of which all is new, cost many times more
# By identity. A dictionary's values are copied in one step, so other threads may begin and end recordings meanwhile.
_going_on: dict[int, Recording[Any]] = {}


def _note_fork() -> None:
    for recording in list(_going_on.values()):
        recording._processes += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_note_fork)


class Recording(Generic[RecordT]):
    """A recording that is going on or has ended; made by `recording`.

    Attributes:
        trace: the record. There once the recording has ended, also when the code inside it raised.
        file: where it is kept; None where only `trace` has it.
        lost: where not all of it could be written away, and so calls are missing, why; else None.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        phases: Callable[[str], PhaseRule] | None,
        clock: str,
        facts: Mapping[str, Any],
        watched: Callable[[str], bool],
        path: Path | None,
        measure: str | None,
        nvtx: bool,
        way: str,
        only: str | None,
        trace_class: type[RecordT],
    ) -> None:
        self._trace_class = trace_class
        self._modules, self._infos = tree_of(model, name)
        self._paths = {id(module): path for path, module in self._modules.items()}
        self._numbered = [(path, module) for path, module in self._modules.items()]
        self._facts = facts
        self._name = name
        self._way = way
        passes = None if phases else passes_of(model, name)
        self._divide = phases or (lambda root: PassPhases(root, passes))
        self._rule = self._divide(name)
        # Where each pass is a frame and nothing else tells phases, frames are counted without asking Python.
        self._counts_frames = phases is None and not nvtx and PassPhases(name, passes).is_plain(model)
        self._arguments = {
            id(module): _names_of_arguments(module) for p, module in self._modules.items() if p in self._rule.landmarks
        }
        self._run = self._runs = 0  # the run that goes on, and how many began with `run`
        self._last_frame: int | None = None
        self._watched = watched
        self._timed, self._measure = clock != "none", measure
        self.file = path and path.absolute()  # the run may change the working directory
        self._given = path
        self._folder = Path.cwd()
        self.lost: str | None = None
        self._names = Names()
        self._parts: dict[str, int] = {}
        self._phase_numbers: dict[str, int] = {}
        self._blocks = PhaseBlocks(self._phase_changed)
        self._first_thread, self._first_named = threading.get_ident(), NO_PHASE
        # What calls belong to goes with the context that made the last pass: that of a thread, or of a task.
        self._placed: ContextVar[Mark | None] = ContextVar("placed", default=None)
        self._here: ContextVar[bool] | None = ContextVar("here", default=False) if only else None
        self._of_thread = threading.local()
        self._tokens: list[tuple[ContextVar[Any], Token[Any]]] = []
        self._marks: list[Mark] = []
        self._mark_numbers: dict[Mark, int] = {}
        numbered = {id(module): p for p, module in self._modules.items() if watched(p)}
        self._ranges = NvtxRanges(numbered, self._rule.start) if nvtx else None
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._processes = 0  # that were forked or started in the run
        self._earlier_threads = _threads_of_others()
        self._strangers: Counter[str] = Counter()
        self._said_fault = False
        partial = self.file and partial_path(self.file)
        self._origin_ns = perf_counter_ns()
        self._undo: list[Callable[[], None]] = []
        self._running: list[Gauge] = []
        self._ended = False
        self._events: Any = None
        self._hooks: ForwardHooks | None = None
        self._collectives: CollectiveLog | None = None
        self._gauges = make_gauges(
            clock,
            measure,
            self._thread,
            self._origin_ns,
            cuda_devices(model),
            model,
            self._mark_number,
            self._marks,
            self._say_fault,
        )
        cuda = next((gauge for gauge in self._gauges if isinstance(gauge, CudaClock)), None)
        self._cuda, self._graphs = cuda, GraphReplays(cuda, self._mark_number) if cuda else None
        if "process" in facts:
            # Times of several processes are put together by when each began, on its own clock and on all clocks.
            began = {"origin_ns": self._origin_ns, "unix_ns": time_ns() - (perf_counter_ns() - self._origin_ns)}
            self._facts = {**facts, "process": {**facts["process"], **began}}
        self._spool = EventWriter(partial, self._infos, self._facts, self._origin_ns, self._timed)

    @cached_property
    def trace(self) -> RecordT:
        """The record, read when it is first asked for."""
        if self._undo:
            raise RuntimeError("the recording is going on: its trace is there when it has ended")
        if self.file is not None:
            return self._trace_class.load(self.file)
        return self._measured(self._log)

    @contextmanager
    def run(self) -> Iterator[None]:
        """One of several runs in this recording: phases and frames begin anew inside, and calls have its number.

        Runs that an exception ended are listed in the fact `cut_short`: statistics over runs leave them out. When each
        run ended, and with which frame, is in the fact `run_ends`: see `end_of_run`.
        """
        self._rule, self._run, self._last_frame = self._divide(self._name), self._runs, None
        self._runs += 1
        self._events.begin_run(self._run, self._phase_number(self._rule.start.phase))
        if self._ranges is not None:
            self._ranges.to(self._mark())
        end = None
        try:
            yield
            end = self._end_of_run()
        except BaseException:
            self._facts = {**self._facts, "cut_short": [*self._facts.get("cut_short", ()), self._run]}
            raise
        finally:
            if self._timed:
                self._facts = {**self._facts, "run_ends": [*self._facts.get("run_ends", ()), end]}

    def _end_of_run(self) -> dict[str, int | None]:
        # On the time line of the calls, of which what the recorder takes is no part.
        own = 0 if self._collectives is not None else self._events.own_ns()
        ns = perf_counter_ns() - self._origin_ns - own
        frames = self._events.frames()
        return {"frame": frames - 1 if self._counts_frames and frames else self._last_frame, "ns": ns}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Calls that begin inside have this phase: `with rec.phase("warmup"): ...`, or a function decorated with it.

        Frames and steps are what they would be without. Of phases inside each other the innermost holds. A task of
        asyncio has its own, as has a generator; a thread that names none has that of the thread that began the
        recording. When the recording has ended it does nothing, so that what is decorated with it can still be called.

        Args:
            name: what to call the phase.

        Raises:
            ValueError: the name is empty, or cannot be printed.
        """
        if not name.strip() or not name.isprintable():
            raise ValueError(f"phase {name!r}: give it a name that can be printed, such as 'warmup'")
        with self._blocks.block(self._phase_number(name)):
            yield

    def _phase_changed(self, where: Callable[[], int] | None) -> None:
        if self._ended:
            return
        if threading.get_ident() == self._first_thread:
            self._first_named = self._blocks.of_context.get()
        self._events.name_phases(self._first_named, where and not_compiled(where))
        if self._ranges is not None:
            self._ranges.to(self._mark())

    def _measured(self, log: Log) -> RecordT:
        (calls, collections), facts = log_frame(log), dict(self._facts)
        if not self._gauges:
            return self._trace_class(calls, self._infos, facts, collections=collections)
        edges = log_edges(log)
        flow = None
        for gauge in self._gauges:
            calls = calls.assign(**gauge.measured(calls, edges))
            facts.update(gauge.facts())
            if isinstance(gauge, FlowTracker):
                flow = gauge.flow(calls, edges, self._marks)
        if self._measure is not None and (elsewhere := int((calls["thread"] != 0).sum())):
            facts["unwatched_calls"] = elsewhere
        if self._graphs is not None:
            calls = self._graphs.with_replays(calls, edges, self._marks, self._origin_ns)
            facts.update(self._graphs.facts())
        return self._trace_class(calls, self._infos, facts, flow, collections)

    def _thread(self) -> int:
        return int(self._events.thread())

    # Beginning to record.

    def _attach(self) -> None:
        if self._ranges is not None:
            self._undo.append(self._ranges.close)
            patch_method(nn.Module, "__call__", self._ranges.stand_in, self._undo)
        if self._way == "tap":
            patch_method(nn.Module, "__call__", self._make_tap, self._undo)
            patch_method(nn.Module, "_replicate_for_data_parallel", self._make_replicate, self._undo)
        else:
            self._make_events(None)
            told = (not_compiled(tell) for tell in (self._events.begin, self._events.end, self._events.fail))
            self._hooks = ForwardHooks(*told)
            self._undo.append(self._hooks.remove)
            self._hook_modules()
        patch_method(BaseProcess, "start", self._make_start, self._undo)
        self._undo.append(self._reset_contexts)
        if self._here is not None:
            self._tokens.append((self._here, self._here.set(True)))
        self._undo.append(register_module_module_registration_hook(self._registered).remove)
        if self._timed:
            watch = GarbageCollectionTimer(self._events.garbage)
            self._undo.append(watch.stop)
            watch.start()
        if "process" in self._facts:
            self._collectives = CollectiveLog(
                self._events, self._stamp_beside, self._failed, self._names.peers, self._timed
            )
            watch_collectives(self._collectives, self._undo)
        if self._graphs is not None:
            self._graphs.attach(self._undo)
        for gauge in self._gauges:
            if isinstance(gauge, FlowTracker):
                patch_method(nn.Module, "__call__", gauge.stand_in, self._undo)
            self._running.append(gauge)
            gauge.start()
        for other in list(_going_on.values()):
            other._exclude_thread(self._undo)
        self._undo.append(self._leave)
        _going_on[id(self)] = self

    def _leave(self) -> None:
        _going_on.pop(id(self), None)

    def _reset_contexts(self) -> None:
        """Leave nothing in the context that the recording began in."""
        while self._tokens:
            variable, token = self._tokens.pop()
            with suppress(ValueError, RuntimeError):  # it ends in another
                variable.reset(token)

    def _exclude_thread(self, undo: list[Callable[[], None]]) -> None:
        """A thread that begins a recording of its own records its calls there, and no longer here."""
        if threading.get_ident() == self._first_thread or self._ended or os.getpid() != self._process:
            return
        self._events.exclude(True)
        undo.append(lambda: None if self._ended else self._events.exclude(False))

    def _make_tap(self, below: Callable[..., Any]) -> Callable[..., Any]:
        self._make_events(below)
        call: Callable[..., Any] = self._events.call
        return call

    def _make_events(self, below: Callable[..., Any] | None) -> None:
        self._events = make_events(
            Tap,
            below,
            self._parts,
            TensorKinds(self._names.kinds),
            Callbacks(
                entered=self._guarded(self._entered),
                left=self._guarded(self._left),
                failed=self._failed,
                joins=self._joins,
                full=self._write,
                stranger=self._guarded(self._met_stranger),
                moved=self._guarded(self._moved),
                stamp=self._guarded(self._gauges[0].stamp if len(self._gauges) == 1 else self._stamp)
                if self._gauges
                else None,
            ),
            Contexts(self._blocks.of_context, self._placed, self._here),
            start=self._phase_number(self._rule.start.phase),
            frame=self._phase_number("forward"),
            timed=self._timed,
            limit=_BATCH,
        )
        self._thread()  # this one is number 0, whichever calls first
        layers = layers_of(self._modules)
        for number, (path, module) in enumerate(self._modules.items()):
            self._watch(module, path, number, layers[path])

    def _watch(self, module: nn.Module, path: str, number: int, layer: int) -> None:
        landmark = NO_LANDMARK
        if path in self._rule.landmarks:
            pass_or_rule = PASS_LANDMARK if self._rule.outermost else RULE_LANDMARK
            landmark = FRAME_LANDMARK if self._counts_frames else pass_or_rule
        if not self._watched(path):
            number = LANDMARK_ONLY if landmark != NO_LANDMARK else NOT_RECORDED
        self._events.watch(module, number, layer, landmark, True)

    def _hook_modules(self) -> None:
        assert self._hooks is not None
        # Hooks inside a compiled region would have it compiled anew; those of a scripted one are never called.
        regions = one_call_regions(self._modules[self._name], self._name)
        for path, module in self._modules.items():
            inside = any(path.startswith(f"{region}.") for region in regions)
            if not inside and (path not in regions or takes_hooks(module)):
                self._hooks.add(module)

    def _registered(self, parent: nn.Module, name: str, module: nn.Module | None) -> None:
        """A module joins another while torch's registration goes on: watch it if it joins the model."""
        try:
            around = self._paths.get(id(parent))
            if around is not None and module is not None and not self._ended:
                self._join(f"{around}.{name}", module)
        except Exception as error:
            self._say_fault(error)

    def _join(self, root: str, joined: nn.Module) -> None:
        with self._lock:
            tree, infos = tree_of(joined, root)
            around = dict(self._modules)
            around.update(tree)
            layers = layers_of(around)
            for info, (path, module) in zip(infos, tree.items(), strict=True):
                # It may be in the model already, under another name, or be compiled code of what is.
                if id(module) in self._paths or id(getattr(module, "_orig_mod", None)) in self._paths:
                    continue
                number = len(self._infos)
                self._infos = (*self._infos, info)
                self._names.joined.append(info)
                self._modules[path] = module  # in the place of one that was replaced
                self._paths[id(module)] = path
                self._numbered.append((path, module))
                self._watch(module, path, number, layers[path])
                if self._hooks is not None:
                    self._hooks.add(module)

    def _make_replicate(self, below: Callable[..., Any]) -> Callable[..., Any]:
        """DataParallel runs replicas of the modules: their calls are those of the originals."""
        numbers = {
            id(module): number for number, (path, module) in enumerate(self._modules.items()) if self._watched(path)
        }

        def replicate(module: nn.Module) -> nn.Module:
            replica: nn.Module = below(module)
            if id(module) in numbers:
                self._events.watch(replica, numbers[id(module)], -1, NO_LANDMARK, False)
                weakref.finalize(replica, self._events.unwatch, id(replica)).atexit = False
                if self._ranges is not None:
                    self._ranges.copy(replica, module)
            return replica

        return replicate

    def _make_start(self, below: Callable[..., Any]) -> Callable[..., Any]:
        """A process that is forked is counted by `_note_fork`, any other here."""

        def start(process: BaseProcess) -> Any:
            if getattr(process, "_start_method", "fork") != "fork":
                self._processes += 1
            return below(process)

        return start

    # While the run goes on. What fails here is a warning and an empty cell, never the user's run.

    def _guarded(self, function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            try:
                function(*args)
            except Exception as error:
                self._say_fault(error)

        return call

    def _say_fault(self, error: Exception) -> None:
        if not self._said_fault:
            self._said_fault = True
            said = f"the recorder failed ({type(error).__name__}: {error}); parts of the record are empty"
            warnings.warn(said, RuntimeWarning, stacklevel=2)

    def _stamp(self, beginning: bool) -> None:
        for gauge in self._gauges:
            gauge.stamp(beginning)

    def _stamp_beside(self, beginning: bool) -> None:
        for gauge in self._gauges:
            (gauge.stamp_beside if isinstance(gauge, FlowTracker) else gauge.stamp)(beginning)

    def _joins(self) -> int:
        """Whether calls of this thread belong to the recording.

        All of a program's do, but a recording that a thread of a server begins is of that thread's request: threads
        that ran before it serve others. Threads that torch begins, as autograd's, do what others gave them.
        """
        thread = threading.current_thread()
        if isinstance(thread, threading._DummyThread):
            return JOINS_OTHERS
        if self._here is not None:
            return JOINS  # contexts tell
        here = threading.get_ident()
        if any(other is not self and other._first_thread == here for other in list(_going_on.values())):
            return EXCLUDED
        return EXCLUDED if thread in self._earlier_threads else JOINS

    def _met_stranger(self, module: nn.Module, inside: bool) -> None:
        if isinstance(module, torch._dynamo.OptimizedModule) and id(module._orig_mod) in self._paths:
            self._watch_compiled(module, self._paths[id(module._orig_mod)])
        elif inside:
            self._strangers[type(module).__name__] += 1

    def _watch_compiled(self, module: nn.Module, path: str) -> None:
        """What `torch.compile` made of a module is called in its place: each is a call of that module."""
        called = getattr(getattr(module.forward, "_torchdynamo_orig_callable", None), "__func__", None)
        if called in (self._events, vars(nn.Module)["__call__"]):
            return  # it was made in this recording, and the module is called in it, by way of the tap
        with self._lock:
            number = next(number for number, (one, _) in enumerate(self._numbered) if one == path)
            self._paths[id(module)] = path
            self._arguments[id(module)] = _names_of_arguments(self._modules[path])
            self._watch(module, path, number, layers_of(self._modules)[path])
            self._facts = {**self._facts, "one_call": {**self._facts.get("one_call", {}), path: "compiled"}}

    def _entered(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        names = self._arguments.get(id(module))
        if names is None or self._ended:
            return  # a thread that is still inside a call
        if args:
            named = {names[place] if place < len(names) else str(place): value for place, value in enumerate(args)}
            kwargs = {**named, **kwargs}
        self._set_mark(self._rule.entered(self._paths[id(module)], kwargs))

    def _left(self, module: nn.Module) -> None:
        path = self._paths.get(id(module))
        if path is not None and not self._ended:
            self._set_mark(self._rule.left(path))

    def _set_mark(self, mark: Mark | None) -> None:
        if mark is None:
            return
        if mark.frame is not None:
            self._last_frame = max(mark.frame, self._last_frame or 0)
        if self._placed.get() is not getattr(self._of_thread, "mark", None):
            self._events.follow_contexts()  # several take turns on this thread
        self._of_thread.mark = mark = Mark(mark.phase, mark.frame, mark.step, self._run, mark.request)
        token = self._placed.set(mark)
        if threading.get_ident() == self._first_thread and token.old_value is Token.MISSING:
            self._tokens.append((self._placed, token))
        self._log_mark(mark)

    def _moved(self, mark: Mark | None) -> None:
        """A call of another context than the one before is about to begin on this thread."""
        if not self._ended:
            self._log_mark(self._rule.start if mark is None or mark.run != self._run else mark)

    def _log_mark(self, mark: Mark) -> None:
        frame, step, request = (-1 if number is None else number for number in (mark.frame, mark.step, mark.request))
        self._events.mark(self._phase_number(mark.phase), frame, step, request)
        if self._ranges is not None:
            self._ranges.to(self._mark())

    def _mark(self) -> Mark:
        """What a call that begins now belongs to."""
        phase, frame, step, request, run, named = self._events.latest()
        phase = next(one for one in (self._blocks.find(), named, phase) if one >= 0)
        frame, step, request = (None if number < 0 else number for number in (frame, step, request))
        return Mark(self._names.phases[phase], frame, step, run, request)

    def _mark_number(self) -> int:
        """The same as a place in `_marks`."""
        mark = self._mark()
        with self._lock:
            number = self._mark_numbers.get(mark)
            if number is None:
                self._marks.append(mark)
                number = self._mark_numbers[mark] = len(self._marks) - 1
        return number

    def _phase_number(self, phase: str) -> int:
        number = self._phase_numbers.get(phase)
        if number is None:
            with self._lock:
                if phase not in self._phase_numbers:
                    self._names.phases.append(phase)
                    self._phase_numbers[phase] = len(self._names.phases) - 1
                number = self._phase_numbers[phase]
        return number

    def _failed(self, error: type[BaseException]) -> int:
        # How gradient checkpointing ends a recomputation once it has what it needs.
        name = error.__name__
        if name == "_StopRecomputationError":
            return 0
        with self._lock:
            errors = self._names.errors
            if name not in errors:
                errors.append(name)
            return -1 - errors.index(name)

    def _write(self) -> bool:
        """Write this thread's events away; whether it is logged already how long that took."""
        began = perf_counter_ns()
        if os.getpid() != self._process:  # forked: the file, and whoever holds the lock, are the other process's
            self._events.take(self._events.thread())
            return True
        with self._lock:
            if self._ended:
                return True  # a thread that is still inside a call
            self._keep(self._events.thread())
            if self._cuda is not None:
                self._cuda.harvest()
        if self._timed and self._collectives is not None:
            self._collectives.hold_up(began)
        return self._collectives is not None

    def _keep(self, thread: int) -> None:
        """Write a thread's events away. A full disk ends the record, but not the run that it is of."""
        # Rows after events: those of the events are among them.
        events, rows = self._events.take(thread), self._events.take_rows()
        if self.lost is not None:
            return
        self._names.parts += list(self._parts)[len(self._names.parts) :]
        try:
            self._spool.write(thread, events, rows, self._names)
        except Exception as error:
            self.lost = _reason(error)

    # Ending it.

    def _detach(self) -> None:
        while self._undo:
            self._undo[-1]()
            self._undo.pop()
        for gauge in list(self._running):
            try:
                gauge.stop()
                if gauge is self._cuda and self._graphs is not None:
                    self._graphs.read_last()
            except Exception as error:  # a device that has failed tells no more, but the calls are kept
                self._gauges.remove(gauge)
                self._graphs = None
                self._facts = {**self._facts, "unmeasured": " ".join(str(error).split())}
            self._running.remove(gauge)

    def _finish(self, raised: bool) -> None:
        """Make a trace of what was recorded. What fails here is said, and hides nothing that the run raised."""
        if os.getpid() != self._process:
            return  # as in `_write`
        try:
            with self._lock:
                if self._events is not None and not self._ended:
                    for thread in range(self._events.threads()):
                        self._keep(thread)
                    self._events.close()
                    self._facts = {**self._facts, **self._facts_of_run(raised)}
                self._ended = True
                written = self._spool.close()
            if self.lost is None:
                # Classes and sizes are those that modules have now.
                self._log = replace(read_log(written), modules=self._infos)
                if self.file is not None:
                    self._save(self.file)
        except Exception as error:
            self.lost = self.lost or _reason(error)
        finally:
            self._spool.release()
            self._modules, self._paths, self._numbered = {}, {}, []
        if self.lost is not None:
            wanted, self.file = self._given, self._spool.path
        if self.file is not None and self._given is not None and not self._given.is_absolute():
            with suppress(OSError):  # of a folder that is gone
                if Path.cwd() == self._folder:
                    self.file = self._given.with_name(self.file.name)
        if self.lost is not None:
            there = self.file is not None and self.file.exists()
            where = f"what was recorded until then is in {self.file}" if there else "there is no trace"
            warnings.warn(f"{wanted or 'recording'}: {self.lost}; {where}", RuntimeWarning, stacklevel=4)

    def _facts_of_run(self, raised: bool) -> dict[str, Any]:
        """What is known of a run when it is over."""
        # A lazy module, and one that was parametrized, has become another class; parameters have sizes now.
        self._infos = tuple(
            info_of(path, module, info.aliases)
            for info, (path, module) in zip(self._infos, self._numbered, strict=True)
        )
        calls, own_ns, passed_by, strange = self._events.totals()
        facts: dict[str, Any] = {}
        if self._timed and (peak := peak_bytes()) is not None:
            facts["host_peak_bytes"] = peak
        if self._timed and self._way == "tap" and calls >= _CALLS_THAT_TELL:
            facts["own_cost_ns"] = max(1, round(own_ns / calls))
        if self._names.joined:
            facts["joined_modules"] = len(self._names.joined)
        if strange:
            facts["strange_calls"] = {"calls": strange, "classes": [name for name, _ in self._strangers.most_common(5)]}
        if passed_by:
            facts["calls_of_other_threads"] = passed_by
        if self._processes:
            facts["processes_begun"] = self._processes
        if not calls and not raised and not passed_by:
            why = "it was not called, or in a function that is compiled as a whole"
            said = f"no call of {self._name!r} ({self._facts.get('model')}) was recorded: {why}"
            warnings.warn(said, RuntimeWarning, stacklevel=5)
        return facts

    def _save(self, file: Path) -> None:
        """Make a trace of what was written away, in its place."""
        if self._gauges:
            self._measured(self._log).save(file)
        else:
            write_log(file, self._log, self._infos, self._facts)
        del self._log  # which holds the file open
        assert self._spool.path is not None
        self._spool.path.unlink()


def _reason(error: Exception) -> str:
    return reason_of(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"


def _threads_of_others() -> weakref.WeakSet[threading.Thread]:
    """Threads that serve others than the one that begins to record; none where that is the program's main thread."""
    if threading.current_thread() is threading.main_thread():
        return weakref.WeakSet()
    # What was not begun by Python's threading, as autograd's threads, runs what others give it.
    begun = (one for one in threading.enumerate() if not isinstance(one, threading._DummyThread))
    return weakref.WeakSet(one for one in begun if one is not threading.current_thread())


@contextmanager
def recording(
    model: nn.Module,
    name: str = "model",
    phases: Callable[[str], PhaseRule] | None = None,
    clock: str = "cpu",
    facts: Mapping[str, Any] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    depth: int | None = None,
    measure: str | None = None,
    file: str | Path | None = None,
    nvtx: bool = False,
    via: str = "auto",
    only: str | None = None,
    trace_class: type[RecordT] = TraceRecord,  # type: ignore[assignment]
) -> Iterator[Recording[RecordT]]:
    """Record every call of the model's modules made inside the `with` block: see `talkerviz.recording`.

    Args:
        trace_class: the class of `Recording.trace`.
    """
    check_model(model)
    if file is not None:
        check_name(Path(file))
    if only not in (None, "here"):
        raise ValueError(f"unknown only {only!r}: 'here' records the calls of this thread or task alone")
    check_given_facts(facts or {})
    way = choose_way(via)
    if nvtx and way == "hooks":
        raise ValueError("nvtx: ranges stand around `nn.Module.__call__`, and hooks run inside it; use via 'tap'")
    watched = select_modules(model, name, include, exclude, depth)
    process = this_process()
    rec = Recording(
        model,
        name,
        phases,
        clock,
        {
            **_facts(model, name, clock),
            "via": way,
            **({} if process is None else {"process": process_facts(process, clock != "none")}),
            **(facts or {}),
        },
        watched,
        None if file is None else file_of_rank(Path(file), process),
        measure,
        nvtx,
        way,
        only,
        trace_class,
    )
    raised = True
    try:
        rec._attach()
        yield rec
        raised = False
    finally:
        try:
            rec._detach()
        finally:
            rec._detach()  # what Ctrl-C may have left of it
            rec._finish(raised)


def _names_of_arguments(module: nn.Module) -> tuple[str, ...]:
    """What the arguments given by place are called, as far as that is known."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except Exception:  # a forward that is not Python's; a scripted one raises whatever it likes
        return ()
    return tuple(one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD))


def _facts(model: nn.Module, name: str, clock: str) -> dict[str, Any]:
    parameter = next(model.parameters(), None)
    facts: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "talkerviz": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "root": name,
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters() if not is_lazy(p)),
        "weights_bytes": sum(p.nbytes for p in model.parameters() if not is_lazy(p)),
        "clock": clock,
    }
    if regions := one_call_regions(model, name):
        facts["one_call"] = regions
    if parameter is not None:
        device = next(parameter_devices(model))
        facts["device"] = str(device)
        facts["dtype"] = str(parameter.dtype).removeprefix("torch.")
        if device.type == "cuda":
            facts["gpu"] = torch.cuda.get_device_name(device)
    return facts
