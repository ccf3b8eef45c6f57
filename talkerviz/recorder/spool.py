"""Write a recording's events away while the run goes on.

Memory stays bounded, and what has been written survives whatever ends the process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa

from talkerviz.disk import named_errors
from talkerviz.recorder.partial_file import PartialFile
from talkerviz.trace.log import NAMES, Names, event_batch, header, pack_rows
from talkerviz.trace.schema import ModuleInfo

_COMPRESSED = pa.ipc.IpcWriteOptions(compression="zstd")


class Spool:
    """An append-only stream of whole batches of events; see `trace/log.py` for what is in them.

    Args:
        path: the file; None keeps the stream in memory.
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
        self._sink = pa.BufferOutputStream() if self._partial is None else pa.PythonFile(self._partial, "w")
        self._told = (0,) * len(NAMES)
        try:
            with nullcontext() if path is None else named_errors(path):
                schema = header(modules, facts, origin_ns, timed)
                self._writer = pa.ipc.new_stream(self._sink, schema, options=_COMPRESSED)
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
        self._writer.write_batch(event_batch(events), custom_metadata={"names": said, "rows": pack_rows(rows)})
        # Counted in what was said: other threads may be adding names. If Ctrl-C comes before, they are said twice.
        self._told = tuple(first + len(values) for first, values in zip(self._told, new.values(), strict=True))

    def close(self) -> Path | pa.Buffer:
        """End the stream; gives where `read_log` finds it. Until `let_go` nobody else may write there."""
        try:
            self._writer.close()
        finally:
            if self._partial is not None:
                self._partial.close()
        return self._sink.getvalue() if self.path is None else self.path

    def let_go(self) -> None:
        """Release the file to other runs."""
        if self._partial is not None:
            self._partial.release()
