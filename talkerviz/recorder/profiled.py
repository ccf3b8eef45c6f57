"""What torch's profiler saw, event by event, in Chrome's trace format."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from torch.profiler import profile

LAUNCHES = ("cuda_runtime", "cuda_driver")
"""The categories of what the host asks of a device; what that runs has the same `correlation`."""

RUN_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


def seen_by(profiler: profile) -> dict[str, Any]:
    """All that a profiler saw that has stopped, `traceEvents` among it; times are in microseconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.json"
        profiler.export_chrome_trace(str(path))
        seen: dict[str, Any] = json.loads(path.read_text())
    return seen
