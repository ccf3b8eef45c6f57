"""Run a model and record every module call as a Trace."""

from talkerviz.recorder.record_run import record
from talkerviz.recorder.recorder import Recording, recording

__all__ = ["Recording", "record", "recording"]
