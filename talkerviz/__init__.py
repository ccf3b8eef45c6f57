"""See what a speech talker, or any torch model, does: every module call, drawn, tabled and timed."""

__version__ = "0.1.0"

from talkerviz.record import record, recording
from talkerviz.trace import Trace
from talkerviz.trace.join import join

__all__ = ["Trace", "__version__", "join", "record", "recording"]
