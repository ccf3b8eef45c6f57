"""Tracer for speech talkers and any torch model: every module call, timed, in charts and tables.

`record` and `recording` make a `Trace` of a model's run, `flight_recorder` keeps the frames that were late, `join`
combines the measures of several runs and `merge` the traces of several ranks, `diff` compares two traces, and `explore`
opens one in a notebook, where `%load_ext talkerviz` adds `%%talkertrace`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from talkerviz.api import Trace, diff, flight_recorder, record, recording
from talkerviz.notebook import explore
from talkerviz.notebook import load_ipython_extension as load_ipython_extension
from talkerviz.trace.join import join
from talkerviz.version import __version__

if TYPE_CHECKING:
    from talkerviz.recorder.recording import Recording
    from talkerviz.trace.merge import merge

__all__ = [
    "Recording",
    "Trace",
    "__version__",
    "diff",
    "explore",
    "flight_recorder",
    "join",
    "merge",
    "record",
    "recording",
]


# Importing the recorder imports torch, which takes seconds; reading a trace needs neither.
_AT_FIRST_USE = {"Recording": "talkerviz.recorder.recording", "merge": "talkerviz.trace.merge"}


def __getattr__(name: str) -> Any:
    if name not in _AT_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_AT_FIRST_USE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
