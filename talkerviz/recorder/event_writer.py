"""Write a recording's events away while the run goes on.

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


class Spool:
    """An append-only file of whole batches of events; see `trace/event_log.py` for their content.

    Args:
        path: the file; None keeps the content in memory.
        modules: what modules' numbers stand for.
        facts: what is known of the run as it begins.
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
        # Unbuffered: what is written has left the process.
        self._partial = None if path is None else PartialFile(path)
        self._sink = self._partial or io.BytesIO()
        self._told = (0,) * len(NAMES)
        try:
            with nullcontext() if path is None else named_errors(path):
                self._append(header(modules, facts, origin_ns, timed))
                self.write(0, b"", b"", Names())  # the header is there from the start
        except BaseException:
            if path is not None:
                path.unlink(missing_ok=True)  # nothing is in it yet
            self.let_go()
            raise

    def write(self, thread: int, events: bytes, rows: bytes, names: Names) -> None:
        """Append a thread's events, and the descriptions and names that are new since the last batch."""
        every = [getattr(names, name) for name in NAMES]
        new = {name: values[first:] for name, values, first in zip(NAMES, every, self._told, strict=True)}
        said = json.dumps({"thread": thread, "first": self._told, **new})
        self._append(said.encode(), rows, event_columns(events))
        # Counted in what was said: other threads may be adding names. If Ctrl-C comes before, they are said twice.
        self._told = tuple(first + len(values) for first, values in zip(self._told, new.values(), strict=True))

    def _append(self, *parts: bytes) -> None:
        self._sink.write(block(self._sink.tell(), parts))

    def close(self) -> Path | bytes:
        """End the file; gives where `read_log` finds it. Until `let_go` nobody else may write there."""
        if isinstance(self._sink, io.BytesIO):
            return self._sink.getvalue()
        self._sink.close()
        assert self.path is not None
        return self.path

    def let_go(self) -> None:
        """Release the file to other runs."""
        if self._partial is not None:
            self._partial.release()
