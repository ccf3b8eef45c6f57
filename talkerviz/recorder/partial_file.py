"""Unfinished file of a run, `run.parquet.partial`: locked against other runs, and never overwritten by one."""

from __future__ import annotations

import io
import itertools
import os
import stat
import warnings
from pathlib import Path

from filelock import FileLock, Timeout

from talkerviz.atomic_file import NEW_FILE_FLAGS, LeftoverWarning, is_special, named_errors, reason_of


def partial_path(file: Path) -> Path:
    """Return the path of a trace's unfinished file.

    Raises:
        ValueError: the trace's name is that of a device, FIFO or descriptor, or is not UTF-8.
    """
    if is_special(file):
        raise ValueError(f"{file}: not a regular file; record without a file, and write the trace with Trace.save")
    try:
        str(file).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{file}: the name is not UTF-8, which pyarrow requires; choose another name") from None
    return file.with_name(f"{file.name}.partial")


class PartialFile(io.FileIO):
    """A new unfinished file, unbuffered and locked against other runs.

    A killed run's unfinished file is moved to `.partial.1` or the next free number, with a LeftoverWarning. The lock is
    an operating-system lock on `.run.parquet.partial.lock` beside the file: it is released when the process ends,
    however that happens, and the next run takes the lock file over.

    Args:
        path: the file's path; a symbolic link there is not followed.

    Raises:
        OSError: the file cannot be written.
        ValueError: another run is writing to it, or the path is not a regular file.
    """

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), thread_local=False)
        with named_errors(path):
            try:
                os.stat(f"{path.parent}{os.sep}.")  # noqa: PTH116  (FileLock would make the folder)
                self._lock.acquire(blocking=False)
            except Timeout:
                if not os.path.lexists(self._lock.lock_file):  # no other run, but a folder that takes no files
                    os.close(os.open(path, NEW_FILE_FLAGS, 0o666))
                    path.unlink()
                raise ValueError(f"{path}: another run is writing to it; choose another name for this one") from None
            except NotImplementedError:
                pass  # a file system without locks
            except OSError as error:
                raise OSError(error.errno, reason_of(error), str(path)) from error
            try:
                _move_leftover(path)
                descriptor = os.open(path, NEW_FILE_FLAGS, 0o666)
            except BaseException:
                self.release()
                raise
        super().__init__(descriptor, "wb")

    def write(self, data: object) -> int:
        """Write all of the data; a full disk raises instead of a short write."""
        rest = memoryview(data).cast("B")  # type: ignore[arg-type]
        size = len(rest)
        while rest:
            rest = rest[super().write(rest) :]
        return size

    def release(self) -> None:
        """Release the lock and remove its file."""
        if self._lock.is_locked:
            # Removed while it is held: a process that opened it meanwhile sees that it is gone, and tries again.
            if os.name == "posix":
                Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()


def _move_leftover(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        kind = "a link" if stat.S_ISLNK(status.st_mode) else "a folder" if path.is_dir() else "not a regular file"
        raise ValueError(f"{path}: is {kind} at the path of the unfinished trace; remove it")
    if not status.st_size:
        path.unlink()
        return
    free = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    kept = next(name for name in free if not os.path.lexists(name))
    path.rename(kept)
    message = f"{path.name}: left by a run that did not end; kept as {kept}: `talkerviz show` reads it"

    warnings.warn(message, LeftoverWarning, stacklevel=2)
