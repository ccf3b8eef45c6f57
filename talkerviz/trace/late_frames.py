"""Frames that missed their deadline, as a flight recorder keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from talkerviz.trace.trace import TraceRecord

OUTSIDE_MODULES = "the code outside modules"


class LateFrame(NamedTuple):
    """A frame that missed its deadline.

    Attributes:
        frame: its number.
        latency_ns: time from its start to that of the next frame, or to the end of its `rec.frame()` block.
        limit_ns: the deadline, or the multiple of the median.
        module: path of the module that took most time more than usual, or `OUTSIDE_MODULES`.
        module_ns: its self time in this frame.
        usual_ns: its median self time in the other frames of the file.
        file: path of the file.
    """

    frame: int
    latency_ns: int
    limit_ns: int
    module: str
    module_ns: int
    usual_ns: int
    file: Path

    @property
    def line(self) -> str:
        """A line that says why the frame was late."""
        took, limit, module, usual = (
            f"{ns / 1e6:.1f} ms" for ns in (self.latency_ns, self.limit_ns, self.module_ns, self.usual_ns)
        )
        return (
            f"frame {self.frame} took {took}, the limit is {limit}: {self.module} took {module}, usually {usual}; "
            f"kept in {self.file}"
        )


def late_frame_of(trace: TraceRecord, file: Path) -> LateFrame:
    """Return the late frame that a file was kept for.

    Args:
        trace: the content of the file.
        file: its path.

    Raises:
        ValueError: the file was not kept for a late frame.
    """
    if "late" not in trace.facts:
        raise ValueError(f"{file}: it was not kept for a late frame")
    late = trace.facts["late"]
    return LateFrame(**{name: late[name] for name in LateFrame._fields if name != "file"}, file=file)
