"""What several test files have."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import running_browser

# Before torch is imported, here and in what tests start: workers side by side whose threads wait for each other crawl.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before Triton is: without a GPU its kernels are interpreted.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, the same for all tests of a file."""
    with running_browser() as found:
        yield found


def pytest_sessionstart() -> None:
    """A shell has what it starts with `&` ignore Ctrl-C, and tests press it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
