"""The record of a run: what every renderer reads, and the file it is kept in."""

from talkerviz.trace.schema import ModuleInfo, TensorInfo
from talkerviz.trace.trace import TraceError, TraceRecord

__all__ = ["ModuleInfo", "TensorInfo", "TraceError", "TraceRecord"]
