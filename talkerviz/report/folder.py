"""Folder of a report, with a manifest of the report's files."""

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
"""File name of the manifest: a line per file with SHA-256 and name, as `sha256sum` checks them."""

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
    """New or empty folder, or that of an earlier report, whose files are replaced.

    Files that no report wrote, or that were changed since, are never touched.

    Args:
        path: path of the folder, which is created with the first file.

    Raises:
        OSError: the folder cannot be read.
        ValueError: the folder holds files but no report, or a file that the report would replace is not from a report
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
                raise ValueError(f"{path}: is a file, not a folder; name another one")
            digests = self._read_manifest()
            if digests is None and any(not entry.name.startswith(".") for entry in path.iterdir()):
                raise ValueError(f"{path}: is not empty and holds no report; name another folder")
            for name in self._present():
                digest = _digest_of(path / name)
                if digest is None or digest not in (digests or {}).get(name, ()):
                    why = (
                        "was changed since the report was written"
                        if name in (digests or {})
                        else "is not from a report"
                    )
                    raise ValueError(f"{path / name}: {why}; move it away, or name another folder")
                self._earlier.add(name)

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open one of the report's files for writing; it is in the manifest before it is in place."""
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
        """Remove files that only the earlier report has, and rewrite the manifest."""
        for name in self._earlier - set(self._written):
            (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):
            (self.path / _FRAMES).rmdir()
        write_text(self.path / MANIFEST, "".join(f"{digest}  {name}\n" for name, digest in self._written.items()))

    def _read_manifest(self) -> dict[str, set[str]] | None:
        """Return the digests that each file may have; an interrupted report has added some of its own."""
        path = self.path / MANIFEST
        if path.is_symlink() or not path.is_file():
            return None
        digests: dict[str, set[str]] = {}
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if found := _LINE.fullmatch(line):
                digests.setdefault(found["name"], set()).add(found["digest"])
        return digests

    def _present(self) -> Iterator[str]:
        """Yield names of files in the folder that a report may have written."""
        yield from (name for name in _FILES if os.path.lexists(self.path / name))
        frames = self.path / _FRAMES
        if frames.is_symlink() or (os.path.lexists(frames) and not frames.is_dir()):
            yield _FRAMES  # not from a report, which makes a folder
        elif frames.is_dir():
            names = (f"{_FRAMES}/{entry.name}" for entry in sorted(frames.iterdir()))
            yield from (name for name in names if _FRAME_FILE.fullmatch(name))

    def _note(self, name: str, digest: str) -> None:
        """Append to the manifest, so that it is complete whenever the process ends."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        path = self.path / MANIFEST
        with named_errors(path), os.fdopen(os.open(path, flags, 0o666), "wb") as manifest:
            manifest.write(f"{digest}  {name}\n".encode())
        self._written[name] = digest


class _HashedFile:
    """File that hashes what is written to it."""

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
