"""How much of the host's memory this process has held."""

from __future__ import annotations

import sys


def peak_bytes() -> int | None:
    """The greatest resident set since it began, in bytes; None on a system that does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
