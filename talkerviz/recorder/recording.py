"""Recording of every call of a model's modules while some code runs the model."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from functools import cached_property, partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Generic

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from talkerviz.recorder.distributed.collective_log import CollectiveLog
from talkerviz.recorder.distributed.collectives import watch_collectives
from talkerviz.recorder.distributed.process import file_of_rank, process_facts, this_process
from talkerviz.recorder.flight_recorder import Deadline, FlightRecorder
from talkerviz.recorder.forward_hooks import ForwardHooks
from talkerviz.recorder.garbage_collections import GarbageCollectionTimer
from talkerviz.recorder.instruments.base import (
    Instrument,
    RunContext,
    apply_readings,
    collective_stamps,
    implementations,
)
from talkerviz.recorder.instruments.registry import all_devices, make_instruments, model_devices
from talkerviz.recorder.method_patch import patch_method
from talkerviz.recorder.module_tree import check_model, roots_of, select_modules
from talkerviz.recorder.module_watch import ModuleWatch
from talkerviz.recorder.phases import PhaseRule
from talkerviz.recorder.phases.marking import PhaseMarker
from talkerviz.recorder.phases.several_roots import RootPhases
from talkerviz.recorder.python_events import Callbacks, Contexts
from talkerviz.recorder.run_facts import RunFacts, facts_at_start
from talkerviz.recorder.scope import RecordingScope
from talkerviz.recorder.tap import Tap, choose_way, make_events, not_compiled
from talkerviz.recorder.tensor_signatures import TensorKinds
from talkerviz.recorder.trace_output import TraceOutput
from talkerviz.recorder.training_steps import TrainingSteps
from talkerviz.trace.event_log import MARK, NAMED, NO_TENSORS, Log, Mark, Names, read_log
from talkerviz.trace.late_frames import LateFrame
from talkerviz.trace.log_tables import log_edges, log_frame
from talkerviz.trace.parquet import check_name, write_log
from talkerviz.trace.trace import RecordT, TraceRecord
from talkerviz.trace.validation import check_given_facts

_BATCH = 1 << 15  # events: 16,384 calls, 768 KiB


@dataclass(frozen=True)
class FrameRange:
    """Frames that are recorded of a run.

    Attributes:
        start: the first.
        stop: the one after the last.
        on_end: function called, in the run, when they are over.
    """

    start: int
    stop: int
    on_end: Callable[[], None]


class Recording(Generic[RecordT]):
    """A recording in progress or ended; `recording` makes one.

    Attributes:
        trace: the record; available once the recording has ended, also after an exception inside it.
        file: path of the trace file; None if the trace is in memory alone.
        lost: reason for which calls are missing, such as a full disk; None if the record is whole.
    """

    def __init__(
        self,
        roots: Mapping[str, nn.Module],
        name: str,
        finds: bool,
        phases: Callable[[str], PhaseRule] | None,
        clock: str,
        facts: Mapping[str, Any],
        selects: Callable[[str], bool],
        path: Path | None,
        measure: str | None,
        nvtx: bool,
        way: str,
        only: str | None,
        trace_class: type[RecordT],
        deadline: Deadline | None,
        frames: FrameRange | None,
        whole_process: bool,
    ) -> None:
        self._trace_class = trace_class
        self._name, self._way = name, way
        self._timed, self._measure = clock != "none", measure
        self._names = Names()
        self._parts: dict[str, int] = {}
        self._tokens: list[tuple[ContextVar[Any], Token[Any]]] = []
        self._modules = ModuleWatch(roots, selects, self._names.joined, finds)
        self._several = RootPhases(names_alone=not finds) if phases is None and (finds or len(roots) != 1) else None
        if self._several is not None:
            for root_name, root in roots.items():
                self._several.add(root_name, root)
        self._marker = PhaseMarker(
            self._modules.modules,
            name,
            phases,
            self._several,
            self._modules.paths,
            self._names.phases,
            self._tokens,
            not nvtx and deadline is None and frames is None,
        )
        model = next(iter(roots.values())) if len(roots) == 1 else nn.ModuleList(roots.values())
        self._steps: TrainingSteps | None = None
        if self._several is not None and clock != "none":
            self._steps = TrainingSteps(
                self._modules.add_row, self._marker.set_mark, lambda: self._marker.last_frame, self._guarded
            )
            self._marker.on_pass = self._steps.on_pass
        self._scope = RecordingScope(only is not None, whole_process, self._tokens)
        self._lock = threading.RLock()
        self._reported_fault = False
        self._origin_ns = perf_counter_ns()
        self._undo: list[Callable[[], None]] = []
        self._running: list[Instrument] = []
        self._ended = False
        self._phase_rows = 0
        self._events: Any = None
        self._collectives: CollectiveLog | None = None
        # Models that are yet to be found may be on any device.
        device_type, devices = all_devices() if finds and clock not in ("cpu", "none") else model_devices(model)
        run = RunContext(
            model=model,
            paths=self._modules.recorded_paths(),
            modules=tuple(self._modules.modules.values()),
            device_type=device_type,
            devices=devices,
            origin_ns=self._origin_ns,
            timed=self._timed,
            start=self._marker.start,
            marks=self._marker.marks,
            mark_number=self._marker.current_number,
            thread=self._thread,
            fault=self._report_fault,
        )
        self._instruments = make_instruments(clock, measure, nvtx, run)
        self._marker.listeners += implementations(self._instruments, "on_mark")
        self._stamps = implementations(self._instruments, "stamp")
        self._collective_stamps = collective_stamps(self._instruments)
        self._on_write = implementations(self._instruments, "on_write")
        self._facts = RunFacts(facts, self._timed)
        self._facts.add_process_start(self._origin_ns)
        self._flight = None if deadline is None else self._flight_recorder(deadline)
        self._output: TraceOutput | FlightRecorder = self._flight or TraceOutput(
            path,
            self._names,
            self._parts,
            self._modules.infos,
            self._facts.values,
            self._origin_ns,
            self._timed,
        )
        if frames is not None and isinstance(self._output, TraceOutput):
            self._output.discards = True
            self._marker.listeners.append(partial(self._limit_to, frames, self._output))

    def _limit_to(self, frames: FrameRange, output: TraceOutput, mark: Mark) -> None:
        """Keep events while the run's last frame is one of these, and tell when they are over."""
        last = self._marker.last_frame
        is_over = last is not None and last >= frames.stop
        discards = last is None or last < frames.start or is_over
        with self._lock:
            if discards == output.discards:
                return
            for thread in range(self._events.threads()):
                output.write(self._events, thread)
            output.discards = discards
        if is_over:
            frames.on_end()
            return
        # The mark itself went with the events before it.
        frame, step = (-1 if number is None else number for number in (mark.frame, mark.step))
        phase = self._marker.phase_number(mark.phase)
        self._events.put(MARK, phase, self._stamped_now(), (frame + 1) << 24 | (step + 1))

    def _flight_recorder(self, deadline: Deadline) -> FlightRecorder:
        flight = FlightRecorder(
            deadline,
            self._names,
            self._parts,
            self._modules.infos,
            lambda: self._facts.values,
            self._origin_ns,
            self._final_log,
        )
        self._marker.listeners.append(lambda mark: flight.on_mark(mark, self._marker.phase_number(mark.phase)))
        return flight

    @property
    def late(self) -> list[LateFrame]:
        """Frames that missed their deadline so far, of a flight recorder."""
        return [] if self._flight is None else list(self._flight.late)

    @property
    def file(self) -> Path | None:
        """Path of the trace file; None if the trace is in memory alone."""
        return self._output.file

    @property
    def lost(self) -> str | None:
        """Reason for which calls are missing, such as a full disk; None if the record is whole."""
        return self._output.lost

    @property
    def passed_over(self) -> dict[str, str]:
        """Classes of models that were called and not recorded, by name, where models are found in the run."""
        return self._modules.passed_over

    @cached_property
    def trace(self) -> RecordT:
        """The record, read at the first access."""
        if self._undo:
            raise RuntimeError("the recording is going on: its trace is there when it has ended")
        if self.file is not None:
            return self._trace_class.load(self.file)
        return self._measured(self._log)

    @contextmanager
    def run(self) -> Iterator[None]:
        """Record the block as one of several runs: its phases and frames begin anew, and its calls have its number.

        Runs that an exception ended are listed in the fact `cut_short`: statistics over runs leave them out. The end of
        each run, with its last frame, is in the fact `run_ends`.
        """
        number = self._marker.begin_run()
        try:
            yield
            end = self._marker.frame_at_end(), self._now()
        except BaseException:
            self._facts.add_failed_run(number)
            raise
        self._facts.add_run_end(*end)

    def _now(self) -> int:
        # On the time line of the calls, which leaves out the recorder's own time.
        own = 0 if self._collectives is not None else self._events.own_ns()
        return int(perf_counter_ns() - self._origin_ns - own)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Give this phase to calls that begin inside: `with rec.phase("warmup"): ...`, or decorate a function with it.

        Frames and steps stay as they are. A block without calls is a row of its name. Of nested phases the innermost
        counts. An asyncio task has its own phase, as has a generator; a thread that sets none has that of the thread
        that began the recording. Once the recording has ended it does nothing, so that a decorated function can still
        be called.

        Args:
            name: name of the phase.

        Raises:
            ValueError: the name is empty, or cannot be printed.
        """
        if not name.strip() or not name.isprintable():
            raise ValueError(f"phase {name!r}: give it a name that can be printed, such as 'warmup'")
        number = self._marker.phase_number(name)
        began, before = perf_counter_ns(), self._rows_so_far()
        with self._marker.blocks.block(number):
            yield
        if not self._ended and self._rows_so_far() == before:
            self._guarded(self._log_phase)(name, number, began)

    def _rows_so_far(self) -> int:
        return 0 if self._ended else int(self._events.totals()[0]) + self._phase_rows

    def _log_phase(self, name: str, number: int, began_ns: int) -> None:
        """Log a named phase in which nothing was called as a row."""
        self._phase_rows += 1
        row = self._modules.add_row(name)
        *_, named = self._events.latest()
        self._events.put(NAMED, number, self._stamped_now(), 0)
        for event, time_ns in ((row, began_ns), (-1 - row, perf_counter_ns())):
            self._stamp_collective(event >= 0)
            self._events.put(event, NO_TENSORS, time_ns if self._timed else -1, 0)
        self._events.put(NAMED, named, self._stamped_now(), 0)

    def _stamped_now(self) -> int:
        return perf_counter_ns() if self._timed else -1

    @contextmanager
    def frame(self) -> Iterator[int]:
        """Make the block a frame: its calls have the next frame's number, whichever models are called.

        From the first such block on, calls outside of them belong to no frame. The number is what the block is given:
        `with rec.frame() as number`.
        """
        if self._ended:
            yield -1
            return
        self._modules.follow_marks(self._marker.end_counting())
        with self._marker.user_frame() as number:
            yield number

    def _measured(self, log: Log) -> RecordT:
        calls, collections = log_frame(log)
        facts, flow = dict(self._facts.values), None
        if self._has_readings():
            elsewhere = int((calls["thread"] != 0).sum())
            calls, read, flow = apply_readings(self._instruments, calls, log_edges(log))
            facts.update(read)
            if self._measure is not None and elsewhere:
                facts["unwatched_calls"] = elsewhere
        return self._trace_class(calls, self._modules.infos, facts, flow, collections)

    def _has_readings(self) -> bool:
        return any(implementations(self._instruments, name) for name in ("finish", "add_calls"))

    def _thread(self) -> int:
        return int(self._events.thread())

    # Beginning to record.

    def _attach(self) -> None:
        self._attach_instruments(inside_tap=True)
        if self._way == "tap":
            patch_method(nn.Module, "__call__", self._make_tap, self._undo)
            patch_method(nn.Module, "_replicate_for_data_parallel", self._modules.wrap_replicate, self._undo)
        else:
            self._make_events(None)
            hooks = ForwardHooks(
                *(not_compiled(log) for log in (self._events.begin, self._events.end, self._events.fail))
            )
            self._undo.append(hooks.remove)
            self._modules.add_hooks(hooks)
            if self._modules.finds:
                self._modules.find_with_hooks(self._guarded, self._undo)
        patch_method(BaseProcess, "start", self._scope.wrap_process_start, self._undo)
        self._undo.append(self._reset_contexts)
        registered = self._guarded(self._modules.on_registration)
        self._undo.append(register_module_module_registration_hook(registered).remove)
        if self._timed:
            watch = GarbageCollectionTimer(self._events.garbage)
            self._undo.append(watch.stop)
            watch.start()
        if "process" in self._facts.values:
            self._collectives = CollectiveLog(
                self._events, self._stamp_collective, self._error_number, self._names.peers, self._timed
            )
            watch_collectives(self._collectives, self._undo)
        if self._steps is not None:
            self._steps.attach(self._events, self._stamp_collective, bool(self._collective_stamps), self._undo)
        self._attach_instruments(inside_tap=False)
        self._scope.attach(self._events, self._undo)
        self._facts.add_process_hooked(perf_counter_ns() - self._origin_ns)

    def _attach_instruments(self, inside_tap: bool) -> None:
        for instrument in self._instruments:
            if instrument.inside_tap is inside_tap:
                self._running.append(instrument)
                instrument.attach(self._undo)

    def _reset_contexts(self) -> None:
        """Reset variables in the context that the recording began in."""
        while self._tokens:
            variable, token = self._tokens.pop()
            with suppress(ValueError, RuntimeError):  # it ends in another context
                variable.reset(token)

    def _make_tap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        self._make_events(original)
        call: Callable[..., Any] = self._events.call
        return call

    def _make_events(self, original: Callable[..., Any] | None) -> None:
        stamp = self._stamps[0] if len(self._stamps) == 1 else self._stamp
        self._events = make_events(
            Tap,
            original,
            self._parts,
            TensorKinds(self._names.kinds),
            Callbacks(
                entered=self._guarded(self._marker.entered),
                left=self._guarded(self._marker.left),
                failed=self._error_number,
                joins=self._scope.joins,
                full=self._write,
                stranger=self._guarded(self._modules.on_unwatched),
                moved=self._guarded(self._marker.moved),
                stamp=self._guarded(stamp) if self._stamps else None,
                edge=self._guarded(self._steps.edge) if self._steps else None,
            ),
            Contexts(self._marker.blocks.of_context, self._marker.placed, self._scope.here),
            start=self._marker.phase_number(self._marker.start.phase),
            frame=self._marker.phase_number("forward"),
            timed=self._timed,
            limit=_BATCH,
            device_stamps=next(
                (each.device_stamps for each in self._instruments if each.device_stamps is not None), None
            ),
            roots=self._modules.finds,
        )
        self._thread()  # this thread is number 0, whichever calls first
        self._marker.attach(self._events)
        if self._flight is not None:
            self._flight.attach(self._events)
        self._modules.attach(self._events, self._marker, implementations(self._instruments, "on_replica"))

    # While the run goes on. A fault of the recorder is a warning and an empty cell, never an exception in the run.

    def _guarded(self, function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            try:
                function(*args)
            except Exception as error:
                self._report_fault(error)

        return call

    def _report_fault(self, error: Exception) -> None:
        if not self._reported_fault:
            self._reported_fault = True
            message = f"the recorder failed ({type(error).__name__}: {error}); parts of the record are empty"
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    def _stamp(self, entry: bool) -> None:
        for stamp in self._stamps:
            stamp(entry)

    def _stamp_collective(self, entry: bool) -> None:
        for stamp in self._collective_stamps:
            stamp(entry)

    def _error_number(self, error: type[BaseException]) -> int:
        name = error.__name__
        if name == "_StopRecomputationError":  # ends a recomputation of gradient checkpointing that has all it needs
            return 0
        with self._lock:
            errors = self._names.errors
            if name not in errors:
                errors.append(name)
            return -1 - errors.index(name)

    def _write(self) -> bool:
        """Write this thread's events to disk, and return whether the time it took is logged already."""
        began = perf_counter_ns()
        if self._scope.is_forked():  # the file, and whoever holds the lock, belong to the other process
            self._events.take(self._events.thread())
            return True
        with self._lock:
            if self._ended:
                return True  # a thread that is still inside a call
            self._output.write(self._events, self._events.thread())
            for on_write in self._on_write:
                on_write()
        if self._timed and self._collectives is not None:
            self._collectives.log_pause(began)
        return self._collectives is not None

    # Ending it.

    def _detach(self) -> None:
        while self._undo:
            self._undo[-1]()
            self._undo.pop()
        for instrument in list(self._running):
            try:
                instrument.stop()
            except Exception as error:  # a failed device cannot be read, but the calls are kept
                self._instruments.remove(instrument)
                self._facts.add(unmeasured=" ".join(str(error).split()))
            self._running.remove(instrument)

    def _finish(self, raised: bool) -> None:
        """Make a trace of what was recorded. A failure is a warning, and does not mask the run's exception.

        Args:
            raised: whether the run raised.
        """
        if self._scope.is_forked():
            return  # as in `_write`
        try:
            with self._lock:
                if self._events is not None and not self._ended:
                    for thread in range(self._events.threads()):
                        self._output.write(self._events, thread)
                    self._events.close()
                    self._add_facts_at_end(raised)
                self._ended = True
                self._marker.close()
                self._scope.close()
                written = self._output.close()
            if self.lost is None:
                # Classes and sizes of modules are those at the end.
                self._log = replace(self._final_log(read_log(written)), modules=self._modules.infos)
                if self.file is not None:
                    self._save(self.file)
        except Exception as error:
            self._output.fail(error)
        finally:
            self._output.release()
            self._modules.release()
        self._output.settle()

    def _final_log(self, log: Log) -> Log:
        if self._several is None:
            return log
        trains = self._steps is not None and self._steps.began
        return self._several.final_log(log, trains, self._marker.has_user_frames)

    def _add_facts_at_end(self, raised: bool) -> None:
        self._modules.close()
        calls, own_ns, of_other_threads, unwatched = self._events.totals()
        self._facts.add_cost(calls, own_ns if self._way == "tap" else None)
        self._facts.add(**self._modules.facts(unwatched))
        if self._modules.compiled:
            regions = dict.fromkeys(self._modules.compiled, "compiled")
            self._facts.add(one_call={**self._facts.values.get("one_call", {}), **regions})
        if of_other_threads:
            self._facts.add(calls_of_other_threads=of_other_threads)
        if self._scope.processes:
            self._facts.add(processes_begun=self._scope.processes)
        if self._modules.finds:
            self._facts.add(**self._modules.found_facts(self._several.main_root() if self._several else None))
        elif not calls and not raised and not of_other_threads:
            why = "it was not called, or in a function that is compiled as a whole"
            message = f"no call of {self._name!r} ({self._facts.values.get('model')}) was recorded: {why}"
            warnings.warn(message, RuntimeWarning, stacklevel=5)

    def _save(self, file: Path) -> None:
        """Write the trace file in the place of the partial one."""
        if self._has_readings():
            self._measured(self._log).save(file)
        else:
            write_log(file, self._log, self._modules.infos, self._facts.values)
        del self._log  # it holds the partial file open
        self._output.remove_partial()


@contextmanager
def recording(
    model: nn.Module | Mapping[str, nn.Module] | None = None,
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
    deadline: Deadline | None = None,
    frames: FrameRange | None = None,
    whole_process: bool = False,
) -> Iterator[Recording[RecordT]]:
    """Record every call of the model's modules made inside the `with` block: see `talkerviz.recording`.

    Beside its arguments this has `trace_class`, the class of `Recording.trace`; `deadline`, with which the last frames
    alone are kept, and files of late ones; `frames`, to which it is limited; and `whole_process`: whether it has the
    calls of all threads whichever begins it.
    """
    if model is not None:
        check_model(model)
    if phases is not None and not isinstance(model, nn.Module):
        raise ValueError("phases: only for a single model; each of several has phases of its own")
    if file is not None:
        check_name(Path(file))
    if only not in (None, "here"):
        raise ValueError(f"unknown only {only!r}: 'here' records the calls of this thread or task alone")
    check_given_facts(facts or {})
    way = choose_way(via)
    if nvtx and way == "hooks":
        raise ValueError("nvtx: ranges stand around `nn.Module.__call__`, and hooks run inside it; use via 'tap'")
    roots = roots_of(model, name)
    name = next(iter(roots), name)
    selects = select_modules(roots, include, exclude, depth)
    process = this_process()
    start_facts = {
        **facts_at_start(roots, name, clock),
        "via": way,
        **({} if process is None else {"process": process_facts(process, clock != "none")}),
        **(facts or {}),
    }
    path = None if file is None else file_of_rank(Path(file), process)
    rec = Recording(
        roots,
        name,
        model is None,
        phases,
        clock,
        start_facts,
        selects,
        path,
        measure,
        nvtx,
        way,
        only,
        trace_class,
        deadline,
        frames,
        whole_process,
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
            rec._detach()  # the rest, if Ctrl-C interrupted it
            rec._finish(raised)
