"""Progress bars: for the frames of a run, and for the bytes of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def frame_progress(frames: int | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar of frames, if stderr is a terminal.

    Args:
        frames: number of frames; None shows no bar.

    Yields:
        A function to call with the number of frames done.
    """
    console = Console(stderr=True)
    if frames is None or not console.is_terminal:
        yield lambda done: None
        return
    columns = (TextColumn("frames"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # No refresh thread, which would take time from the calls being measured.
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("frames", total=frames)
        progress.refresh()

        def on_frame(done: int) -> None:
            progress.update(task, completed=done, refresh=True)

        yield on_frame


@contextmanager
def byte_progress(label: str, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar of bytes, if stderr is a terminal; it appears with the first update.

    Args:
        label: text beside the bar.
        shown: whether to show the bar.

    Yields:
        A function to call with the bytes read and the total bytes.
    """
    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield lambda done, total: None
        return
    columns = (TextColumn(label), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:

        def on_bytes(done: int, total: int) -> None:
            if not progress.tasks:
                progress.add_task(label, total=total)
            progress.update(progress.task_ids[0], completed=done)

        yield on_bytes
