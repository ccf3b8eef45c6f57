"""Output of a recording: events on their way to the partial file, and the path of the finished trace."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from talkerviz.atomic_file import reason_of
from talkerviz.recorder.event_writer import EventWriter
from talkerviz.recorder.partial_file import partial_path
from talkerviz.trace.event_log import Names
from talkerviz.trace.schema import ModuleInfo


class TraceOutput:
    """File of a recording, or memory if it has none. A full disk ends the record, but not the run.

    Args:
        path: the trace file; None keeps events in memory.
        names: names that numbers in events refer to; more are appended in the run.
        parts: names of positions in containers, by name; more are added in the run.
        modules: the modules, by number.
        facts: facts known at the start.
        origin_ns: host time that counts as 0.
        timed: whether events hold times.

    Attributes:
        discards: whether events are dropped: a recording of some frames waits for the first of them.
        file: path of the trace file; None if the trace is in memory alone.
        lost: reason for which events are missing; None if there are all.
    """

    def __init__(
        self,
        path: Path | None,
        names: Names,
        parts: Mapping[str, int],
        modules: tuple[ModuleInfo, ...],
        facts: Mapping[str, Any],
        origin_ns: int,
        timed: bool,
    ) -> None:
        self.file = path and path.absolute()  # the run may change the working directory
        self.lost: str | None = None
        self.discards = False
        self._requested, self._folder = path, Path.cwd()
        self._names, self._parts = names, parts
        self._writer = EventWriter(self.file and partial_path(self.file), modules, facts, origin_ns, timed)

    def write(self, events: Any, thread: int) -> None:
        """Move a thread's events from the log to the file."""
        # Tensor rows after events: the rows that the events refer to are among them.
        batch, rows = events.take(thread), events.take_rows()
        if self.discards:
            batch = b""  # but later events refer to the same tensors
        if self.lost is not None:
            return
        self._names.parts += list(self._parts)[len(self._names.parts) :]
        try:
            self._writer.write(thread, batch, rows, self._names)
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Note the first error by which events are missing."""
        reason = reason_of(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        self.lost = self.lost or reason

    def close(self) -> Path | bytes:
        """End the partial file, and return what `read_log` reads: its path, or the content in memory."""
        return self._writer.close()

    def remove_partial(self) -> None:
        """Delete the partial file, since the trace file is written."""
        assert self._writer.path is not None
        self._writer.path.unlink()

    def release(self) -> None:
        """Unlock the partial file for other runs."""
        self._writer.release()

    def settle(self) -> None:
        """Set `file` to the file that is left, relative if it was given so, and warn if events are missing."""
        if self.lost is not None:
            self.file = self._writer.path
        requested = self._requested
        if self.file is not None and requested is not None and not requested.is_absolute():
            with suppress(OSError):  # the working directory was deleted
                if Path.cwd() == self._folder:
                    self.file = requested.with_name(self.file.name)
        if self.lost is not None:
            kept = self.file is not None and self.file.exists()
            where = f"what was recorded until then is in {self.file}" if kept else "there is no trace"
            # At the end of the caller's `with` block.
            warnings.warn(f"{requested or 'recording'}: {self.lost}; {where}", RuntimeWarning, stacklevel=5)
