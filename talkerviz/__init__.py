"""See what a speech talker, or any torch model, does: every module call, drawn, tabled and timed.

`record` and `recording` make a `Trace` of what a model does, `join` puts together what several runs measured and
`merge` the ranks of one, and `explore` opens a trace in a notebook, where `%load_ext talkerviz` brings `%%talkertrace`.
"""

from typing import TYPE_CHECKING, Any

from talkerviz.api import Trace, diff, record, recording
from talkerviz.notebook import explore
from talkerviz.notebook import load_ipython_extension as load_ipython_extension
from talkerviz.trace.join import join
from talkerviz.trace.merge import merge
from talkerviz.version import __version__

if TYPE_CHECKING:
    from talkerviz.recorder import Recording

__all__ = ["Recording", "Trace", "__version__", "diff", "explore", "join", "merge", "record", "recording"]


def __getattr__(name: str) -> Any:
    # Torch comes with what records, and not before: reading a trace needs none of it.
    if name != "Recording":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from talkerviz.recorder import Recording

    return Recording


def __dir__() -> list[str]:
    return sorted(__all__)
