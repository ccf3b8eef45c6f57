"""Atomic file writing: every file that talkerviz writes is written here."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

_TEMPORARY_PREFIX = ".talkerviz-"
NEW_FILE_FLAGS = (
    os.O_RDWR
    | os.O_CREAT
    | os.O_EXCL
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
"""Of `os.open`, for a file that is not there yet; a link of its name is not followed."""
_DESCRIPTOR = re.compile(r"(?:/dev/fd|/proc/(?P<process>\d+)(?:/task/\d+)?/fd)/(?P<number>\d+)")
_MAX_LINKS = 40  # as many as Linux follows
# Errors of a folder, or of a mounted file, in which a file may be writable and yet not replaceable.
_NOT_REPLACEABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV)


class LeftoverWarning(RuntimeWarning):
    """An unfinished file of an earlier run was moved out of the way."""


class AtomicFile:
    """A file that is written under an unpredictable name in its folder, and renamed when it is whole.

    An existing file keeps its mode, and its owner where the system allows that; of a symbolic link the target is
    written. A file that cannot be replaced, as in a folder without write permission, is overwritten at the end.
    Devices, FIFOs, sockets and descriptors such as `/dev/stdout` are written into directly.

    Args:
        path: the file's name.

    Attributes:
        file: the stream to write to.

    Raises:
        OSError: the file cannot be written; it names `path`.
    """

    file: BinaryIO

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary: Path | None = None
        self._overwrites = False
        with _errors_of(path):
            if stream := _open_special(path):
                self.file = stream
                return
            self._target = Path(os.path.realpath(path))
            before = _stat(self._target)
            if before is not None and not os.access(self._target, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            try:
                # A new file gets the mode that the umask leaves. A replacement is private until it has the old mode.
                descriptor, self._temporary = _create_beside(self._target, 0o666 if before is None else 0o600)
            except OSError as error:
                if before is None or error.errno not in _NOT_REPLACEABLE:
                    raise
                self._overwrites = True
                self.file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115
                return
            self.file = os.fdopen(descriptor, "w+b")
            if before is not None and os.name == "posix":
                _copy_owner_and_mode(before, descriptor)

    def show(self) -> None:
        """Rename the file before it is whole, so that readers see it grow; only where open files can be renamed."""
        if self._temporary is not None and os.name == "posix":
            with _errors_of(self._path):
                self.file.flush()
            with suppress(OSError):  # `finish` overwrites what cannot be replaced
                self._temporary.replace(self._target)
                self._temporary = None

    def finish(self) -> None:
        """Close the file and rename it.

        Raises:
            OSError: the disk is full, for one. What was there before is as it was.
        """
        with _errors_of(self._path):
            if self._overwrites:
                self.file.flush()
                _overwrite(self._target, self.file)
            self.file.close()
            temporary = self._temporary
            if temporary is None:
                return
            try:
                temporary.replace(self._target)
                self._temporary = None
            except OSError as error:
                if error.errno not in _NOT_REPLACEABLE or not self._target.is_file():
                    raise
                with temporary.open("rb") as whole:
                    _overwrite(self._target, whole)

    def discard(self) -> None:
        """Close the file, and remove what `finish` has not renamed."""
        with suppress(OSError):
            self.file.close()
        if self._temporary is not None:
            with suppress(OSError):
                self._temporary.unlink()


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing that is put in its place when the block ends; if the block raises nothing is changed.

    Args:
        path: the file's name; see `AtomicFile` for links, devices and folders without write permission.

    Raises:
        OSError: the file cannot be written; it names `path`.
    """
    path = Path(path)
    written = AtomicFile(path)
    try:
        with named_errors(path):
            yield written.file
        written.finish()
    finally:
        written.discard()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_write(path) as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, in UTF-8; lone surrogates become question marks."""
    write_bytes(path, text.encode(errors="replace"))


def is_special(path: str | Path) -> bool:
    """Whether a name is that of a device, FIFO, socket or descriptor, of which there is nothing to replace."""
    path = Path(path)
    if descriptor_of(path) is not None:
        return True
    status = _stat(path)
    return status is not None and not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode)


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Add the path to OSErrors; ENOSPC carries none."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, reason_of(error), str(path)) from error


def reason_of(error: OSError) -> str:
    """Return an OSError's reason without its file name."""
    return os.strerror(error.errno) if error.errno else str(error)


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Name the path in OSErrors, instead of a temporary file or a link's target."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, reason_of(error), str(path)) from error


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _open_special(path: Path) -> BinaryIO | None:
    """Open what can only be written into; None for a regular file and for a name that is free."""
    if (descriptor := descriptor_of(path)) is not None:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        # A duplicate appends where the shell's `>>` appends, and writes on behind what was printed.
        return os.fdopen(os.dup(descriptor), "wb")
    status = _stat(path)
    if status is None or stat.S_ISREG(status.st_mode):
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if stat.S_ISSOCK(status.st_mode):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            return connection.makefile("wb")
    return os.fdopen(os.open(path, os.O_WRONLY | getattr(os, "O_NOCTTY", 0)), "wb")


def descriptor_of(path: Path) -> int | None:
    """Return the number of this process's descriptor that a path such as `/dev/stdout` leads to."""
    for _ in range(_MAX_LINKS):
        found = _DESCRIPTOR.fullmatch(os.path.join(os.path.realpath(path.parent), path.name))  # noqa: PTH118
        if found and found["process"] in (None, str(os.getpid())):
            return int(found["number"])
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def _create_beside(target: Path, mode: int) -> tuple[int, Path]:
    """Create an empty file of an unpredictable name in a file's folder; no link of that name is followed."""
    while True:
        temporary = target.with_name(f"{_TEMPORARY_PREFIX}{secrets.token_hex(8)}.tmp")
        with suppress(FileExistsError):
            return os.open(temporary, NEW_FILE_FLAGS, mode), temporary


def _copy_owner_and_mode(before: os.stat_result, descriptor: int) -> None:
    for owner, group in ((-1, before.st_gid), (before.st_uid, -1)):
        with suppress(OSError):
            os.fchown(descriptor, owner, group)
    os.fchmod(descriptor, stat.S_IMODE(before.st_mode))


def _overwrite(target: Path, whole: BinaryIO) -> None:
    """Replace a file's content in place; a full disk is found out before anything is lost."""
    size = whole.seek(0, os.SEEK_END)
    whole.seek(0)
    with target.open("r+b") as file:
        before = file.seek(0, os.SEEK_END)
        if hasattr(os, "posix_fallocate") and size > before:
            try:
                os.posix_fallocate(file.fileno(), before, size - before)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    file.truncate(before)
                    raise
        file.seek(0)
        shutil.copyfileobj(whole, file)
        file.truncate()
