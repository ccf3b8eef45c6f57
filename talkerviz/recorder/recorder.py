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
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from time import perf_counter_ns, time_ns
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from talkerviz.disk import reason_of
from talkerviz.recorder.collective_log import CollectiveLog
from talkerviz.recorder.collectives import watch_collectives
from talkerviz.recorder.cuda_clock import CudaClock
from talkerviz.recorder.flow import FlowMeter
from talkerviz.recorder.gauge import Gauge
from talkerviz.recorder.gauges import make_gauges
from talkerviz.recorder.graphs import GraphReplays
from talkerviz.recorder.host_memory import peak_bytes
from talkerviz.recorder.modules import check_model, one_call_regions, select_modules, tree_of
from talkerviz.recorder.named_phases import NamedPhases
from talkerviz.recorder.nvtx import NvtxRanges
from talkerviz.recorder.own_cost import own_cost_ns
from talkerviz.recorder.passes import PassPhases, passes_of
from talkerviz.recorder.patch import step_in
from talkerviz.recorder.phases import PhaseRule
from talkerviz.recorder.process import file_of_rank, process_facts, this_process
from talkerviz.recorder.spool import Spool
from talkerviz.recorder.tap import Tap
from talkerviz.recorder.tensors import Signatures, is_tracing, kind_of
from talkerviz.trace.frame import log_edges, log_frame, log_frames
from talkerviz.trace.log import MARK, PAUSE, Log, Mark, Names, read_log
from talkerviz.trace.parquet import check_name, write_trace
from talkerviz.trace.trace import Trace
from talkerviz.version import __version__

_BATCH = 1 << 15  # events: 16,384 calls, 768 KiB
_MOST_NS_A_BATCH = 1_000_000_000


class Recording:
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
    ) -> None:
        self._modules, self._infos = tree_of(model, name)
        self._facts = facts
        self._name = name
        passes = None if phases else passes_of(model, name)
        self._divide = phases or (lambda root: PassPhases(root, passes))
        self._phases = rule = self._divide(name)
        self._named = NamedPhases(rule.start)
        self._run = self._runs = 0  # the run that goes on, and how many began with `run`
        self._landmarks = {
            id(module): (p, _names_of_arguments(module)) for p, module in self._modules.items() if p in rule.landmarks
        }
        self._watched = watched
        self._timed, self._measure = clock != "none", measure
        self.file = path
        self.lost: str | None = None
        self._names = Names(marks=[rule.start])
        self._mark_numbers = {rule.start: 0}
        self._latest = 0
        numbered = {id(module): p for p, module in self._modules.items() if watched(p)}
        self._ranges = NvtxRanges(numbered, rule.start) if nvtx else None
        self._signatures = Signatures(self._names.tensors)
        self._lock = threading.Lock()
        self._paused_ns: Counter[int] = Counter()  # by thread
        self._process = os.getpid()
        partial = path and path.with_name(f"{path.name}.partial")
        self._origin_ns = self._written_ns = perf_counter_ns()
        self._undo: list[Callable[[], None]] = []
        self._running: list[Gauge] = []
        self._ended = False
        self._tap: Any = None
        self._collectives: CollectiveLog | None = None
        devices = {p.device.index for p in model.parameters() if p.is_cuda}
        self._gauges = make_gauges(
            clock,
            measure,
            self._thread,
            self._origin_ns,
            tuple(sorted(devices)),
            model,
            lambda: self._latest,
            self._names.marks,
        )
        cuda = next((gauge for gauge in self._gauges if isinstance(gauge, CudaClock)), None)
        self._cuda, self._graphs = cuda, GraphReplays(cuda, lambda: self._latest) if cuda else None
        if "process" in facts:
            # Times of several processes are put together by when each began, on its own clock and on all clocks.
            began = {"origin_ns": self._origin_ns, "unix_ns": time_ns() - (perf_counter_ns() - self._origin_ns)}
            self._facts = {**facts, "process": {**facts["process"], **began}}
        self._spool = Spool(partial, self._infos, self._facts, self._origin_ns, self._timed)

    @cached_property
    def trace(self) -> Trace:
        """The record, read when it is first asked for."""
        if self._undo:
            raise RuntimeError("the recording is going on: its trace is there when it has ended")
        if self.file is not None:
            return Trace.load(self.file)
        return self._measured(self._log)

    @contextmanager
    def run(self) -> Iterator[None]:
        """One of several runs in this recording: phases and frames begin anew inside, and calls have its number.

        Runs that an exception ended are listed in the fact `cut_short`: statistics over runs leave them out. When each
        run ended, and with which frame, is in the fact `run_ends`: see `end_of_run`.
        """
        self._phases, self._run = self._divide(self._name), self._runs
        self._runs += 1
        self._tap.put(MARK, self._mark(self._phases.start), 0)
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
        # On the time line of the calls, of which the recorder's own pauses are no part.
        ns = perf_counter_ns() - self._origin_ns - self._paused_ns[self._thread()]
        with self._lock:
            frames = [mark.frame for mark in self._names.marks if mark.run == self._run and mark.frame is not None]
        return {"frame": max(frames, default=None), "ns": ns}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Calls that begin inside have this phase: `with rec.phase("warmup"): ...`, or a function decorated with it.

        Frames and steps are what they would be without. Of phases inside each other the innermost holds. A thread that
        names none has, from its next pass on, that of the thread that began the recording. When the recording has ended
        it does nothing, so that what is decorated with it can still be called.

        Args:
            name: what to call the phase.

        Raises:
            ValueError: the name is empty, or cannot be printed.
        """
        if not name.strip() or not name.isprintable():
            raise ValueError(f"phase {name!r}: give it a name that can be printed, such as 'warmup'")
        names = self._named.names
        names.append(name)
        try:
            self._mark_again()
            yield
        finally:
            names.pop()
            self._mark_again()

    def _mark_again(self) -> None:
        if not self._ended:
            self._tap.put(MARK, self._mark(self._named.latest()), 0)

    def _measured(self, log: Log) -> Trace:
        calls, facts = log_frame(log), dict(self._facts)
        if not self._gauges:
            return Trace(calls, self._infos, facts)
        edges = log_edges(log)
        flow = None
        for gauge in self._gauges:
            calls = calls.assign(**gauge.measured(calls, edges))
            facts.update(gauge.facts())
            if isinstance(gauge, FlowMeter):
                flow = gauge.flow(calls, edges, self._names.marks)
        if self._measure is not None and (elsewhere := int((calls["thread"] != 0).sum())):
            facts["unwatched_calls"] = elsewhere
        if self._graphs is not None:
            calls = self._graphs.with_replays(calls, edges, self._names.marks, self._origin_ns)
            facts.update(self._graphs.facts())
        return Trace(calls, self._infos, facts, flow)

    def _thread(self) -> int:
        return int(self._tap.thread())

    def _attach(self) -> None:
        if self._ranges is not None:
            self._undo.append(self._ranges.close)
            step_in(nn.Module, "__call__", self._ranges.stand_in, self._undo)
        step_in(nn.Module, "__call__", self._make_tap, self._undo)
        step_in(nn.Module, "_replicate_for_data_parallel", self._make_replicate, self._undo)
        if "process" in self._facts:
            self._collectives = CollectiveLog(
                self._tap.put,
                self._stamp_beside,
                self._failed,
                len(self._modules),
                self._names,
                self._signatures,
                self._timed,
            )
            watch_collectives(self._collectives, self._undo)
        if self._graphs is not None:
            self._graphs.attach(self._undo)
        for gauge in self._gauges:
            if isinstance(gauge, FlowMeter):
                step_in(nn.Module, "__call__", gauge.stand_in, self._undo)
            self._running.append(gauge)
            gauge.start()

    def _make_tap(self, below: Callable[..., Any]) -> Callable[..., Any]:
        # Between the pieces of a compiled region Dynamo looks at all Python code that runs.
        not_compiled = torch.compiler.disable
        self._tap = Tap(
            tensor=Tensor,
            parameter=nn.Parameter,
            below=below,
            of_inputs=not_compiled(self._signatures.of_inputs),
            of_output=not_compiled(self._signatures.of_output),
            kind_of=not_compiled(kind_of),
            tracing=is_tracing,
            entered=not_compiled(self._entered),
            left=not_compiled(self._left),
            failed=not_compiled(self._failed),
            started=not_compiled(lambda: self._latest),
            full=not_compiled(self._write),
            stamp=not_compiled(self._stamp) if self._gauges else None,
            timed=self._timed,
            limit=_BATCH,
        )
        self._tap.thread()  # this one is number 0, whichever calls first
        for number, (path, module) in enumerate(self._modules.items()):
            landmark = id(module) in self._landmarks
            if self._watched(path):
                self._tap.watch(module, number, landmark, True)
            elif landmark:
                self._tap.watch(module, -1, True, True)
        call: Callable[..., Any] = self._tap.call
        return call

    def _stamp(self, beginning: bool) -> None:
        for gauge in self._gauges:
            gauge.stamp(beginning)

    def _stamp_beside(self, beginning: bool) -> None:
        for gauge in self._gauges:
            (gauge.stamp_beside if isinstance(gauge, FlowMeter) else gauge.stamp)(beginning)

    def _make_replicate(self, below: Callable[..., Any]) -> Callable[..., Any]:
        """DataParallel runs replicas of the modules: their calls are those of the originals."""
        numbers = {
            id(module): number for number, (path, module) in enumerate(self._modules.items()) if self._watched(path)
        }

        def replicate(module: nn.Module) -> nn.Module:
            replica: nn.Module = below(module)
            if id(module) in numbers:
                self._tap.watch(replica, numbers[id(module)], False, False)
                weakref.finalize(replica, self._tap.unwatch, id(replica)).atexit = False
                if self._ranges is not None:
                    self._ranges.copy(replica, module)
            return replica

        return replicate

    def _entered(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
        # A good moment to write: between frames, where a pause is least in the way.
        if perf_counter_ns() - self._written_ns > _MOST_NS_A_BATCH:
            self._write()
        path, names = self._landmarks[id(module)]
        named = {names[place] if place < len(names) else str(place): one for place, one in enumerate(args)}
        return self._mark(self._phases.entered(path, {**named, **kwargs}))

    def _left(self, module: nn.Module) -> int:
        return self._mark(self._phases.left(self._landmarks[id(module)][0]))

    def _mark(self, mark: Mark | None) -> int:
        if mark is None:
            return -1
        mark = self._named.named(mark)._replace(run=self._run)
        with self._lock:
            if mark not in self._mark_numbers:
                self._names.marks.append(mark)
                self._mark_numbers[mark] = len(self._names.marks) - 1
            self._latest = number = self._mark_numbers[mark]
            if self._ranges is not None:
                self._ranges.to(mark)
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

    def _write(self) -> None:
        """Write this thread's events away, and note how long that took: it is no call's time."""
        began = perf_counter_ns()
        with self._lock:
            thread = self._tap.thread()
            events = self._tap.take(thread)
            if self._ended or os.getpid() != self._process:
                return  # a thread that is still inside a call; a forked process, which shares the file
            self._keep(thread, events)
            if self._cuda is not None:
                self._cuda.harvest()
            self._written_ns = perf_counter_ns()
        if self._timed and self._collectives is not None:
            self._collectives.hold_up(began)
        elif self._timed:
            pause = perf_counter_ns() - began
            self._tap.put(PAUSE, 0, pause)
            self._paused_ns[thread] += pause

    def _keep(self, thread: int, events: bytes) -> None:
        """Write events away. A full disk ends the record, but not the run that it is of."""
        if self.lost is not None:
            return
        try:
            self._spool.write(thread, events, self._names)
        except OSError as error:
            self.lost = reason_of(error)

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

    def _finish(self) -> None:
        if os.getpid() != self._process:
            return  # as in `_write`
        try:
            with self._lock:
                self._ended = True
                if self._tap is not None:
                    for thread in range(self._tap.threads()):
                        self._keep(thread, self._tap.take(thread))
                    self._tap.close()
                written = self._spool.close()
            if self._timed and (peak := peak_bytes()) is not None:
                self._facts = {**self._facts, "host_peak_bytes": peak}
            if self.lost is None:
                self._log = read_log(written)
                if self.file is not None:
                    self._save(self.file)
        except OSError as error:
            self.lost = self.lost or reason_of(error)
        finally:
            self._spool.let_go()
        if self.lost is not None:
            wanted, self.file = self.file, self._spool.path
            said = f"{wanted}: {self.lost}; what was recorded until then is in {self.file}"
            warnings.warn(said, RuntimeWarning, stacklevel=4)

    def _save(self, file: Path) -> None:
        """Make a trace of what was written away, in its place."""
        if self._gauges:
            self._measured(self._log).save(file)
        else:
            write_trace(file, log_frames(self._log), self._infos, self._facts)
        del self._log  # which holds the file open
        assert self._spool.path is not None
        self._spool.path.unlink()


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
) -> Iterator[Recording]:
    """Record every call of the model's modules made inside the `with` block, on any thread.

    Nothing is put on the model, and `trace` holds the calls made until the end, whatever that is.

    Args:
        model: any module.
        name: the root's name in the trace; the path of every module begins with it.
        phases: makes of the root's name the rule by which one run divides into phases and frames, such as the class
            `TalkerPhases`. By default each pass is a frame, and by the positions and the cache that go into it
            `prefill`, `decode`, or without any cache `forward`: see `PassPhases`.
        clock: `cpu` for host times in nanoseconds, `cuda` for device times as well, `none` for shapes alone.
        facts: what to note of the run, JSON values; versions, device and threads are noted anyway.
        include: record only modules whose path fits one of these patterns, as in a shell; `*` crosses dots.
        exclude: nor those that fit one of these.
        depth: nor those more than so many levels below the root.
        measure: what slows the run down, so that its times say nothing: take those from another recording, and put the
            two together with `join`. `cost` counts floating-point operations and bytes of each call, on any device;
            `memory` what it allocates and `busy` how long its kernels run, on CUDA devices; `flow` follows the tensors
            from operation to operation, on the thread that begins the recording, for `Trace.flow`.
        file: keep the trace in this file; each of several processes, as `torchrun` starts them, in one with its rank in
            the name, `run.rank0.parquet` for `run.parquet`, see `Recording.file`. While the run goes on, `FILE.partial`
            beside it holds what was recorded, and `Trace.load` opens it if the process is killed; memory stays bounded.
        nvtx: mark calls and frames as NVTX ranges, for Nsight Systems: see `NvtxRanges`.

    Collectives of torch.distributed are rows as well where there are several processes, see `trace.schema.CALLS`. All
    of them should begin to record at the same place in the program: their clocks are compared then.

    Raises:
        ValueError: an unknown clock or measure, or one that is not possible here, or NVTX that is not; no module that
            fits; what is no module; a file whose name is that of another format.
        OSError: the file cannot be written to. Where its disk fills later, the run goes on without being recorded, and
            there is a RuntimeWarning at the end: `Recording.lost` says why, and `Recording.file` is what was kept.
    """
    check_model(model)
    if file is not None:
        check_name(Path(file))
    watched = select_modules(model, name, include, exclude, depth)
    process = this_process()
    rec = Recording(
        model,
        name,
        phases,
        clock,
        {
            **_facts(model, name, clock),
            **({} if process is None else {"process": process_facts(process, clock != "none")}),
            **(facts or {}),
        },
        watched,
        None if file is None else file_of_rank(Path(file), process),
        measure,
        nvtx,
    )
    try:
        rec._attach()
        yield rec
    finally:
        try:
            rec._detach()
        finally:
            rec._detach()  # what Ctrl-C may have left of it
            rec._finish()


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
    if clock != "none":
        stamped = clock == "cuda" and parameter is not None and parameter.is_cuda
        facts["own_cost_ns"] = own_cost_ns(torch.cuda.current_device() if stamped else None)
    if regions := one_call_regions(model, name):
        facts["one_call"] = regions
    if parameter is not None:
        facts["device"] = str(parameter.device)
        facts["dtype"] = str(parameter.dtype).removeprefix("torch.")
        if parameter.is_cuda:
            facts["gpu"] = torch.cuda.get_device_name(parameter.device)
    return facts
