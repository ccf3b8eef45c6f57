"""One run writes to a file at a time: two would spoil it for each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def lock_file(path: Path) -> Callable[[], None]:
    """Keep other processes and recordings from writing to a file that locks it as well; gives what ends that.

    Where a system or its file system has no locks nothing is kept.

    Raises:
        OSError: it cannot be written to.
        ValueError: another has locked it.
    """
    file = path.open("ab")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f"{path}: another run is writing to it: give this one another name") from None
    except (ImportError, OSError):
        return file.close

    def unlock() -> None:
        fcntl.flock(file, fcntl.LOCK_UN)  # a process that was forked off has the file open still
        file.close()

    return unlock
