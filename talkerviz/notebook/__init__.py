"""Traces in notebooks: display, `%%talkertrace`, and an interactive widget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from talkerviz.trace.trace import TraceRecord

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from talkerviz.notebook.explorer import Explorer


def explore(trace: TraceRecord) -> Explorer:
    """Explore a trace in a widget with its flowchart and the timeline of its frames, in Jupyter, VS Code or marimo.

    The selection is shared between the widget and Python: see `Explorer`.

    Args:
        trace: trace to explore; of several runs the mean is shown.

    Raises:
        ValueError: the notebook packages are not installed.
    """
    try:
        from talkerviz.notebook.explorer import Explorer
    except ImportError as error:
        raise ValueError(f"explore: package {error.name} is missing; pip install 'talkerviz[notebook]'") from error
    return Explorer(trace)


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register the magic `%%talkertrace`, for `%load_ext talkerviz`."""
    from talkerviz.notebook.magics import TraceMagics

    shell.register_magics(TraceMagics)
