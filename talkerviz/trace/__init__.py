"""Trace record of a run and its Parquet file."""

from talkerviz.trace.schema import ModuleInfo, TensorInfo
from talkerviz.trace.trace import TraceError, TraceRecord

__all__ = ["ModuleInfo", "TensorInfo", "TraceError", "TraceRecord"]
