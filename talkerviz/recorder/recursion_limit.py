"""Python's recursion limit, raised by the frames that recording adds to the run's own."""

from __future__ import annotations

import sys
import threading

_lock = threading.RLock()
_extra = 0
_own: int | None = None  # the limit that holds without a recording
_raised: int | None = None  # the limit that was set here


def allow_frames(frames: int) -> None:
    """Let the run go so many frames deeper, or less deep if negative.

    The limit is that of all threads. One that the run sets itself meanwhile holds from then on.

    Args:
        frames: how many frames of the recorder's are added to the stack, or leave it.
    """
    global _extra, _own, _raised
    with _lock:
        limit = sys.getrecursionlimit()
        if _own is None or limit != _raised:
            _own = limit
        wanted = _own + _extra + frames
        try:
            sys.setrecursionlimit(wanted)
        except RecursionError:
            if frames > 0:
                raise
            wanted = limit  # too deep at this moment for a limit that the run has lowered
        _extra += frames
        _raised = wanted
        if not _extra and wanted == _own:
            _own = None
