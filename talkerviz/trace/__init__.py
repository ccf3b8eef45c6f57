"""The record of a run: what every renderer reads, and the file it is kept in."""

from talkerviz.trace.schema import ModuleInfo, TensorInfo
from talkerviz.trace.trace import Trace, TraceError

__all__ = ["ModuleInfo", "TensorInfo", "Trace", "TraceError"]
