"""What torch's profiler saw, event by event, in Chrome's trace format."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.profiler import profile

LAUNCHES = ("cuda_runtime", "cuda_driver")
"""The categories of what the host asks of a device; what that runs has the same `correlation`."""

RUN_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


def run_times(events: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], float]]:
    """What ran on a device, and how long each did, in microseconds.

    What begins before the one before it in its stream has ended, as kernels launched early do, waits until then and
    counts from there.
    """
    ended: dict[tuple[object, object], float] = {}
    ran = [event for event in events if event.get("cat") in RUN_ON_DEVICE]
    for event in sorted(ran, key=lambda event: float(event["ts"]) + float(event["dur"])):
        stream = event["args"].get("device"), event["args"].get("stream")
        begin, end = float(event["ts"]), float(event["ts"]) + float(event["dur"])
        yield event, end - max(begin, ended.get(stream, begin))
        ended[stream] = end


def seen_by(profiler: profile) -> dict[str, Any]:
    """All that a profiler saw that has stopped, `traceEvents` among it; times are in microseconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.json"
        profiler.export_chrome_trace(str(path))
        seen: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return seen
