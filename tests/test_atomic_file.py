"""Writing files: what was there is kept until the new file is whole."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from full_disk import disk_of
from sample_trace import sample_trace

from talkerviz.atomic_file import atomic_write, is_special, write_bytes, write_text
from talkerviz.recorder.instruments.device_peaks import Peaks, save_peaks
from talkerviz.talker.files.audio_file import AudioFile
from talkerviz.talker.files.codes_file import write_codes

OLD, NEW = b"what was there", b"what is new" * 1000
posix = pytest.mark.skipif(os.name != "posix", reason="modes, links and devices of POSIX")


def write_wav(path: Path) -> None:
    with AudioFile(path, "wav") as audio:
        audio.add(torch.zeros(4000))


WRITERS: dict[str, Callable[[Path], object]] = {
    "bytes": lambda path: write_bytes(path, NEW),
    "trace": lambda path: sample_trace().save(path),
    "codes": lambda path: write_codes(path, torch.ones(100, 16, dtype=torch.int64)),
    "peaks": lambda path: save_peaks(Peaks("d", {"float32": 1.0}, 1.0, "s" * 5000), path),
    "wav": write_wav,
}
every_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


@every_writer
def test_a_full_disk_leaves_the_old_file(write: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "file"
    with disk_of(1000), pytest.raises(OSError, match="File too large") as raised:
        write(path)
    assert raised.value.filename == str(path)
    assert not any(tmp_path.iterdir())
    path.write_bytes(OLD)
    with disk_of(1000), pytest.raises(OSError, match="File too large"):
        write(path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"file": OLD}


@posix
@every_writer
def test_mode_and_links_are_kept(write: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    real, link = tmp_path / "folder" / "real", tmp_path / "link"
    real.write_bytes(OLD)
    real.chmod(0o640)
    link.symlink_to("folder/real")
    write(link)
    assert link.is_symlink()
    assert real.read_bytes() != OLD
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert [file.name for file in real.parent.iterdir()] == ["real"]
    before = os.umask(0o027)
    try:
        write(tmp_path / "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    (tmp_path / "dangling").symlink_to("folder/made")
    write(tmp_path / "dangling")
    assert (tmp_path / "dangling").is_symlink()
    assert (tmp_path / "folder" / "made").stat().st_size


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no"), OSError("no")])
def test_an_exception_leaves_the_old_file(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    with pytest.raises(type(error)), atomic_write(path) as file:  # noqa: PT012
        file.write(NEW)
        assert path.read_bytes() == OLD
        raise error
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [OLD]


@posix
@pytest.mark.skipif(os.name == "posix" and os.geteuid() != 0, reason="only root can replace a device")
def test_a_device_is_written_into(tmp_path: Path) -> None:
    null = tmp_path / "null"
    try:
        os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        null.write_bytes(b"")
    except OSError:
        pytest.skip("no devices can be made here")
    for write in WRITERS.values():
        write(null)
        assert stat.S_ISCHR(null.lstat().st_mode)
    assert [file.name for file in tmp_path.iterdir()] == ["null"]
    assert is_special(null)


@posix
def test_a_fifo_and_a_socket_are_written_into(tmp_path: Path) -> None:
    got: list[bytes] = []
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_bytes(pipe, NEW)
    reader.join()
    assert stat.S_ISFIFO(pipe.lstat().st_mode)

    with socket.socket(socket.AF_UNIX) as server:
        name = os.path.relpath(tmp_path / "socket")  # a full path may be too long
        server.bind(name)
        server.listen()
        write_bytes(name, NEW[:1000])
        with server.accept()[0] as connection:
            got.append(connection.recv(2000))
    assert got == [NEW, NEW[:1000]]


@posix
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_stdout_by_name_goes_on_where_it_is(name: str, tmp_path: Path) -> None:
    """What is in the file that the shell appends to stays, and what is printed follows."""
    if name.startswith("/proc") and not Path(name).exists():
        pytest.skip("no /proc")
    (tmp_path / "link").symlink_to("/dev/stdout")
    (tmp_path / "log").write_text("before\n")
    program = (
        f"from talkerviz.atomic_file import write_text; print('one'); write_text({name!r}, 'two\\n'); print('three')"
    )
    with (tmp_path / "log").open("a") as log:
        subprocess.run([sys.executable, "-c", program], stdout=log, check=True, cwd=tmp_path)
    assert (tmp_path / "log").read_text() == "before\none\ntwo\nthree\n"


def test_what_cannot_be_written_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for name in ("folder", "none/x", "loop", "l" * 300):
        with pytest.raises(OSError, match=r"Errno \d+") as raised:
            write_text(tmp_path / name, "text")
        assert raised.value.filename == str(tmp_path / name)
    assert {file.name for file in tmp_path.iterdir()} == {"folder", "loop"}


def test_a_folder_in_which_nothing_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is overwritten in place, which keeps the inode, and a full disk is found out before that."""
    path, create = tmp_path / "file", os.open

    def refuse(name: str | Path, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT and Path(name).parent == tmp_path:
            raise PermissionError(13, "Permission denied", str(name))
        return create(name, flags, *mode)

    monkeypatch.setattr("talkerviz.atomic_file.os.open", refuse)
    path.write_bytes(OLD)
    inode = path.stat().st_ino
    write_bytes(path, NEW)
    assert path.read_bytes() == NEW
    write_bytes(path, OLD)
    assert path.read_bytes() == OLD
    with disk_of(1000), pytest.raises(OSError, match="File too large"):
        write_bytes(path, NEW)
    assert path.read_bytes() == OLD
    assert path.stat().st_ino == inode
    with pytest.raises(PermissionError) as raised:
        write_bytes(tmp_path / "new", NEW)
    assert raised.value.filename == str(tmp_path / "new")


@posix
def test_a_file_that_cannot_be_replaced_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file that is a mount of its own, in a container."""

    def busy(self: Path, target: Path) -> Path:
        raise OSError(16, "Device or resource busy", str(self))

    monkeypatch.setattr(Path, "replace", busy)
    path = tmp_path / "file"
    path.write_bytes(OLD)
    write_bytes(path, NEW)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [NEW]


def test_the_temporary_name_is_unpredictable_and_no_link_of_it_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for _ in range(2):
        with atomic_write(tmp_path / "file"):
            names += [file.name for file in tmp_path.iterdir() if file.name != "file"]
    assert len(set(names)) == 2
    tokens = iter(["taken", "free"])
    monkeypatch.setattr("talkerviz.atomic_file.secrets.token_hex", lambda size: next(tokens))
    (tmp_path / "mine").write_bytes(OLD)
    (tmp_path / ".talkerviz-taken.tmp").symlink_to("mine")
    write_bytes(tmp_path / "file", NEW)
    assert (tmp_path / "mine").read_bytes() == OLD
    assert (tmp_path / "file").read_bytes() == NEW


@posix
def test_a_file_that_is_read_only_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    monkeypatch.setattr("talkerviz.atomic_file.os.access", lambda path, mode: False)  # root may write to all
    with pytest.raises(PermissionError) as raised:
        write_bytes(path, NEW)
    assert raised.value.filename == str(path)
    assert path.read_bytes() == OLD


def test_a_sound_replaces_the_old_file_once_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "speech.wav"
    path.write_bytes(OLD)
    with AudioFile(path, "wav") as audio:
        assert path.read_bytes() == OLD
        audio.add(torch.zeros(10))
        assert path.stat().st_size == 44 + 20
