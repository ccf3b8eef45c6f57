"""Python's recursion limit, raised by the frames that recording adds to the run's own."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress

_lock = threading.RLock()
_extra = 0
_raised: int | None = None  # what the limit was set to here


def allow_frames(frames: int) -> None:
    """Let the run go so many frames deeper, or less deep if negative.

    The limit is that of all threads. One that the run sets itself meanwhile holds from then on.

    Args:
        frames: how many of the frames on the stack from here on are the recorder's.
    """
    global _extra, _raised
    with _lock:
        limit = sys.getrecursionlimit()
        own = limit - _extra if limit == _raised else limit
        _extra += frames
        with suppress(RecursionError):  # too deep at this moment for a limit that the run has lowered
            sys.setrecursionlimit(own + _extra)
        _raised = own + _extra if _extra else None
