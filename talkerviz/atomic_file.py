"""Atomic writing of all files that talkerviz writes."""

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
"""Flags of `os.open` that create a new file and do not follow a link of its name."""
_DESCRIPTOR = re.compile(r"(?:/dev/fd|/proc/(?P<process>\d+)(?:/task/\d+)?/fd)/(?P<number>\d+)")
_MAX_LINKS = 40  # as many as Linux follows
# Errors of renaming in a folder, or over a mounted file, where the file itself may still be writable.
_NOT_REPLACEABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV)


class LeftoverWarning(RuntimeWarning):
    """Warning that an unfinished file of an earlier run was renamed."""


class AtomicFile:
    """File that is written under a temporary name in its folder, and renamed when it is complete.

    An existing file keeps its mode, and its owner where the system allows that; symbolic links are followed. A file
    that cannot be replaced, as in a folder without write permission, is overwritten at the end. Devices, FIFOs, sockets
    and descriptors such as `/dev/stdout` are written directly.

    Args:
        path: name of the file.

    Attributes:
        file: stream to write to.

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
                # A new file gets its mode from the umask. A replacement is private until it gets the old file's mode.
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
        """Rename the file before it is complete, so that readers see it grow; POSIX only."""
        if self._temporary is not None and os.name == "posix":
            with _errors_of(self._path):
                self.file.flush()
            with suppress(OSError):  # `finish` overwrites what cannot be replaced
                self._temporary.replace(self._target)
                self._temporary = None

    def finish(self) -> None:
        """Close the file and rename it.

        Raises:
            OSError: the file cannot be written, for instance to a full disk; an earlier file is unchanged.
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
        """Close the file, and remove it unless `finish` has renamed it."""
        with suppress(OSError):
            self.file.close()
        if self._temporary is not None:
            with suppress(OSError):
                self._temporary.unlink()


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` at the end of the block, unless the block raises.

    Args:
        path: name of the file; see `AtomicFile` for links, devices and folders without write permission.

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
    """Return whether a path is a device, FIFO, socket or descriptor, which is written directly."""
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
    """Open a device, FIFO, socket or descriptor; None for a regular file and for a missing one."""
    if (descriptor := descriptor_of(path)) is not None:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        # A duplicate shares the file offset: it appends to `>>`, and continues behind printed text.
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
    """Return this process's descriptor behind a path such as `/dev/stdout`; None for other paths."""
    for _ in range(_MAX_LINKS):
        found = _DESCRIPTOR.fullmatch(os.path.join(os.path.realpath(path.parent), path.name))  # noqa: PTH118
        if found and found["process"] in (None, str(os.getpid())):
            return int(found["number"])
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def _create_beside(target: Path, mode: int) -> tuple[int, Path]:
    """Create an empty file of an unpredictable name in a file's folder, without following links."""
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
    """Replace a file's content in place; space is allocated first, so that a full disk loses nothing."""
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
