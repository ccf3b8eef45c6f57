"""Traces in notebooks: how they show themselves, `%%talkertrace`, and a widget to look around in."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from talkerviz.trace.trace import TraceRecord

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from talkerviz.notebook.explorer import Explorer


def explore(trace: TraceRecord) -> Explorer:
    """Look around in a trace: its flowchart and the time line of its frames, in Jupyter, VS Code or marimo.

    What is chosen there is known here, and the other way round: see `Explorer`.

    Args:
        trace: the whole trace, or what `Trace.select` left of it. Of several runs the mean is shown.

    Raises:
        ValueError: the packages that it needs are not installed.
    """
    try:
        from talkerviz.notebook.explorer import Explorer
    except ImportError as error:
        raise ValueError(f"explore: no module {error.name}; pip install 'talkerviz[notebook]'") from error
    return Explorer(trace)


def mimebundle(
    trace: TraceRecord, include: Collection[str] | None = None, exclude: Collection[str] | None = None
) -> dict[str, str]:
    """What Jupyter shows of a trace, by MIME type: see `talkerviz.notebook.display.mimebundle`."""
    from talkerviz.notebook.display import mimebundle as bundle

    return bundle(trace, include, exclude)


def load_ipython_extension(shell: InteractiveShell) -> None:
    """What `%load_ext talkerviz` calls: there is a magic `%%talkertrace` then."""
    from talkerviz.notebook.magics import TraceMagics

    shell.register_magics(TraceMagics)
