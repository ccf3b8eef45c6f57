"""Writer of a recording's events to disk while the run goes on.

Memory stays bounded, and what has been written survives whatever ends the process.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from talkerviz.atomic_file import named_errors
from talkerviz.recorder.partial_file import PartialFile
from talkerviz.trace.event_blocks import block
from talkerviz.trace.event_log import NAMES, Names, event_columns, header
from talkerviz.trace.schema import ModuleInfo


class EventWriter:
    """An append-only file of whole batches of events; `trace/event_log.py` describes its content.

    Args:
        path: the file; None keeps the content in memory.
        modules: the modules, in the order of their numbers in events.
        facts: facts known as the run begins.
        origin_ns: the time that counts as 0.
        timed: whether events hold times.

    Raises:
        OSError: the file cannot be written to.
        ValueError: another run is writing to it.
    """

    def __init__(
        self,
        path: Path | None,
        modules: tuple[ModuleInfo, ...],
        facts: Mapping[str, Any],
        origin_ns: int,
        timed: bool,
    ) -> None:
        self.path = path
        # Unbuffered: bytes written have left the process.
        self._partial = None if path is None else PartialFile(path)
        self._sink = self._partial or io.BytesIO()
        self._names_written = (0,) * len(NAMES)
        try:
            with nullcontext() if path is None else named_errors(path):
                self._append(header(modules, facts, origin_ns, timed))
                self.write(0, b"", b"", Names())  # the file is readable from the start
        except BaseException:
            if path is not None:
                path.unlink(missing_ok=True)  # nothing is in it yet
            self.release()
            raise

    def write(self, thread: int, events: bytes, rows: bytes, names: Names) -> None:
        """Append a thread's events, and the tensor descriptions and names that are new since the last batch."""
        lists = [getattr(names, name) for name in NAMES]
        new = {name: values[first:] for name, values, first in zip(NAMES, lists, self._names_written, strict=True)}
        batch = json.dumps({"thread": thread, "first": self._names_written, **new})
        self._append(batch.encode(), rows, event_columns(events))
        # Counted in the batch itself: other threads may be adding names. Ctrl-C before this repeats names, no harm.
        counts = zip(self._names_written, new.values(), strict=True)
        self._names_written = tuple(first + len(values) for first, values in counts)

    def _append(self, *parts: bytes) -> None:
        self._sink.write(block(self._sink.tell(), parts))

    def close(self) -> Path | bytes:
        """End the file and return what `read_log` reads: its path, or the content. The lock is held until `release`."""
        if isinstance(self._sink, io.BytesIO):
            return self._sink.getvalue()
        self._sink.close()
        assert self.path is not None
        return self.path

    def release(self) -> None:
        """Unlock the file for other runs."""
        if self._partial is not None:
            self._partial.release()
