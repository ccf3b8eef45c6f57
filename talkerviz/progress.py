"""Progress bars: for the frames of a run, and for the bytes of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def frame_progress(frames: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while frames run, where stderr is a terminal; gives the function that says how many are done."""
    console = Console(stderr=True)
    if frames is None or not console.is_terminal:
        yield lambda done: None
        return
    columns = (TextColumn("frames"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Without a thread of its own: that would take time from the calls being measured.
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("frames", total=frames)
        progress.refresh()

        def on_frame(done: int) -> None:
            progress.update(task, completed=done, refresh=True)

        yield on_frame


@contextmanager
def byte_progress(what: str, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while files are read, where stderr is a terminal; gives the function that says how far.

    That takes the bytes read and those there are. The bar begins with its first call.
    """
    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield lambda done, total: None
        return
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:

        def on_bytes(done: int, total: int) -> None:
            if not progress.tasks:
                progress.add_task(what, total=total)
            progress.update(progress.task_ids[0], completed=done)

        yield on_bytes
