"""Recorder of a program that runs: when it begins and ends, the file of each recording, and their summaries."""

from __future__ import annotations

import glob
import logging
import os
import queue
import signal
import sys
import threading
import time
import warnings
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talkerviz.cli.streams import print_message

if TYPE_CHECKING:
    from talkerviz.api import Trace
    from talkerviz.recorder.recording import Recording

_logger = logging.getLogger("talkerviz")
_EXIT_BAD_INPUT = 2
_MAX_NAMES = 8  # models named in an error message
_BEGIN, _END, _SWITCH = "begin", "end", "switch"


@dataclass(frozen=True)
class RunOptions:
    """What is recorded of a program, and when.

    Attributes:
        program: its name.
        command: the command line.
        file: absolute path of the trace.
        shown: the same as it was given.
        models: patterns of names of models; all if empty.
        via: interception of calls.
        clock: clock that times calls.
        deadline_ms: latency above which a frame is late, for a flight recorder.
        frames: first frame, and the one after the last; None for all.
        after_s: seconds from the import of torch to the recording; None for at once.
        for_s: seconds that it lasts; None for up to the program's end.
        signal: name of the signal, such as `USR2`, that begins and ends recordings.
        follow: whether processes that the program starts are recorded.
    """

    program: str
    command: str
    file: str
    shown: str
    models: list[str]
    via: str
    clock: str
    deadline_ms: float | None = None
    frames: tuple[int, int | None] | None = None
    after_s: float | None = None
    for_s: float | None = None
    signal: str | None = None
    follow: bool = False


class _Lines(logging.Handler):
    """Handler that prints lines about late frames on stderr, whatever the program's own logging does."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line."""
        print_message(record.getMessage())


class ProgramRecorder:
    """Recordings of a program, from its import of torch to its end.

    Recordings that do not last from the import to the end are begun and ended on a thread of their own: a signal may
    come while the program holds locks that a recording needs.

    Args:
        options: what is recorded, and when.
        child: whether this process was started by the program; it is silent if it calls no module.
    """

    def __init__(self, options: RunOptions, child: bool = False) -> None:
        self.options, self.child = options, child
        file, shown = Path(options.file), Path(options.shown)
        if child:
            file, shown = (path.with_name(f"{path.stem}.pid{os.getpid()}{path.suffix}") for path in (file, shown))
        self._file, self._shown = file, shown
        self._lines = _Lines()
        self._context: AbstractContextManager[Recording[Trace]] | None = None
        self._recording: Recording[Trace] | None = None
        self._recordings = 0
        self._result = 0
        self._passed_over: dict[str, str] = {}
        self._called = False
        self._ended = False
        self._lock = threading.RLock()
        self._pid, self._began_s = os.getpid(), time.time()
        self._orders: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._watcher: threading.Thread | None = None
        if options.signal is not None and threading.current_thread() is threading.main_thread():
            number = signal.Signals[f"SIG{options.signal}"]
            signal.signal(number, lambda *_: self._orders.put(_SWITCH))  # safe in a handler, unlike a queue.Queue

    def start(self) -> None:
        """Begin to record, or to wait for the time to. A failure is a message: the program runs on."""
        options = self.options
        if os.getpid() != self._pid:
            return  # a fork, which is not followed
        if options.signal is None and options.after_s is None:
            self._begin()
        if options.signal is not None or options.after_s is not None or options.for_s is not None or options.frames:
            # Imported here and not on the thread, while the program imports other things.
            import talkerviz.recorder.recording  # noqa: F401

            self._watcher = threading.Thread(target=self._watch, name="talkerviz", daemon=True)
            self._watcher.start()

    def _watch(self) -> None:
        """Begin and end recordings at their times, and at the program's and the user's orders."""
        options = self.options
        times: list[tuple[float, str]] = []  # of orders to come
        now = time.monotonic()
        if options.after_s is not None:
            times.append((now + options.after_s, _BEGIN))
        elif options.for_s is not None and options.signal is None:
            times.append((now + options.for_s, _END))
        while not self._ended:
            due = min(times, default=None)
            try:
                order = self._orders.get(timeout=None if due is None else max(0.0, due[0] - time.monotonic()))
            except queue.Empty:
                assert due is not None
                times.remove(due)
                order = due[1]
            with self._lock:
                if self._ended:
                    return
                if order == _SWITCH:
                    order = _BEGIN if self._context is None else _END
                if order == _BEGIN:
                    self._begin()
                    if options.for_s is not None:
                        times.append((time.monotonic() + options.for_s, _END))
                else:
                    times.clear()
                    self._end()

    def _begin(self) -> None:
        from talkerviz.api import Trace
        from talkerviz.recorder.distributed.process import Process, process_facts, this_process
        from talkerviz.recorder.flight_recorder import deadline_of
        from talkerviz.recorder.recording import FrameRange, recording

        options = self.options
        self._recordings += 1
        facts: dict[str, Any] = {"command": options.command}
        if options.follow and this_process() is None:
            facts["process"] = {**process_facts(Process(0, 1, None), False), "pid": os.getpid()}
        frames = options.frames and FrameRange(
            options.frames[0], options.frames[1] or sys.maxsize, lambda: self._orders.put(_END)
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("default")
                deadline = None
                if options.deadline_ms is not None:
                    _logger.addHandler(self._lines)
                    _logger.propagate = False
                    deadline = deadline_of(options.deadline_ms, None, 3, self._numbered(self._file))
                context = recording(
                    name=options.program,
                    include=[pattern for name in options.models for pattern in (name, f"{name}.*")],
                    clock=options.clock,
                    facts=facts,
                    file=None if deadline else self._numbered(self._file),
                    via=options.via,
                    trace_class=Trace,
                    deadline=deadline,
                    frames=frames or None,
                    whole_process=True,
                )
                self._recording = context.__enter__()
                self._context = context
        except (OSError, ValueError) as error:
            print_message(f"the program is not recorded: {error}")
            self._result = _EXIT_BAD_INPUT

    def _numbered(self, path: Path) -> Path:
        """Return the path of the current recording: that of the second is `run.2.parquet`."""
        return path if self._recordings < 2 else path.with_name(f"{path.stem}.{self._recordings}{path.suffix}")

    def _end(self) -> None:
        """End the recording, if there is one, and print its summary on stderr."""
        context, recording, self._context = self._context, self._recording, None
        if context is None or recording is None:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            context.__exit__(None, None, None)
        _logger.removeHandler(self._lines)
        _logger.propagate = True
        self._passed_over |= recording.passed_over
        shown = self._numbered(self._shown)
        if recording.lost:
            print_message(f"{shown}: {recording.lost}; what was recorded until then is in {recording.file}")
            self._result, self._called = _EXIT_BAD_INPUT, True
            return
        trace = recording.trace
        if trace.calls.empty:
            if recording.file is not None:
                recording.file.unlink(missing_ok=True)
            return
        self._called = True
        with suppress(BrokenPipeError):  # nobody reads stderr: the exit code is the program's all the same
            self._summarise(recording, trace, shown)

    def abandon(self) -> None:
        """Undo what a recording of the process that this one was forked from has patched."""
        context, self._context, self._ended = self._context, None, True
        if context is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                context.__exit__(None, None, None)

    def finish(self) -> int:
        """End recording, and return the exit code of the recorder's own part."""
        with self._lock:
            if self._ended:
                return 0
            self._end()
            self._ended = True
        self._orders.put(_END)  # wakes the thread
        if not self._called and not self._has_children() and not self._result:
            print_message(self._why_empty())
            return _EXIT_BAD_INPUT
        return self._result

    def _has_children(self) -> bool:
        """Return whether this process is a child, or a child of it has written a trace."""
        files = self._file.parent.glob(f"{glob.escape(self._file.stem)}.pid*{self._file.suffix}")
        written = (file.stat().st_mtime for file in files)
        return self.child or (self.options.follow and any(time_s >= self._began_s - 1 for time_s in written))

    def _why_empty(self) -> str:
        program, models = self.options.program, self.options.models
        if "torch" not in sys.modules:
            return f"{program}: it never imported torch, so no module was called"
        if not self._recordings:
            waited = "no signal came" if self.options.signal else "it ended before --after"
            return f"{program}: nothing was recorded, as {waited}"
        if self._passed_over:
            seen = sorted(self._passed_over)
            names = ", ".join(seen[:_MAX_NAMES]) + (", ..." if len(seen) > _MAX_NAMES else "")
            return f"--model {' '.join(models)}: no such model; {program} called {names}"
        if self.options.frames:
            return f"{program}: it called no module in these frames"
        when = " while it was recorded" if self._watcher else ""
        return f"{program}: it called no module{when}"

    def _summarise(self, recording: Recording[Trace], trace: Trace, shown: Path) -> None:
        from talkerviz.cli.output import console, print_summary
        from talkerviz.trace.labels import format_count

        if trace.facts.get("process", {}).get("rank", 0) != 0:
            return
        terminal = console(stderr=True)
        calls = format_count(len(trace.calls), "call")
        if not self.child:
            print_summary(terminal, trace)
        if recording.file is None:  # the last frames alone are in memory
            trace.save(self._numbered(self._file))
            late = format_count(len(recording.late), "frame")
            terminal.print(f"{late} later than {self.options.deadline_ms:g} ms", highlight=False, soft_wrap=True)
            terminal.print(f"the last {calls} -> {shown}", highlight=False, soft_wrap=True)
            return
        file = shown.with_name(recording.file.name)  # each rank has a file of its own
        of = f" of process {os.getpid()}" if self.child else ""
        terminal.print(f"{calls}{of} -> {file}", highlight=False, soft_wrap=True)
