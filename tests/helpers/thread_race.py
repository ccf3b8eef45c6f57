"""Threads that run side by side and switch as often as they can."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any


def race(work: Callable[[Any], object], arguments: Iterable[Any]) -> None:
    """Call a function with each of these on a thread of its own, all at the same time, until all are done."""
    threads = [threading.Thread(target=work, args=(argument,)) for argument in arguments]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
