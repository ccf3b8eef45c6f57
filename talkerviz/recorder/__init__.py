"""Run a model and record every module call as a Trace."""

from talkerviz.recorder.record import record
from talkerviz.recorder.recording import Recording, recording

__all__ = ["Recording", "record", "recording"]
