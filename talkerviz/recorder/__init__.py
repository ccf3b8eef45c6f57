"""Run a model and record every module call as a Trace."""

from talkerviz.recorder.recorder import Recording, record, recording

__all__ = ["Recording", "record", "recording"]
