"""A report's folder, with a manifest of the files that a report wrote there."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from talkerviz.atomic_file import atomic_write, named_errors, write_text

MANIFEST = ".talkerviz-report"
"""A line a file, its SHA-256 and its name, as `sha256sum` writes and checks them."""

_FILES = (
    "index.html",
    "report.md",
    "calls.csv",
    "flowchart.svg",
    "flowchart.dot",
    "flowchart.mmd",
    "trace.json",
    "facts.json",
)
_FRAMES = "frames"
_FRAME_FILE = re.compile(rf"{_FRAMES}/(frame-\d+|outside)\.js", re.ASCII)
_LINE = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<name>.+)")


class ReportFolder:
    """A folder that is empty, or holds an earlier report whose files are written over.

    Files that no report wrote are never touched, nor those that were changed since.

    Args:
        path: the folder; made by the first file.

    Raises:
        OSError: the folder cannot be read.
        ValueError: it has files but no report's, or a file that a report would write over and that is not a report's
            or was changed since.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: dict[str, str] = {}
        self._earlier: set[str] = set()
        with named_errors(path):
            if not os.path.lexists(path):
                return
            if not path.is_dir():
                raise ValueError(f"{path}: is a file, not a folder")
            digests = self._read_manifest()
            if digests is None and any(not entry.name.startswith(".") for entry in path.iterdir()):
                raise ValueError(f"{path}: is not empty, and not the folder of a report: name another one")
            for name in self._present():
                digest = _digest_of(path / name)
                if digest is None or digest not in (digests or {}).get(name, ()):
                    why = "was changed since the report was written" if name in (digests or {}) else "is of no report"
                    raise ValueError(f"{path / name}: {why}: move it away, or name another folder")
                self._earlier.add(name)

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open one of the report's files for writing; it is noted in the manifest before it is put in its place."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            hashed = _HashedFile(file)
            yield cast(BinaryIO, hashed)
            self._note(name, hashed.digest.hexdigest())

    def write_text(self, name: str, text: str) -> None:
        """Write a text file in UTF-8."""
        self.write_bytes(name, text.encode(errors="replace"))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file."""
        with self.open(name) as file:
            file.write(data)

    def finish(self) -> None:
        """Remove files of the earlier report that this one does not have, and list this one's in the manifest."""
        for name in self._earlier - set(self._written):
            (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):
            (self.path / _FRAMES).rmdir()
        write_text(self.path / MANIFEST, "".join(f"{digest}  {name}\n" for name, digest in self._written.items()))

    def _read_manifest(self) -> dict[str, set[str]] | None:
        """Return the digests that each file may have; a report that was broken off has written some of its own."""
        path = self.path / MANIFEST
        if path.is_symlink() or not path.is_file():
            return None
        digests: dict[str, set[str]] = {}
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if found := _LINE.fullmatch(line):
                digests.setdefault(found["name"], set()).add(found["digest"])
        return digests

    def _present(self) -> Iterator[str]:
        """Names of files in the folder that a report may write, or wrote."""
        yield from (name for name in _FILES if os.path.lexists(self.path / name))
        frames = self.path / _FRAMES
        if frames.is_symlink() or (os.path.lexists(frames) and not frames.is_dir()):
            yield _FRAMES  # which no report wrote
        elif frames.is_dir():
            names = (f"{_FRAMES}/{entry.name}" for entry in sorted(frames.iterdir()))
            yield from (name for name in names if _FRAME_FILE.fullmatch(name))

    def _note(self, name: str, digest: str) -> None:
        """Append to the manifest: whenever the process ends, it knows every file of the folder."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        path = self.path / MANIFEST
        with named_errors(path), os.fdopen(os.open(path, flags, 0o666), "wb") as manifest:
            manifest.write(f"{digest}  {name}\n".encode())
        self._written[name] = digest


class _HashedFile:
    """A file that counts a digest of what is written to it."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False


def _digest_of(path: Path) -> str | None:
    """Return a regular file's SHA-256; None for a link, folder or device."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
